"""Heads on the joint encoder, on the backbone and on compressed tokens, one file each."""
