"""Words of a caption over the patches of a real image."""

import numpy as np

from edje_jax.data.images import resize
from edje_jax.evaluate.word_attention import _patch_attention, word_maps
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker


def test_a_map_for_each_word(runtime):
    image = Shapes("val", image_size=48).image(0)
    found = word_maps(runtime, image, "A large, red_square above it")
    assert found.words == ["a", "large", "red", "square", "above", "it"]
    side = runtime.config.backbone.vision.image_size // runtime.config.backbone.vision.patch_size
    assert found.maps.shape == (6, side, side)
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)), 1, atol=1e-5)
    np.testing.assert_array_equal(found.image, resize(image, runtime.config.image))


def test_a_word_of_many_pieces_is_their_mean(runtime):
    caption = "red zyxwvq square"
    words = runtime.joint_tokenizer.words(caption)
    assert [word for word, _ in words] == caption.split()
    ids = runtime.joint_tokenizer([caption])
    places = [place for _, pieces in words for place in pieces]
    # Every piece between [CLS] and [SEP] belongs to one word.
    assert places == list(range(1, int((ids != 0).sum()) - 1))
    image = Shapes("val", image_size=48).image(1)
    found = word_maps(runtime, image, caption)
    rows = _patch_attention(
        runtime.backbone, runtime.model, runtime.config.image, runtime.backbone_params,
        runtime.params, ids, found.image[None],
    )[0]  # fmt: skip
    for (_, pieces), patches in zip(words, found.maps, strict=True):
        np.testing.assert_allclose(
            patches.ravel(), np.asarray(rows)[pieces].mean(axis=0), rtol=1e-4
        )


def test_maps_are_as_fine_as_the_grid_of_the_adapter(captioner):
    runtime = Reranker.from_pretrained(captioner).runtime
    found = word_maps(runtime, Shapes("val", image_size=48).image(0), "A large red_square")
    vision = runtime.config.backbone.vision
    side = 2 * vision.image_size // vision.patch_size
    assert found.words == ["a", "large", "red", "square"]
    assert found.maps.shape == (4, side, side) and side**2 == runtime.config.num_tokens
    np.testing.assert_allclose(found.maps.sum(axis=(1, 2)), 1, atol=1e-5)
