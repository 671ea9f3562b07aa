"""The backbone that `make demo` uses: a dual encoder of the built-in scenes."""

from edje_jax.config.model import TextConfig, VisionConfig
from edje_jax.config.run import BackboneRun, DataConfig, OptimConfig

config = BackboneRun(
    steps=1600,
    data=DataConfig(train="shapes:train", val="shapes:val", batch_size=64),
    vision=VisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4
    ),
    text=TextConfig(
        vocab_size=200,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        max_position_embeddings=32,
        projection_size=96,
    ),
    optim=OptimConfig(lr=2e-3, schedule="cosine", hold=0.6, weight_decay=0.05, clip_norm=1.0),
    patch_naming=6.0,
    # Shapes are the hardest to learn: they shall be the loudest part of a token, then colours.
    patch_sharpness=(5.0, 8.0, 20.0),
    log_every=50,
)
