"""A small EDJE with a joint encoder of four layers, trained with AdamW on the built-in scenes.

`shapes-demo`, which ships with the package, was trained by it, and so were the models of several
pages of docs/; `make demo` trains a smaller one (configs/demo.py).
"""

from edje_jax.config.model import BertConfig
from edje_jax.config.parts import AdapterSpec, ModelSpec
from edje_jax.config.run import DataConfig, EdjeRun, LossConfig, OptimConfig

config = EdjeRun(
    steps=1450,
    # Nearly every batch has a caption of 26 pieces or more: one length saves compiling another.
    data=DataConfig(
        train="shapes:train", limit=25_600, batch_size=64, block_size=4, full_length=True
    ),
    model=ModelSpec(
        backbone="shapes-backbone",
        adapter=AdapterSpec("compress", num_tokens=16, intermediate_size=384),
        fresh=BertConfig(
            vocab_size=200,
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=128,
            hidden_act="gelu_pytorch_tanh",
            # BERT-base's 0.02 at this width (docs/ablation.md).
            initializer_range=0.05,
            # Half of the layers run offline: a shorter step, and better on every seed
            # (docs/deferred-fusion.md). 0 is the published layout.
            deferred_layers=2,
        ),
        max_text_length=30,
        dropout=0.0,
    ),
    # Masked LM teaches the words what to look for; matching then learns in a few hundred steps.
    loss=LossConfig(negatives=1, masked_lm_first=0.4, auxiliary_stride=2),
    optim=OptimConfig(lr=1.5e-3, schedule="cosine", hold=0.7, clip_norm=1.0),
    log_every=20,
)
