"""Random-access readers of images with captions; `registry.open_source` opens one by SPEC."""
