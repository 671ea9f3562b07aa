"""Seconds, on the built-in scenes and the backbone that ships with the package: every part of a
run, small."""

from edje_jax.config.model import BertConfig
from edje_jax.config.parts import AdapterSpec, ModelSpec
from edje_jax.config.run import DataConfig, EdjeRun, LossConfig, OptimConfig

config = EdjeRun(
    steps=20,
    data=DataConfig(train="shapes:train", batch_size=16, block_size=4),
    model=ModelSpec(
        backbone="shapes-backbone",
        adapter=AdapterSpec("compress", num_tokens=8, intermediate_size=64),
        fresh=BertConfig(
            vocab_size=200,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
        ),
        max_text_length=48,
        dropout=0.0,
    ),
    loss=LossConfig(negatives=1),
    optim=OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=5),
    log_every=1,
    checkpoint_every=10,
)
