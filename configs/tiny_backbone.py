"""A small SigLIP-style dual encoder from scratch, on any SPEC."""

from edje_jax.config.model import TextConfig, VisionConfig
from edje_jax.config.run import BackboneRun, DataConfig, OptimConfig

config = BackboneRun(
    epochs=24,
    data=DataConfig(batch_size=128),
    vision=VisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4
    ),
    text=TextConfig(
        vocab_size=2000,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        max_position_embeddings=32,
        projection_size=96,
    ),
    optim=OptimConfig(lr=2e-3, schedule="cosine", clip_norm=1.0),
    checkpoint_every=200,
)
