"""Defer layers of a trained model: start from it and distil it, logits and hidden states.

    python train.py distil_deferred --init runs/coco --teacher runs/coco --data.train SPEC

The weights start where they were, so that a joint encoder that was pre-trained loses as little as
possible, as DeFormer (arXiv 2005.00697) found for text; the learning rate is that of published
fine-tuning, the number of epochs and the weight of the hidden states are ours.
"""

import dataclasses

from edje_jax.config.run import LossConfig

from .finetune_coco import config as finetune

config = dataclasses.replace(
    finetune,
    epochs=3,
    model=dataclasses.replace(finetune.model, deferred_layers=6),
    loss=LossConfig(masked_lm=0.0, text_recovery=0.0, hidden_states=1.0, negatives=3),
)
