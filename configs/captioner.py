"""A small captioner that ranks: the slow model of Fast & Slow, on any SPEC.

    python train.py captioner

It is trained to predict captions from images alone, in both directions, without negatives. On the
built-in scenes it takes the backbone that ships with the package.
"""

from edje_jax.config.model import BertConfig
from edje_jax.config.parts import AdapterSpec, ModelSpec
from edje_jax.config.run import DataConfig, EdjeRun, LossConfig, OptimConfig

config = EdjeRun(
    epochs=30,
    data=DataConfig(batch_size=64),
    model=ModelSpec(
        kind="captioner",
        backbone="shapes-backbone",
        adapter=AdapterSpec("local", intermediate_size=384),
        fresh=BertConfig(
            vocab_size=2000,
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=192,
            hidden_act="gelu_pytorch_tanh",
            # BERT-base's 0.02 at this width (docs/ablation.md).
            initializer_range=0.05,
        ),
        max_text_length=48,
        dropout=0.0,
    ),
    loss=LossConfig(
        match=0.0,
        masked_lm=0.0,
        text_recovery=0.0,
        captioning=1.0,
        unconditional_captioning=0.25,
        auxiliary_stride=4,
        negatives=1,
    ),
    optim=OptimConfig(lr=1.5e-3, schedule="cosine", hold=0.6, clip_norm=1.0),
    log_every=20,
)
