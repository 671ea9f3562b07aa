"""Losses, one file per term: pure functions of logits and masks.

Every mean is a masked sum over a masked count, so that an invalid row weighs nothing. All
arithmetic is float32. Where rows are a part of a batch, `count` is the whole batch's.
"""
