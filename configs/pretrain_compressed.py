"""The compressed student, distilled from a Local teacher (name it with --teacher).

The paper's has 64 or 128 tokens (its code's config 32: --model.adapter.num-tokens) and the rest as
the teacher; distillation weighs 1, as the other losses do (arXiv 2510.06820 and its code).
"""

import dataclasses

from edje_jax.config.parts import AdapterSpec

from .pretrain_local import config as local

config = dataclasses.replace(
    local,
    model=dataclasses.replace(local.model, adapter=AdapterSpec("compress", num_tokens=64)),
)
