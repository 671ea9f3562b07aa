"""Losses of the first-stage heads, one file each, named as its weight in `FirstStageLoss`."""
