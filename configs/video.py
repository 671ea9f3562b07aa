"""A small EDJE that reads videos frame by frame: the built-in clips, from a model of still images.

    python train.py video

It is VEDJE's recipe in small (OpenReview ZqB0Ab4juk): the adapter compresses each frame with the
same weights, to two tokens, and the joint encoder tells their order by its positions. More of that
recipe, for sets of one's own:

    --loss.future-difference 1 --model.deferred-layers 0        tokens foresee the change of frames
    --data.batch-size 64 --loss.negatives 24 --loss.hardest-of 50 --loss.random-negatives 25
                                                                lists of 49 negatives
    --model.similarity-prior True                               the first stage's score, learned
    --init runs/mine                                            from one's own model
"""

from edje_jax.config.parts import AdapterSpec, ModelSpec, VideoSpec
from edje_jax.config.run import DataConfig, EdjeRun, LossConfig, OptimConfig

config = EdjeRun(
    steps=1500,
    # Clips of a group stand together: what tells them apart is the order of their frames. In small
    # batches they are each other's hardest negatives, as the first stage knows little of events.
    data=DataConfig(
        train="moving-shapes:train", limit=12_800, batch_size=16, block_size=4, full_length=True
    ),
    # Knows things and colours from single images; what happens it has to learn.
    init="shapes-demo",
    model=ModelSpec(
        adapter=AdapterSpec(num_tokens=2),
        video=VideoSpec(frames=8),
        # Its tokenizer cuts most words of these captions into several pieces.
        max_text_length=48,
        dropout=0.0,
    ),
    loss=LossConfig(negatives=3, random_negatives=1, masked_lm_first=0.15, auxiliary_stride=2),
    optim=OptimConfig(lr=1.2e-3, schedule="cosine", hold=0.7, clip_norm=1.0),
    k=50,
    log_every=20,
)
