"""`make demo`: a small EDJE on the built-in scenes and the backbone that ships with the package."""

from edje_jax.config.model import BertConfig
from edje_jax.config.parts import AdapterSpec, ModelSpec
from edje_jax.config.run import DataConfig, EdjeRun, LossConfig, OptimConfig

config = EdjeRun(
    steps=1150,
    # Nearly every batch has a caption of 26 pieces or more: one length saves compiling another.
    data=DataConfig(
        train="shapes:train",
        limit=12_800,
        batch_size=64,
        block_size=4,
        full_length=True,
    ),
    model=ModelSpec(
        backbone="shapes-backbone",
        adapter=AdapterSpec("compress", num_tokens=16, intermediate_size=384),
        fresh=BertConfig(
            vocab_size=200,
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            hidden_act="gelu_pytorch_tanh",
            # BERT-base's 0.02 at this width (docs/ablation.md).
            initializer_range=0.05,
            # A layer runs offline, and the others leave vision rows as they are: a shorter step
            # (docs/deferred-fusion.md). 0 and "updated" are the published layout.
            deferred_layers=1,
            online_vision="attended",
        ),
        max_text_length=30,
        dropout=0.0,
    ),
    # Masked LM teaches the words what to look for; matching then learns in a few hundred steps.
    loss=LossConfig(negatives=1, binary_match=0.3, masked_lm_first=0.3, auxiliary_stride=2),
    optim=OptimConfig(
        kind="muon", lr=3e-3, warmup_steps=50, schedule="cosine", hold=0.5, clip_norm=1.0
    ),
    log_every=20,
)
