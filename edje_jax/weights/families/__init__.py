"""Families of dual encoders; each has a file with its table of weights and its config."""
