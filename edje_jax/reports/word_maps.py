"""Words over the picture they are asked of, as tiles of the report."""

import base64
import io
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

TILES = 31
"""Words that a caption shows; captions hardly have more."""
SHADE = 0.82
"""How dark the other patches are."""


@dataclass(frozen=True, eq=False)
class WordMaps:
    """A caption's words and how each one's view is spread over the patches of a picture."""

    picture: UInt8[np.ndarray, "s s 3"]
    """As the model sees it."""
    words: list[str]
    maps: Float[np.ndarray, "w g g"]
    """A word's patches sum to 1."""


def word_card(caption: str, one: WordMaps, number: int) -> str:
    """A caption, and its picture once for each word, lit where that one looks the most.

    What all words look at is taken off: their mean is subtracted, and what is below it left dark.
    Each tile is scaled by its own maximum.
    """
    more = one.maps
    if len(more) > 1:
        more = np.maximum(more - more.mean(axis=0), 0)
    tiles = "".join(
        f'<li><div class="pic w{number}" role="img" aria-label="{escape(word)}: lit where it'
        f' looks more than others do"><i style="background-image:url({_shade(patches)})"></i></div>'
        f"<p>{escape(word)}</p></li>"
        for word, patches in list(zip(one.words, more, strict=True))[:TILES]
    )
    return (
        f'<article><header><h4>{escape(caption)}</h4></header><ol class="words">'
        f'<li><div class="pic w{number}" role="img" aria-label="The picture"></div>'
        f"<p>&nbsp;</p></li>{tiles}</ol></article>"
    )


def word_style(one: WordMaps, number: int) -> str:
    """The CSS rule that carries the picture of a card."""
    return f".w{number}{{background-image:url({_uri(Image.fromarray(one.picture), 'PNG')})}}"


def _shade(patches: Float[np.ndarray, "g g"]) -> str:
    """Black, the clearer the more a patch is worth."""
    shade = np.zeros((*patches.shape, 4), np.uint8)
    shade[..., 3] = np.round(255 * SHADE * (1 - patches / max(patches.max(), 1e-9))).astype(
        np.uint8
    )
    return _uri(Image.fromarray(shade), "PNG")


def _uri(image: Image.Image, form: str) -> str:
    data = io.BytesIO()
    image.save(data, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
