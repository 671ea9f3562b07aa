"""Gradual upsampling of a ViT's tokens to a finer grid, as Fast & Slow proposes for a CNN's maps.

The paper (arXiv 2103.16553) says that the feature map is upsampled step by step, so that the text
attends to a finer grid. It was built for the maps of a CNN; this is our reconstruction for a ViT,
whose layers all have one grid. A step doubles the side of a grid u of width w:

    f   = a up(u) + b fold(W C)          a, b >= 0, a + b = 1 (normalised as in BiFPN)
    u'  = norm(f + depthwise3x3(gelu(f)))

`up` is bilinear. C is the output of an earlier layer: of the layer two thirds of the way up to the
one that the grid comes from in the first step, and one third in the second. W gives each patch a
vector for every place of the finer grid inside it, and `fold` lays them out there: what a patch's
token knows of its own inside becomes tokens of their own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEPS: dict[int, int] = {1: 0, 2: 1, 4: 2}
"""Doublings by the factor of the side."""


class GridUpsampler(nn.Module):
    """[last map, earlier maps] of a grid of `side` -> a grid of `side` 2^steps, row by row."""

    side: int
    steps: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n k"]) -> Float[Array, "b m w"]:
        """Maps stand beside each other in the last axis: k = (1 + steps) w."""
        batch, side = len(tokens), self.side
        maps = jnp.split(tokens, 1 + self.steps, axis=-1)
        width = maps[0].shape[-1]
        grid = maps[0].reshape(batch, side, side, width)
        for step, earlier in enumerate(maps[1:], start=1):
            grid = self._double(grid, earlier.reshape(batch, side, side, width), step)
        return grid.reshape(batch, -1, width)

    def _double(
        self, grid: Float[Array, "b g g w"], earlier: Float[Array, "b s s w"], step: int
    ) -> Float[Array, "b f f w"]:
        """A grid of twice the side; `earlier` has the tower's own."""
        batch, size, _, width = grid.shape
        size, factor = 2 * size, 2**step
        folded = nn.Dense(factor * factor * width, dtype=self.dtype, name=f"lateral_{step}")(
            earlier
        )
        folded = fold(folded, factor)
        shares = self.param(f"shares_{step}", nn.initializers.ones, (2,))
        shares = nn.relu(shares) + 1e-4
        a, b = (shares / jnp.sum(shares)).astype(self.dtype)
        up = jax.image.resize(grid, (batch, size, size, width), "bilinear")
        fused = a * up + b * folded
        depthwise = nn.Conv(
            width, (3, 3), feature_group_count=width, dtype=self.dtype, name=f"depthwise_{step}"
        )
        mixed = fused + depthwise(nn.gelu(fused, approximate=False))
        return nn.LayerNorm(1e-6, dtype=self.dtype, name=f"norm_{step}")(mixed)


def fold(x: Float[Array, "b s s k"], factor: int) -> Float[Array, "b f f w"]:
    """Lay the `factor`^2 vectors of each place out as a square (depth to space)."""
    batch, side, _, channels = x.shape
    width = channels // factor**2
    x = x.reshape(batch, side, side, factor, factor, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, side * factor, side * factor, width)
