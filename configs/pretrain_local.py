"""The Local teacher: pre-training with all losses, on SigLIP2 L/16-384 and MiniLM-L12.

Numbers from the published code and paper (arXiv 2510.06820) where they state them: AdamW, weight
decay 0.05, learning rate 3e-4, 100 warm-up steps from 1e-6, x0.9 an epoch, K = 3 (paper; the
code's config has 1), batch 32 per GPU on 8 GPUs. The data sets are yours to name.
"""

from edje_jax.config import AdapterConfig, DataConfig, EdjeRun, LossConfig, ModelSpec, OptimConfig

config = EdjeRun(
    epochs=45,
    data=DataConfig(train="blip:pretrain.json", batch_size=256, workers=16),
    model=ModelSpec(
        backbone="google/siglip2-large-patch16-384",
        joint_encoder="microsoft/MiniLM-L12-H384-uncased",
        adapter=AdapterConfig("local", num_tokens=0),
    ),
    loss=LossConfig(negatives=3),
    optim=OptimConfig(lr=3e-4),
    log_every=50,
    checkpoint_every=2000,
)
