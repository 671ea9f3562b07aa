"""Frozen dataclasses of settings: `model` holds shapes, `run` holds training runs."""
