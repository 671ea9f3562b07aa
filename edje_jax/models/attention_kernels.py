"""Attention by fused kernels of accelerators, which keep no logits in memory."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from edje_jax.models.attention_plain import AttentionCall, blocks

LANES, SUBLANES = 128, 8
"""Columns and rows of a TPU's float32 register."""
FLASH_KEYS, FLASH_QUERIES = 2048, 640
"""Most keys of a sequence, and most queries of a block: their float32 logits stay in the fast
memory of a TPU's core, of which programs get 16 MB."""


def refuse_cudnn(call: AttentionCall) -> str | None:
    """Reason why cuDNN's attention cannot compute a call (limits of
    `jax.nn.dot_product_attention`)."""
    if call.platform != "gpu":
        return f"needs an NVIDIA GPU, not a {call.platform}"
    capability = str(getattr(jax.devices()[0], "compute_capability", "8.0"))
    if not capability.replace(".", "").isdigit() or float(capability) < 8.0:
        return f"needs a GPU of compute capability 8.0, and this one has {capability}"
    if call.dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes bfloat16 and float16, not {call.dtype}"
    if call.head_width % 8 or call.head_width > 128:
        return f"takes heads of a multiple of 8 up to 128, not of {call.head_width}"
    if call.drops:
        return "takes no dropout"
    if call.masked and not call.padding:
        return "takes no mask but one of padding behind"
    return None


def cudnn(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "b k"] | None,
    dropout: float,
    rng: Array | None,
    causal: bool,
) -> Float[Array, "b q h d"]:
    """cuDNN's flash attention, which XLA partitions by itself; a mask is one of padding behind."""
    # A row that hides every key is nobody's, but must not become NaN.
    lengths = None if mask is None else jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)
    return _cudnn(causal, query, key, value, lengths)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cudnn(
    causal: bool,
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    lengths: Int32[Array, " b"] | None,
) -> Float[Array, "b q h d"]:
    """The first `lengths` keys of each row; all of them without."""
    return jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, is_causal=causal, implementation="cudnn"
    )


def _cudnn_forward(causal, query, key, value, lengths):
    """A row more where a length is odd, as JAX passes on gradients of even lengths alone."""
    queries, keys = query.shape[1], key.shape[1]
    if lengths is None and keys % 2:
        lengths = jnp.full(len(key), keys, jnp.int32)

    def even(x: Float[Array, "b n h d"]) -> Float[Array, "b m h d"]:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    def compute(*parts: Array) -> Array:
        padded = (even(part) for part in parts)
        out = jax.nn.dot_product_attention(
            *padded, key_value_seq_lengths=lengths, is_causal=causal, implementation="cudnn"
        )
        return out[:, :queries]

    return jax.vjp(compute, query, key, value)


def _cudnn_backward(causal, backward, gradient):
    return (*backward(gradient), None)


_cudnn.defvjp(_cudnn_forward, _cudnn_backward)


def refuse_flash(call: AttentionCall) -> str | None:
    """Reason why the TPU's kernel cannot compute a call."""
    if call.platform != "tpu":
        return f"needs a TPU, not a {call.platform}"
    if call.drops:
        return "takes no dropout"
    if call.keys > FLASH_KEYS:
        return f"takes {FLASH_KEYS} keys at most, not {call.keys}"
    devices = _mesh_devices()
    if call.rows % devices:
        return f"{call.rows} rows cannot be cut evenly over the {devices} devices of the mesh"
    return None


def flash(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "b k"] | None,
    dropout: float,
    rng: Array | None,
    causal: bool,
) -> Float[Array, "b q h d"]:
    """JAX's Pallas kernel of flash attention, the whole sequence of keys at a time.

    XLA cannot partition a kernel. Where a mesh is in use (`jax.sharding.use_abstract_mesh`), every
    device runs it on its own rows.
    """
    run = partial(_flash, causal)
    if _mesh_devices() == 1:
        return run(query, key, value, mask)
    mesh = jax.sharding.get_abstract_mesh()
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(
        query, key, value, mask
    )


def _mesh_devices() -> int:
    """Devices of the mesh in use; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(
    causal: bool,
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "b k"] | None,
) -> Float[Array, "b q h d"]:
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    length, width = query.shape[1], query.shape[-1]
    if mask is not None:  # The kernel compares segments in whole registers.
        behind = -key.shape[1] % LANES
        key, value = (jnp.pad(x, ((0, 0), (0, behind), (0, 0), (0, 0))) for x in (key, value))
        visible = jnp.pad(mask, ((0, 0), (0, behind))).astype(jnp.int32)
        segments = kernel.SegmentIds(jnp.ones((len(query), length), jnp.int32), visible)
    else:
        segments = None
    count = -(-length // FLASH_QUERIES)
    block = length if count == 1 else -(-length // (count * SUBLANES)) * SUBLANES
    keys = key.shape[1]
    out = kernel.flash_attention(
        *(x.swapaxes(1, 2) for x in (query, key, value)),
        segment_ids=segments,
        causal=causal,
        sm_scale=width**-0.5,
        block_sizes=kernel.BlockSizes(block, keys, keys, 1),
    )
    return out.swapaxes(1, 2)


def _flash_forward(causal, query, key, value, mask):
    return _flash(causal, query, key, value, mask), (query, key, value, mask)


def _flash_backward(causal, saved, gradient):
    """Gradient through `blocks`, which computes everything again."""
    query, key, value, mask = saved

    def again(query: Array, key: Array, value: Array) -> Array:
        return blocks(query, key, value, mask, 0.0, None, causal)

    return (*jax.vjp(again, query, key, value)[1](gradient), None)


_flash.defvjp(_flash_forward, _flash_backward)
