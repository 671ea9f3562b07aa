"""Heads on the joint encoder, one file each."""
