"""Inputs of callers: any iterable of texts, images or pairs is read once, to a list."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from edje_jax.config.model import EdjeConfig, ImageRecipe
from edje_jax.data.frames import ENDINGS, decode_frames
from edje_jax.data.image_reader import stack_frames
from edje_jax.data.images import BadImage, ImageLike, image_pixels
from edje_jax.types import Frames

ItemLike = ImageLike | Sequence[ImageLike]
"""Image or video: a video is a path with an ending of `data.frames.ENDINGS`, or its frames."""
T = TypeVar("T")
Pair = Sequence[Any]
"""(text, image)."""


def as_text(text: object, name: str) -> str:
    """A text, which may be one of NumPy's.

    Raises:
        ValueError: `text` is no string; the message calls it `name`.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} is of type {type(text).__name__}; give a string")
    return str(text)


def as_texts(
    texts: Iterable[Any], read: Callable[[object, str], T] = as_text, name: str = "texts"
) -> list[T]:
    """Every text of an iterable, or whatever else `read` takes with its name.

    Raises:
        ValueError: `texts`, which the message calls `name`, is a single string, no iterable, or
            holds something else.
    """
    if isinstance(texts, str) or getattr(texts, "ndim", 1) == 0:
        raise ValueError(f"{name} is a single string; give a list of them")
    return [read(text, f"{name}[{i}]") for i, text in enumerate(_items(texts, name))]


def as_pairs(pairs: Iterable[Pair] | Pair) -> tuple[list[tuple[str, ItemLike]], bool]:
    """Every (text, image) of an iterable, and whether `pairs` was one pair itself.

    As in sentence-transformers, a tuple, list or array that begins with a string is one pair.

    Raises:
        ValueError: something is not a pair, or its first element is no string.
    """
    single = isinstance(pairs, tuple | list | np.ndarray) and len(pairs) > 0
    single = single and isinstance(pairs[0], str)  # type: ignore[index]
    out = []
    for i, pair in enumerate([pairs] if single else _items(pairs, "pairs")):
        name = "the pair" if single else f"pairs[{i}]"
        if not isinstance(pair, tuple | list | np.ndarray) or len(pair) != 2:
            raise ValueError(f"{name} is not a (text, image) pair: {_shown(pair)}")
        out.append((as_text(pair[0], f"the text of {name}"), pair[1]))
    return out, single


def decode_images(
    images: Iterable[ImageLike], recipe: ImageRecipe, names: Sequence[str] = ()
) -> UInt8[np.ndarray, "n s s 3"]:
    """Every image of an iterable, decoded and resized one by one.

    Args:
        names: what messages call them; "images[0]" and so on by default.

    Raises:
        BadImage: one cannot be read; the message says which.
        ValueError: `images` is a single image, or no iterable.
        TypeError: one is of a type that images are not read from.
    """
    if is_single_image(images):
        raise ValueError("images is a single image; give a list of them")

    def read(numbered: tuple[int, ImageLike]) -> np.ndarray:
        i, image = numbered
        name = names[i] if names else f"images[{i}]"
        try:
            return image_pixels(image, recipe)
        except (BadImage, TypeError) as error:
            raise type(error)(f"{name}: {error}") from error

    shape = np.dtype((np.uint8, (recipe.size, recipe.size, 3)))
    return np.fromiter(map(read, enumerate(_items(images, "images"))), shape)


def decode_items(
    items: Iterable[ItemLike], config: EdjeConfig, names: Sequence[str] = ()
) -> UInt8[np.ndarray, "n s s 3"] | Frames:
    """Images as `decode_images` does, and where the model reads videos also these: paths of them,
    by their endings, and lists of frames in the order in which they are shown.

    Args:
        names: what messages call them; "images[0]" and so on by default.

    Raises:
        BadImage, TypeError: as for `decode_images`.
        ValueError: as for `decode_images`; a list has no frames or more than the model reads, or
            the model reads images alone.
        ImportError: videos need PyAV; the message says how to install it.
    """
    if is_single_image(items):
        raise ValueError("images is a single image; give a list of them")
    given: list[Any] = list(_items(items, "images"))
    places = [i for i, item in enumerate(given) if is_video_like(item)]
    if not places:
        return decode_images(given, config.image, names)
    names = names or [f"images[{i}]" for i in range(len(given))]
    if not config.video:
        raise ValueError(
            f"{names[places[0]]} is a video, and this model reads images; give a frame of it, or"
            " take a model of videos"
        )
    sampling, recipe, videos = config.video.sampling, config.image, set(places)
    found = []
    for i, item in enumerate(given):
        if i not in videos or isinstance(item, list | tuple):
            frames: list[Any] = list(item) if i in videos else [item]
            if not 1 <= len(frames) <= sampling.frames:
                raise ValueError(
                    f"{names[i]}: {len(frames)} frames; this model reads 1 to {sampling.frames}"
                )
            found.append(decode_images(frames, recipe, [names[i]] * len(frames)))
            continue
        try:
            found.append(decode_frames(item, sampling, recipe))
        except BadImage as error:
            raise BadImage(f"{names[i]}: {error}") from error
    return stack_frames(found, sampling.frames, recipe)


def is_video_like(item: object) -> bool:
    """Whether an item is a video's path, by its ending, or a list of frames."""
    if isinstance(item, str | os.PathLike):
        return os.fsdecode(item).lower().endswith(ENDINGS)
    return isinstance(item, list | tuple)


def as_pixels(pixel_values: Any, recipe: ImageRecipe) -> Float32[np.ndarray, "n s s 3"]:
    """Pixels of images that are normalised already, in any iterable.

    Raises:
        ValueError: they are of another shape than the recipe says.
    """
    if not hasattr(pixel_values, "shape"):
        pixel_values = list(pixel_values)
    pixel_values = np.asarray(pixel_values, np.float32)
    shape = (recipe.size, recipe.size, 3)
    if not pixel_values.size:
        pixel_values = pixel_values.reshape(0, *shape)
    if pixel_values.shape[1:] != shape:
        raise ValueError(
            f"pixel_values has shape {pixel_values.shape}; this model takes"
            f" [N, {recipe.size}, {recipe.size}, 3], channels last"
        )
    return pixel_values


def as_similarities(
    similarities: Any, shape: tuple[int, ...]
) -> Float32[np.ndarray, " pairs"] | None:
    """Cosines of pairs, one after the other; None as it is.

    Raises:
        ValueError: they are not of that shape.
    """
    if similarities is None:
        return None
    found = np.asarray(similarities, np.float32)
    if found.shape != shape:
        raise ValueError(f"similarities has shape {found.shape}; give one for each pair: {shape}")
    return found.reshape(-1)


def is_single_image(images: object) -> bool:
    """Whether this is one image rather than several."""
    if isinstance(images, np.ndarray):
        return images.ndim == 0 or (images.ndim == 3 and images.dtype == np.uint8)
    single = str | bytes | bytearray | os.PathLike | Image.Image
    return isinstance(images, single) or hasattr(images, "read")


def as_tokens(tokens: Any, shape: tuple[int, int]) -> Any:
    """The tokens of several images, [N, m, d]: an array as it is, an iterable of [m, d] stacked.

    Raises:
        ValueError: these are not images' tokens of `shape` (m, d).
    """
    if getattr(tokens, "shape", (0,)) == (0,):
        parts = [np.asarray(part) for part in _items(tokens, "tokens")]
        if len({part.shape for part in parts}) > 1:
            raise ValueError("tokens differ in shape; give those of one model")
        tokens = np.stack(parts) if parts else np.zeros((0, *shape), np.float32)
    if tokens.shape == shape:
        raise ValueError(f"tokens of {shape} are a single image's; give a list of them")
    if tokens.shape[1:] != shape:
        raise ValueError(
            f"tokens of {tokens.shape[1:]} an image; this model makes {shape}:"
            " they were encoded by another one"
        )
    return tokens


def _items(values: Iterable[Any], name: str) -> Iterable[Any]:
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} is of type {type(values).__name__}; give a list of them")
    return values


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
