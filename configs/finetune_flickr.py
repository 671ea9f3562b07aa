"""Fine-tuning on Flickr30k, as on COCO; the paper has no such row, its Flickr30k is zero-shot."""

import dataclasses

from edje_jax.config.run import DataConfig

from .finetune_coco import config as coco

config = dataclasses.replace(
    coco, data=DataConfig(train="blip:flickr30k_train.json", batch_size=256, workers=16)
)
