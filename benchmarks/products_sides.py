"""Parts of a train step, one by one, in JAX and in PyTorch: workers of `products.py`.

Each part is (arrays, function of them), in either library; "both" is forward and backward.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from side_workers import Side, Spec, answer_requests

ROWS, LENGTH, HEADS, HEAD = 48, 97, 12, 32
"""Pairs of a step of 16 images (the right one, and a wrong one each way), their rows, the heads and
their width."""
WIDTH, INNER, WORDS, MASKED = HEADS * HEAD, 4 * HEADS * HEAD, 30_522, 80

DENSE = {
    "query, key or value": (ROWS * LENGTH, WIDTH, WIDTH),
    "first of the MLP": (ROWS * LENGTH, WIDTH, INNER),
    "second of the MLP": (ROWS * LENGTH, INNER, WIDTH),
    "vocabulary": (MASKED, WIDTH, WORDS),
}
"""Products x W: rows of x, columns of x, columns of W."""
PARTS = (
    *(f"{name}: {way}" for name in DENSE for way in ("x W", "dx", "dW")),
    *(f"{name}: {way}" for name in ("attention", "norm", "gelu") for way in ("forward", "both")),
    "AdamW",
)
"""Parts that are timed."""

Part = tuple[list[np.ndarray], Callable[..., Any]]


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Random float32."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def flops(part: str) -> float:
    """Multiplications and additions of a product of `DENSE`; 0 of any other part."""
    rows, columns, out = DENSE.get(part.split(":")[0], (0, 0, 0))
    return 2.0 * rows * columns * out


def dense(part: str) -> tuple[list[np.ndarray], str]:
    """Arrays of a product, and its einsum."""
    name, way = part.split(": ")
    rows, columns, out = DENSE[name]
    x, kernel, change = (rows, columns), (columns, out), (rows, out)
    return {
        "x W": (arrays(x, kernel), "ri,io->ro"),
        "dx": (arrays(change, kernel), "ro,io->ri"),
        "dW": (arrays(x, change), "ri,ro->io"),
    }[way]


def in_jax(part: str) -> Part:
    """A part as the train step has it, but for kernels' gradients (`models.affine`)."""
    import jax
    import jax.numpy as jnp
    import optax

    from edje_jax.models.attention import attend
    from edje_jax.models.layers import ACTIVATIONS

    if part.split(":")[0] in DENSE:
        given, sums = dense(part)
        return given, lambda *x: jnp.einsum(sums, *x)
    if part == "AdamW":
        optimiser = optax.adamw(1e-4, weight_decay=0.05)

        def update(weights: Any, gradient: Any, mean: Any, variance: Any) -> Any:
            state = optimiser.init(weights)
            state = (state[0]._replace(mu=mean, nu=variance), *state[1:])
            changes, state = optimiser.update(gradient, state, weights)
            return optax.apply_updates(weights, changes), state

        return [*arrays(*[(WORDS, WIDTH)] * 3), np.ones((WORDS, WIDTH), np.float32)], update
    name, way = part.split(": ")

    def norm(x: Any, scale: Any, bias: Any) -> Any:
        centred = x - jnp.mean(x, -1, keepdims=True)
        deviation = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-12)
        return centred * deviation * scale[None, None] + bias[None, None]

    given, forward = {
        "attention": (arrays(*[(ROWS, LENGTH, HEADS, HEAD)] * 3), attend),
        "norm": (arrays((ROWS, LENGTH, WIDTH), (WIDTH,), (WIDTH,)), norm),
        "gelu": (arrays((ROWS, LENGTH, INNER)), ACTIVATIONS["gelu"]),
    }[name]
    if way == "forward":
        return given, forward
    (change,) = arrays(given[0].shape)
    both = jax.grad(lambda *x: jnp.vdot(forward(*x), change), tuple(range(len(given))))
    return given, both


def in_torch(part: str) -> Part:
    """A part as PyTorch's good step has it (`train_step.py`)."""
    import torch
    import torch.nn.functional as F

    if part.split(":")[0] in DENSE:
        (left, right), sums = dense(part)
        # Kernels lie as torch's linear layers have them, [out, in].
        turned = {"x W": lambda x, w: x @ w.T, "dx": lambda g, w: g @ w, "dW": lambda x, g: g.T @ x}
        kernel = right if sums == "ri,ro->io" else np.ascontiguousarray(right.T)
        return [left, kernel], turned[part.split(": ")[1]]
    if part == "AdamW":
        weights, gradient = arrays(*[(WORDS, WIDTH)] * 2)
        tensor = torch.tensor(weights)
        tensor.grad = torch.tensor(gradient)
        optimiser = torch.optim.AdamW([tensor], lr=1e-4, weight_decay=0.05)
        return [], lambda: optimiser.step()
    name, way = part.split(": ")
    heads, norm = (ROWS, HEADS, LENGTH, HEAD), ((ROWS, LENGTH, WIDTH), (WIDTH,), (WIDTH,))
    given, forward = {
        "attention": (arrays(*[heads] * 3), F.scaled_dot_product_attention),
        "norm": (arrays(*norm), lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b, 1e-12)),
        "gelu": (arrays((ROWS, LENGTH, INNER)), F.gelu),
    }[name]
    if way == "forward":
        return given, forward
    change = torch.tensor(arrays(given[0].shape)[0])

    def both(*leaves: Any) -> Any:
        leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
        return torch.autograd.grad(forward(*leaves), leaves, change)

    return given, both


def serve(text: str) -> None:
    """Serve `products.py`; its settings name the library."""
    library = json.loads(text)["library"]

    def ready(part: str) -> Callable[[], Any]:
        """The part on its arrays, waiting for its results."""
        if library == "jax":
            import jax

            given, function = in_jax(part)
            compiled, put = jax.jit(function), jax.device_put(given)
            return lambda: jax.block_until_ready(compiled(*put))
        import torch

        given, function = in_torch(part)
        tensors = [torch.tensor(array) for array in given]
        with_gradient = part.endswith("both")

        def run() -> Any:
            with torch.set_grad_enabled(with_gradient):
                return function(*tensors)

        return run

    if library == "jax":
        import jax

        from edje_jax.system.allocator import keep_freed_memory

        keep_freed_memory()  # As the programs do
        about = {"jax": jax.__version__}
    else:
        import torch

        about = {"torch": torch.__version__}

    def build(spec: Spec) -> Side:
        return Side({part: ready(part) for part in PARTS}, about)

    answer_requests(build, lambda spec: 0.0, about)
