"""The compressed student, 64 tokens, distilled from a Local teacher (name it with --teacher)."""

import dataclasses

from configs.pretrain_local import config as local
from edje_jax.config import AdapterConfig

config = dataclasses.replace(
    local,
    model=dataclasses.replace(local.model, adapter=AdapterConfig("compress", num_tokens=64)),
)
