"""One file per family of dual encoders: its table of weights and its config."""
