"""Random-access readers of pictures with captions; `registry.open_source` opens one by SPEC."""
