"""Code heads without training, and embeddings that take less room."""

import numpy as np
import pytest

from edje_jax.first_stage.packing import pack, unpack
from edje_jax.first_stage.untrained import (
    UNTRAINED,
    CodeHeads,
    bytes_per_image,
    principal_directions,
    quantised,
)

WIDTH = 16


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def pairs(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images and their captions: a few strong directions, noise, and a gap between modalities."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, WIDTH)) * np.linspace(2, 0.2, WIDTH)
    gap = np.full(WIDTH, 1.5)
    noise = 0.2 * rng.standard_normal((2, count, WIDTH))
    return unit(shared + noise[0] + gap), unit(shared + noise[1] - gap)


def error(heads: CodeHeads, images: np.ndarray, texts: np.ndarray) -> float:
    projections = np.concatenate([heads.project_images(images), heads.project_texts(texts)])
    return float(np.square(np.where(projections > 0, 1, -1) - projections).sum(axis=1).mean())


def recall(heads: CodeHeads, images: np.ndarray, texts: np.ndarray) -> float:
    codes = [unpack(pack(x)) for x in (heads.project_images(images), heads.project_texts(texts))]
    products = codes[1].astype(np.int32) @ codes[0].astype(np.int32).T
    right = np.diagonal(products)
    # Expectation over the order of those that tie.
    return float(
        np.mean((products.max(axis=1) == right) / (products == right[:, None]).sum(axis=1))
    )


@pytest.mark.parametrize("name", UNTRAINED)
def test_every_head_centres_each_modality_and_finds_pairs(name):
    images, texts = pairs()
    heads = UNTRAINED[name](images, texts, WIDTH, 0)
    assert heads.kernel.shape == (WIDTH, WIDTH) and heads.kernel.dtype == np.float32
    for projected in (heads.project_images(images), heads.project_texts(texts)):
        assert projected.dtype == np.float32
        np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(
        heads.project_images(images[:3]),
        (images[:3] - images.mean(axis=0)) @ heads.kernel,
        atol=1e-6,
    )
    assert recall(heads, images, texts) > 20 / len(images)


def test_sign_is_the_sign_of_each_dimension():
    images, texts = pairs()
    heads = UNTRAINED["sign"](images, texts, WIDTH, 0)
    np.testing.assert_array_equal(heads.kernel, np.eye(WIDTH))
    np.testing.assert_array_equal(
        unpack(pack(heads.project_texts(texts))), np.where(texts - heads.text_mean > 0, 1, -1)
    )


@pytest.mark.parametrize("name", ["rotation", "itq"])
def test_kernels_are_orthogonal(name):
    images, texts = pairs()
    for bits in (8, WIDTH):
        kernel = UNTRAINED[name](images, texts, bits, 0).kernel
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(bits), atol=1e-5)


@pytest.mark.parametrize("bits", [8, WIDTH])
def test_the_quantisation_error_of_itq_is_below_that_of_rotations(bits):
    images, texts = pairs()
    itq = error(UNTRAINED["itq"](images, texts, bits, 0), images, texts)
    others = [error(UNTRAINED["rotation"](images, texts, bits, i), images, texts) for i in range(5)]
    assert itq < min(others)


def test_itq_turns_principal_directions_onto_the_corners():
    """Points near the corners of a square that is turned by 45 degrees: two bits name each."""
    rng = np.random.default_rng(0)
    corners = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    x = (corners[rng.integers(0, 4, 500)] + 0.05 * rng.standard_normal((500, 2))).astype(np.float32)
    heads = UNTRAINED["itq"](x, x, 2, 0)
    assert len(np.unique(heads.project_images(x) > 0, axis=0)) == 4
    np.testing.assert_allclose(np.abs(heads.kernel), np.sqrt(0.5), atol=0.02)
    assert error(heads, x, x) < error(UNTRAINED["sign"](x, x, 2, 0), x, x)


@pytest.mark.parametrize("name", UNTRAINED)
def test_the_seed_decides(name):
    images, texts = pairs()
    kernels = [UNTRAINED[name](images, texts, 8, seed).kernel for seed in (3, 3, 4)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.array_equal(kernels[0], kernels[2]) == (name == "sign")


@pytest.mark.parametrize("name", ["sign", "rotation", "random"])
def test_longer_kernels_begin_with_shorter_ones(name):
    images, texts = pairs()
    longer = UNTRAINED[name](images, texts, WIDTH, 0)
    shorter = UNTRAINED[name](images, texts, 8, 0)
    np.testing.assert_array_equal(longer.kernel[:, :8], shorter.kernel)


def test_too_many_bits_are_refused_with_the_most():
    images, texts = pairs(20)
    for name in ("sign", "rotation", "itq"):
        with pytest.raises(ValueError, match=f"{name} makes at most 16 bits .* not 24; random"):
            UNTRAINED[name](images, texts, 24, 0)
    assert UNTRAINED["random"](images, texts, 2048, 0).kernel.shape == (WIDTH, 2048)
    with pytest.raises(ValueError, match="at most 16 directions, not 17"):
        principal_directions(images, 17)


def test_more_bits_of_random_projections_find_more():
    images, texts = pairs()
    few, many = (recall(UNTRAINED["random"](images, texts, b, 0), images, texts) for b in (16, 512))
    assert many > few + 0.1


def test_quantised_embeddings_are_rounded_and_of_unit_length():
    images, _ = pairs()
    half = quantised(images, "float16")
    np.testing.assert_allclose(half, images, atol=2**-11)
    assert np.abs(half - images).max() > 0
    small = quantised(images, "int8")
    np.testing.assert_allclose(small, images, atol=1 / 127)
    for x in (half, small):
        assert x.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    # Whole numbers up to 127, but for the length.
    whole = small / np.abs(small).max(axis=1, keepdims=True) * 127
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-3)
    assert np.array_equal(quantised(np.zeros((1, 4), np.float32), "int8"), np.zeros((1, 4)))
    assert quantised(images[:0], "int8").shape == (0, WIDTH)


def test_principal_directions_keep_products():
    images, texts = pairs()
    directions = principal_directions(images, WIDTH)
    np.testing.assert_allclose(
        (images @ directions) @ (texts @ directions).T, images @ texts.T, atol=1e-5
    )
    moments = np.square(images @ directions).mean(axis=0)
    assert (np.diff(moments) < 0).all()
    np.testing.assert_array_equal(principal_directions(images, 3), directions[:, :3])


def test_int8_of_principal_directions_loses_less_than_of_others():
    images, texts = pairs()
    truth = images @ texts.T
    directions = principal_directions(images, WIDTH)

    def loss(chosen: np.ndarray) -> float:
        smaller = [quantised(x, "int8-pca", np.ascontiguousarray(chosen)) for x in (images, texts)]
        assert smaller[0].shape == (len(images), chosen.shape[1])
        np.testing.assert_allclose(np.linalg.norm(smaller[0], axis=1), 1, atol=1e-6)
        return float(np.abs(smaller[0] @ smaller[1].T - truth).mean())

    assert loss(directions) < 0.01
    assert loss(directions[:, :8]) < loss(directions[:, 8:])
    with pytest.raises(ValueError, match="int8-pca needs `directions`"):
        quantised(images, "int8-pca")
    with pytest.raises(ValueError, match="float16: int8-pca needs"):
        quantised(images, "float16", directions)


def test_bytes_of_an_image():
    sizes = [bytes_per_image(kind, 768) for kind in ("float32", "float16", "int8", "codes")]
    assert sizes == [3072, 1536, 770, 96]
    assert bytes_per_image("int8-pca", 64) == 66
