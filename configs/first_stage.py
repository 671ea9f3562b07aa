"""Heads of the first stage for a trained model: embeddings that learn from the reranker, and codes.

    python train.py first_stage --init runs/mine --data.train blip:train.json

The model itself stays as it is; the workdir's model/ has it with the heads (docs/first-stage.md).
"""

from edje_jax.config.first_stage_run import FirstStageRun
from edje_jax.config.run import DataConfig, OptimConfig

config = FirstStageRun(
    steps=1000,
    data=DataConfig(batch_size=512),
    optim=OptimConfig(lr=2e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0),
    log_every=50,
)
