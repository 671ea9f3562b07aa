"""A small EDJE on a tiny backbone, on any SPEC."""

from edje_jax.config.model import BertConfig
from edje_jax.config.parts import AdapterSpec, ModelSpec
from edje_jax.config.run import DataConfig, EdjeRun, LossConfig, OptimConfig

config = EdjeRun(
    epochs=30,
    data=DataConfig(batch_size=64),
    model=ModelSpec(
        adapter=AdapterSpec("compress", num_tokens=16, intermediate_size=384),
        fresh=BertConfig(
            vocab_size=2000,
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=192,
            hidden_act="gelu_pytorch_tanh",
            # BERT-base's 0.02 at this width (docs/ablation.md).
            initializer_range=0.05,
        ),
        max_text_length=48,
        dropout=0.0,
    ),
    # Masked LM alone first, without which a joint encoder from scratch takes far longer to look at
    # the image; K = 3, as one negative alone is nearly always of the same thing, and then the
    # model never learns to reject other things.
    loss=LossConfig(negatives=3, masked_lm_first=0.2),
    optim=OptimConfig(lr=1.5e-3, schedule="cosine", hold=0.6, clip_norm=1.0),
    log_every=20,
)
