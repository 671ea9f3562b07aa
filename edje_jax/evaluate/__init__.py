"""A runtime through an evaluation protocol."""
