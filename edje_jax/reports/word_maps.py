"""Attention maps of words over an image, as tiles of the report."""

import base64
import io
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

TILES = 31
"""Words of a caption that are shown; captions hardly have more."""
SHADE = 0.82
"""Opacity of the black over patches that a word does not look at."""


@dataclass(frozen=True, eq=False)
class WordMaps:
    """Words of a caption, with the attention of each over the patches of an image."""

    image: UInt8[np.ndarray, "s s 3"]
    """Pixels as the model sees them."""
    words: list[str]
    maps: Float[np.ndarray, "w g g"]
    """Attention of each word to the patches, which sums to 1."""


def word_card(caption: str, one: WordMaps, number: int) -> str:
    """Card of a caption with its image once for each word, lit where the word looks the most.

    The mean over all words is subtracted, and patches below it are left dark. Each tile is scaled
    by its own maximum.
    """
    maps = one.maps
    if len(maps) > 1:
        maps = np.maximum(maps - maps.mean(axis=0), 0)
    tiles = "".join(
        f'<li><div class="pic w{number}" role="img" aria-label="{escape(word)}: lit where it'
        f' looks more than others do"><i style="background-image:url({_shade(patches)})"></i></div>'
        f"<p>{escape(word)}</p></li>"
        for word, patches in list(zip(one.words, maps, strict=True))[:TILES]
    )
    return (
        f'<article><header><h4>{escape(caption)}</h4></header><ol class="words">'
        f'<li><div class="pic w{number}" role="img" aria-label="The image"></div>'
        f"<p>&nbsp;</p></li>{tiles}</ol></article>"
    )


def word_style(one: WordMaps, number: int) -> str:
    """CSS rule that carries the image of a card."""
    return f".w{number}{{background-image:url({_uri(Image.fromarray(one.image))})}}"


def _shade(patches: Float[np.ndarray, "g g"]) -> str:
    """Data URI of a black mask, the clearer the higher a patch is."""
    shade = np.zeros((*patches.shape, 4), np.uint8)
    shade[..., 3] = np.round(255 * SHADE * (1 - patches / max(patches.max(), 1e-9))).astype(
        np.uint8
    )
    return _uri(Image.fromarray(shade))


def _uri(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
