"""Procedural scenes with captions and patch labels, made without files."""
