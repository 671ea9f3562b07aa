"""A small EDJE that reads videos frame by frame, from scratch, on the built-in clips.

    python train.py video

It is VEDJE's recipe in small (OpenReview ZqB0Ab4juk): the adapter compresses each frame with the
same weights, to two tokens, and the joint encoder tells their order by its positions. More of that
recipe, for sets of one's own:

    --loss.future-difference 1 --model.deferred-layers 0        tokens foresee the change of frames
    --loss.negatives 24 --loss.hardest-of 50 --loss.random-negatives 25     lists of 49 negatives
    --model.similarity-prior True                               the first stage's score, learned
    --init runs/mine                                            from a trained model of images
"""

from edje_jax.config.model import BertConfig
from edje_jax.config.parts import AdapterSpec, ModelSpec, VideoSpec
from edje_jax.config.run import DataConfig, EdjeRun, LossConfig, OptimConfig

config = EdjeRun(
    steps=1000,
    # Clips of a group stand together: what tells them apart is the order of their frames.
    data=DataConfig(
        train="moving-shapes:train", limit=25_600, batch_size=64, block_size=4, full_length=True
    ),
    model=ModelSpec(
        backbone="shapes-backbone",
        adapter=AdapterSpec("compress", num_tokens=2, intermediate_size=384),
        video=VideoSpec(frames=8),
        fresh=BertConfig(
            vocab_size=200,
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=128,
            hidden_act="gelu_pytorch_tanh",
            # BERT-base's 0.02 at this width; see docs/ablation.md for what others cost.
            initializer_range=0.05,
            # Half of the layers run offline: a shorter step. The loss of future differences needs
            # --model.deferred-layers 0.
            deferred_layers=2,
        ),
        max_text_length=32,
        dropout=0.0,
    ),
    loss=LossConfig(negatives=1, random_negatives=1, masked_lm_first=0.3, auxiliary_stride=2),
    optim=OptimConfig(lr=1.5e-3, schedule="cosine", hold=0.7, clip_norm=1.0),
    k=50,
    log_every=20,
)
