"""Retrieval metrics and reports. Takes functions, not models; training and `eval.py` share it."""
