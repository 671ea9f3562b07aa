"""Queue of the last batches' compressed tokens and captions, which more negatives come from.

Its rows are as the model made them when their batch was trained on, and get no gradient, as in
MoCo's queue (arXiv 1911.05722). It is part of the training state: a run that resumes goes on with
the same queue.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config.model import EdjeConfig
from edje_jax.training.negatives import Examples
from edje_jax.types import Batch, Features


class Queue(NamedTuple):
    """The newest rows first; rows that nothing was put into yet are not valid."""

    tokens: Float[Array, "q m d"]
    """Compressed tokens, float32."""
    ids: Int[Array, "q t"]
    """Captions in the joint encoder's tokens, padded to the longest that the model reads."""
    text_embeddings: Float[Array, "q e"]
    image_embeddings: Float[Array, "q e"]
    image_ids: Int[Array, " q"]
    caption_ids: Int[Array, " q"]
    valid: Bool[Array, " q"]

    def examples(self, length: int, pad: int) -> Examples:
        """Rows that may be negatives of a batch whose captions have `length` ids; a longer caption
        is none there."""
        fits = jnp.all(self.ids[:, length:] == pad, axis=1)
        return Examples(
            self.text_embeddings,
            self.image_embeddings,
            self.image_ids,
            self.caption_ids,
            self.valid,
            self.valid & fits,
        )


def empty_queue(config: EdjeConfig, size: int) -> Queue:
    """A queue of `size` rows that nothing was put into."""
    joint, embedding = config.joint_encoder, config.backbone.text.projection_size
    return Queue(
        tokens=jnp.zeros((size, config.num_tokens, joint.hidden_size)),
        ids=jnp.full((size, config.max_text_length), joint.pad_token_id, jnp.int32),
        text_embeddings=jnp.zeros((size, embedding)),
        image_embeddings=jnp.zeros((size, embedding)),
        image_ids=jnp.zeros(size, jnp.int32),
        caption_ids=jnp.zeros(size, jnp.int32),
        valid=jnp.zeros(size, bool),
    )


def push(
    queue: Queue, batch: Batch, features: Features, tokens: Float[Array, "b m d"], pad: int
) -> Queue:
    """Put a batch in front, and let go of the oldest rows."""
    missing = queue.ids.shape[1] - batch.joint_ids.shape[1]
    new = Queue(
        tokens=jax.lax.stop_gradient(tokens).astype(jnp.float32),
        ids=jnp.pad(batch.joint_ids, ((0, 0), (0, missing)), constant_values=pad),
        text_embeddings=features.text_embeddings,
        image_embeddings=features.image_embeddings,
        image_ids=batch.image_ids,
        caption_ids=batch.caption_ids,
        valid=batch.valid,
    )
    size = len(queue.valid)
    return jax.tree.map(lambda ours, old: jnp.concatenate([ours, old])[:size], new, queue)
