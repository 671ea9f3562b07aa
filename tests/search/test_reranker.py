"""`Reranker`: every method that users call, on a model trained for a few steps.

Covers search/inputs.py, search/results.py and weights/model_stamp.py.
"""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from edje_jax import ImageIndex, Reranker
from edje_jax.cli import edje
from edje_jax.config.model import to_dict
from edje_jax.data.images import BadImage, normalise, resize
from edje_jax.scenes.shapes import Shapes
from edje_jax.weights.model_stamp import params_fingerprint

TEXTS = ["a red circle left of a blue square", "two dogs", "a small striped green star"]


@pytest.fixture(scope="module")
def reranker(trained) -> Reranker:
    return Reranker.from_pretrained(trained)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    source = Shapes("val")
    return [source.image(i) for i in range(5)]


def test_numbers_that_make_no_sense_are_refused(reranker, images, tmp_path):
    tokens = reranker.encode_images(images)
    matrix = reranker.score_matrix(TEXTS, tokens, np.zeros((3, 5)))  # This model needs none
    np.testing.assert_array_equal(matrix, reranker.score_matrix(TEXTS, tokens))
    with pytest.raises(ValueError, match=r"similarities has shape \(5, 3\).*: \(3, 5\)"):
        reranker.score_matrix(TEXTS, tokens, np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"similarities has shape \(5,\).*: \(3,\)"):
        reranker.score(TEXTS, tokens[:3], np.zeros(5))
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    command = ["index", "build", str(reranker.source), str(tmp_path), "--out"]
    assert edje.main([*command, str(tmp_path / "index")]) == 0
    index = ImageIndex.open(tmp_path / "index")
    assert reranker.search(index, TEXTS[:1], top_k=0) == [[]]
    assert len(reranker.search(index, TEXTS[:1], top_k=None)[0]) == len(images)
    for wrong, told in (({"k": 0}, "k 0: the least"), ({"top_k": -1}, "top_k -1: the least")):
        with pytest.raises(ValueError, match=told):
            reranker.search(index, TEXTS, **wrong)
    with pytest.raises(ValueError, match="top_k -1: the least"):
        reranker.rank(TEXTS[0], images, top_k=-1)
    with pytest.raises(ValueError, match="queries is a single string"):
        reranker.search(index, TEXTS[0])


def test_tokens_of_images_in_any_form(reranker, images, tmp_path):
    tokens = reranker.encode_images(images)
    config = reranker.config
    assert tokens.shape == (5, config.num_tokens, config.joint_encoder.hidden_size)
    assert tokens.dtype == np.float32
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    pixels = np.stack(
        [np.asarray(normalise(resize(p, config.image), config.image)) for p in images]
    )
    for same in (
        reranker.encode_images(paths),
        reranker.encode_images([np.asarray(p) for p in images]),
        reranker.encode_images(pixel_values=pixels),
    ):
        np.testing.assert_allclose(same, tokens, rtol=0, atol=1e-5)
    for dtype in (np.float16, jnp.bfloat16):
        half = reranker.encode_images(images, dtype=dtype)
        assert half.dtype == dtype
        np.testing.assert_array_equal(half, tokens.astype(dtype))
    embeddings = reranker.embed_images(images)
    for same in (reranker.embed_images(paths), reranker.embed_images(pixel_values=pixels)):
        np.testing.assert_allclose(same, embeddings, rtol=0, atol=1e-5)


def test_embeddings_have_unit_length(reranker, images):
    for embeddings in (reranker.embed_images(images), reranker.embed_texts(TEXTS)):
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)


def test_scores_agree_with_each_other(reranker, images):
    tokens = reranker.encode_images(images)
    matrix = reranker.score_matrix(TEXTS, tokens)
    assert matrix.shape == (3, 5) and matrix.dtype == np.float32
    assert matrix.std() > 0, "the model tells pairs apart"
    pairs = reranker.score(TEXTS, tokens[:3])
    np.testing.assert_allclose(pairs, matrix[np.arange(3), np.arange(3)], rtol=0, atol=1e-5)
    logits = reranker.predict([(TEXTS[0], p) for p in images], raw_scores=True)
    np.testing.assert_allclose(logits, matrix[0], rtol=0, atol=1e-5)
    chances = reranker.predict([(TEXTS[0], p) for p in images])
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)


def test_stored_tokens_may_be_halves_and_may_be_on_the_device(reranker, images):
    tokens = reranker.encode_images(images)
    expected = reranker.score_matrix(TEXTS, tokens)
    on_device = reranker.score_matrix(TEXTS, jnp.asarray(tokens))
    np.testing.assert_allclose(on_device, expected, rtol=0, atol=1e-5)
    halves = reranker.score_matrix(TEXTS, tokens.astype(np.float16))
    assert halves.dtype == np.float32
    np.testing.assert_allclose(halves, expected, rtol=0, atol=5e-3)


def test_an_image_in_several_pairs_is_encoded_once(reranker, images, tmp_path, monkeypatch):
    images[0].save(tmp_path / "a.png")
    path, encoded = str(tmp_path / "a.png"), []
    encode = type(reranker.runtime).encode_images
    monkeypatch.setattr(
        type(reranker.runtime),
        "encode_images",
        lambda self, pixels: encoded.append(len(pixels)) or encode(self, pixels),
    )
    pairs = [
        (TEXTS[0], path), (TEXTS[1], images[1]), (TEXTS[2], path), (TEXTS[0], images[1]),
        (TEXTS[1], Path(path)),
    ]  # fmt: skip
    logits = reranker.predict(pairs, raw_scores=True)
    assert encoded == [2]
    alone = [reranker.predict([pair], raw_scores=True)[0] for pair in pairs]
    np.testing.assert_allclose(logits, alone, rtol=0, atol=1e-5)


def test_a_model_is_found_by_folder_and_by_workdir(trained, reranker):
    again = Reranker.from_pretrained(str(trained / "model"))
    assert again.config == reranker.config
    np.testing.assert_array_equal(again.embed_texts(TEXTS), reranker.embed_texts(TEXTS))


def test_parameters_are_counted_by_where_they_run(reranker):
    count = reranker.num_parameters
    params = reranker.runtime.params

    def sizes(tree):
        return [leaf.size for leaf in jax.tree.leaves(tree)]

    assert count["online"] == sum(sizes(params["joint_encoder"]))
    assert count["offline"] == sum(
        sizes(params["adapter"]) + sizes(reranker.runtime.backbone_params)
    )


def test_equal_scores_keep_their_order(reranker, images):
    ranked = reranker.rank("cat", [images[1]] * 3 + [images[0]])
    assert len(ranked) == 4
    assert [hit["corpus_id"] for hit in ranked if hit["corpus_id"] < 3] == [0, 1, 2]


def test_rank_has_the_form_of_sentence_transformers(reranker, images):
    chances = reranker.predict([(TEXTS[1], p) for p in images])
    ranked = reranker.rank(TEXTS[1], images, top_k=3)
    assert [set(hit) for hit in ranked] == [{"corpus_id", "score"}] * 3
    assert [hit["corpus_id"] for hit in ranked] == np.argsort(-chances, kind="stable")[:3].tolist()
    np.testing.assert_allclose(
        [hit["score"] for hit in ranked], np.sort(chances)[::-1][:3], atol=1e-5
    )


def test_nothing_in_nothing_out(reranker, images):
    tokens = reranker.encode_images([])
    assert tokens.shape[0] == 0
    assert reranker.score([], tokens).shape == (0,)
    assert reranker.score_matrix([], reranker.encode_images(images)).shape == (0, 5)
    assert reranker.predict([]).shape == (0,)
    assert reranker.rank("cat", []) == []
    assert reranker.embed_texts([]).shape[0] == 0


def test_long_and_strange_texts(reranker, images):
    tokens = reranker.encode_images(images[:1])
    texts = ["circle " * 2000, "", "🙂🐕", "两只狗在海滩上", "!!!", "[SEP] [MASK]"]
    scores = reranker.score_matrix(texts, tokens)
    assert scores.shape == (6, 1) and np.isfinite(scores).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r, p: r.score("cat", r.encode_images(p)), "single string"),
        (lambda r, p: r.score(["cat"], r.encode_images(p)), "1 texts for 5 images"),
        (lambda r, p: r.score_matrix(["cat"], np.zeros((2, 3, 4), np.float32)), "another one"),
        (lambda r, p: r.encode_images(pixel_values=np.zeros((1, 3, 64, 64))), "channels last"),
        (lambda r, p: r.encode_images(), "either images or pixel_values"),
        (lambda r, p: r.embed_images(p, pixel_values=np.zeros((1, 32, 32, 3))), "either images"),
        (lambda r, p: r.embed_texts("cat"), "single string"),
        (lambda r, p: r.score_matrix("cat", r.encode_images(p)), "single string"),
        (lambda r, p: r.encode_images(pixel_values=np.zeros((32, 32, 3))), "channels last"),
        (lambda r, p: r.encode_images("dogs.jpg"), "single image"),
    ],
)
def test_misuse_is_told(reranker, images, call, message):
    with pytest.raises(ValueError, match=message):
        call(reranker, images)


def test_a_missing_image_is_named(reranker):
    with pytest.raises(BadImage, match=r"nowhere\.png: no such file"):
        reranker.encode_images(["nowhere.png"])


@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_a_precision_that_there_is_not_is_refused(precision, trained):
    with pytest.raises(ValueError, match=f"precision '{precision}': give one of auto, float32, bf"):
        Reranker.from_pretrained(trained, precision=precision)


def test_an_index_made_before_there_was_a_choice_still_opens(reranker):
    """Fingerprints of older indexes were made of a config without these settings."""
    config = to_dict(reranker.config)
    assert config["joint_encoder"].pop("deferred_layers") == 0
    assert config["joint_encoder"].pop("online_vision") == "updated"
    assert config["image"].pop("icc_profile") == "ignored"
    assert config["image"].pop("transparency") == "dropped"
    assert config.pop("similarity_prior") is None
    assert config.pop("first_stage") is None
    assert config.pop("text_recipe") == "published"
    assert config.pop("captioner") is None
    assert config.pop("video") is None
    assert config["adapter"].pop("upsampling") == 1
    assert config["backbone"].pop("earlier_layers") == ()
    params = jax.device_get((reranker.runtime.params, reranker.runtime.backbone_params))
    stamp = f"{params_fingerprint(params)} {json.dumps(config, sort_keys=True)}"
    assert reranker.fingerprint == hashlib.sha256(stamp.encode()).hexdigest()[:32]


# --- what Python gives ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths(images, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("paths")
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(len(images))]


def frame(texts, paths):
    return pytest.importorskip("pandas").DataFrame({"text": texts, "path": paths})


FORMS = {
    "tuple": tuple,
    "generator": lambda values: (value for value in values),
    "dict values": lambda values: dict(enumerate(values)).values(),
    "dict keys": lambda values: dict.fromkeys(values).keys(),
    "array": np.array,
    "array of objects": lambda values: np.array(values, dtype=object),
    "series": lambda values: pytest.importorskip("pandas").Series(values),
    "map": lambda values: map(str, values),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_and_images_come_in_any_iterable(form, reranker, paths):
    given, texts = FORMS[form], [*TEXTS, "a fourth", "a fifth"]
    tokens = reranker.encode_images(paths)
    for method, expected in (
        (reranker.encode_images, tokens),
        (reranker.embed_images, reranker.embed_images(paths)),
    ):
        np.testing.assert_array_equal(method(given(paths)), expected)
    np.testing.assert_array_equal(reranker.embed_texts(given(texts)), reranker.embed_texts(texts))
    matrix = reranker.score_matrix(given(texts), tokens)
    np.testing.assert_array_equal(matrix, reranker.score_matrix(texts, tokens))
    np.testing.assert_allclose(
        reranker.score(given(texts), tokens), matrix.diagonal(), rtol=0, atol=1e-5
    )
    assert reranker.rank(texts[0], given(paths)) == reranker.rank(texts[0], paths)


@pytest.mark.parametrize(
    "given",
    [
        lambda texts, paths: zip(texts, paths, strict=True),
        lambda texts, paths: ((t, Path(p)) for t, p in zip(texts, paths, strict=True)),
        lambda texts, paths: dict(zip(texts, paths, strict=True)).items(),
        lambda texts, paths: np.array([texts, paths]).T,
        lambda texts, paths: [[t, p] for t, p in zip(texts, paths, strict=True)],
        lambda texts, paths: frame(texts, paths).itertuples(index=False),
        lambda texts, paths: frame(texts, paths).to_numpy(),
        lambda texts, paths: ((t, Path(p).read_bytes()) for t, p in zip(texts, paths, strict=True)),
        lambda texts, paths: ((t, Image.open(p)) for t, p in zip(texts, paths, strict=True)),
    ],
)
def test_pairs_come_in_any_iterable(given, reranker, paths):
    texts = [*TEXTS, "a fourth", "a fifth"]
    expected = reranker.predict(list(zip(texts, paths, strict=True)))
    assert expected.shape == (5,)
    np.testing.assert_array_equal(reranker.predict(given(texts, paths)), expected)


@pytest.mark.parametrize("form", [tuple, list, np.array])
def test_a_single_pair_is_a_single_number(form, reranker, paths):
    """As `CrossEncoder.predict` of sentence-transformers has it."""
    (expected,) = reranker.predict([(TEXTS[0], paths[0])])
    score = reranker.predict(form([TEXTS[0], paths[0]]))
    assert isinstance(score, np.float32) and score == expected
    logit = reranker.predict((TEXTS[0], Path(paths[0]).read_bytes()), raw_scores=True)
    assert 1 / (1 + np.exp(-logit)) == pytest.approx(expected)


def test_tokens_come_one_by_one_too(reranker, paths):
    tokens = reranker.encode_images(paths)
    expected = reranker.score_matrix(TEXTS, tokens)
    for given in (list(tokens), (one for one in tokens), tuple(map(jnp.asarray, tokens))):
        np.testing.assert_array_equal(reranker.score_matrix(TEXTS, given), expected)
    side = reranker.config.image.size
    pixels = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        reranker.encode_images(pixel_values=(one for one in pixels)),
        reranker.encode_images(pixel_values=pixels),
    )


@pytest.mark.parametrize("empty", [list, tuple, dict, lambda: iter(()), lambda: np.array([])])
def test_no_iterable_is_too_empty(empty, reranker, paths):
    width = reranker.config.joint_encoder.hidden_size
    assert reranker.predict(empty()).shape == (0,)
    assert reranker.rank("cat", empty()) == []
    assert reranker.encode_images(empty()).shape == (0, reranker.config.num_tokens, width)
    assert reranker.encode_images(pixel_values=empty()).shape[0] == 0
    assert reranker.embed_images(empty()).shape[0] == reranker.embed_texts(empty()).shape[0] == 0
    assert reranker.score(empty(), empty()).shape == (0,)
    assert reranker.score_matrix(empty(), reranker.encode_images(paths)).shape == (0, 5)
    assert reranker.score_matrix(["cat"], empty()).shape == (1, 0)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (
            lambda r, p: r.predict(["cat", "dog", "x"]),
            ValueError,
            "the pair is not a (text",
        ),
        (lambda r, p: r.predict(iter(["cat"])), ValueError, "pairs[0] is not a (text, image) pair"),
        (
            lambda r, p: r.predict([("cat", p), "dog"]),
            ValueError,
            "pairs[1] is not a (text",
        ),
        (lambda r, p: r.predict([(p, "cat"), (Path(p), "x")]), ValueError, "the text of pairs[1]"),
        (lambda r, p: r.predict([("cat", p), ("cat", None)]), TypeError, "the image of pairs[1]: "),
        (lambda r, p: r.predict([("cat", p), ("cat", b"x")]), BadImage, "the image of pairs[1]: "),
        (lambda r, p: r.predict(("cat", b"x")), BadImage, "the image of the pair: "),
        (lambda r, p: r.predict(7), ValueError, "pairs is of type int"),
        (lambda r, p: r.rank("cat", [p, Path(p).read_bytes()[:60]]), BadImage, "images[1]: "),
        (lambda r, p: r.rank("cat", p), ValueError, "single image; give a list"),
        (lambda r, p: r.rank("cat", Image.open(p)), ValueError, "single image; give a list"),
        (lambda r, p: r.rank(["cat"], [p]), ValueError, "text is of type list"),
        (lambda r, p: r.encode_images(Path(p)), ValueError, "single image"),
        (lambda r, p: r.embed_images(np.zeros((9, 9, 3), np.uint8)), ValueError, "single image"),
        (lambda r, p: r.embed_images(np.array(p)), ValueError, "single image"),
        (lambda r, p: r.encode_images([p, None]), TypeError, "images[1]: "),
        (lambda r, p: r.embed_texts(["cat", None]), ValueError, "texts[1] is of type NoneType"),
        (lambda r, p: r.embed_texts(np.array("cat")), ValueError, "single string"),
        (lambda r, p: r.embed_texts(b"cat"), ValueError, "texts[0] is of type int"),
        (lambda r, p: r.score(["cat"], r.encode_images([p])[0]), ValueError, "a single image's"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(call, error, told, reranker, paths):
    with pytest.raises(error) as caught:
        call(reranker, paths[0])
    assert told in str(caught.value) and "\n" not in str(caught.value)
