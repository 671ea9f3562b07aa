"""Fine-tuning on COCO: matching, and distillation if a --teacher is named; start with --init.

Published: matching (and distillation) alone, learning rate 2e-5, the rest as in pre-training
(arXiv 2510.06820 and its code). Not published: the number of epochs; 10 is ours.
"""

import dataclasses

from edje_jax.config.parts import AdapterSpec
from edje_jax.config.run import DataConfig, LossConfig, OptimConfig

from .pretrain_compressed import config as pretrain

config = dataclasses.replace(
    pretrain,
    epochs=10,
    # What --init loads brings its own backbone, adapter and joint encoder.
    model=dataclasses.replace(
        pretrain.model, backbone=None, joint_encoder=None, adapter=AdapterSpec()
    ),
    data=DataConfig(train="blip:coco_karpathy_train.json", batch_size=256, workers=16),
    loss=LossConfig(masked_lm=0.0, text_recovery=0.0, negatives=3),
    optim=OptimConfig(lr=2e-5),
)
