"""The Local teacher: pre-training with all losses, on SigLIP2 L/16-384 and MiniLM-L12.

EDJE (arXiv 2510.06820), where the paper or its code (github.com/shahafwa/EDJE) states a number:
AdamW, weight decay 0.05, learning rate 3e-4, 100 warm-up steps from 1e-6, then x0.9 an epoch down
to 1e-6, text 64 (with the [SEP] that closes the vision segment), an adapter 8192 wide, masking half
of the pieces, dropout 0.1, K = 3 (paper; the code's config has 1), 32 pairs per GPU on 8 GPUs, up
to 45 epochs (code; what the paper's runs used is not published). Betas are AdamW's defaults. The
set is yours to name: docs/guide/recipes.md tells how to get the paper's.
"""

from edje_jax.config.parts import AdapterSpec, ModelSpec
from edje_jax.config.run import DataConfig, EdjeRun, LossConfig, OptimConfig

config = EdjeRun(
    epochs=45,
    data=DataConfig(train="blip:pretrain.json", batch_size=256, workers=16),
    model=ModelSpec(
        backbone="google/siglip2-large-patch16-384",
        joint_encoder="microsoft/MiniLM-L12-H384-uncased",
        adapter=AdapterSpec("local"),
    ),
    loss=LossConfig(negatives=3),
    optim=OptimConfig(lr=3e-4),
    log_every=50,
    checkpoint_every=2000,
)
