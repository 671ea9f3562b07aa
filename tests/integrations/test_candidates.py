"""Images in every form that libraries hand over, ranked as the model ranks them."""

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.data.images import BadImage
from edje_jax.index.shard_files import BadStore
from edje_jax.integrations.candidates import Candidate, CandidateRanker, read_image
from edje_jax.search.reranker import Reranker

URL = "https://example.org/a.png"


def given(images) -> list[Candidate]:
    return [Candidate(f"documents[{i}]", image) for i, image in enumerate(images)]


def stored(ids) -> list[Candidate]:
    return [Candidate(f"documents[{i}]", None, id) for i, id in enumerate(ids)]


def of_base64(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


FORMS = {
    "path": str,
    "Path": Path,
    "bytes": lambda path: Path(path).read_bytes(),
    "PIL": Image.open,
    "array": lambda path: np.array(Image.open(path).convert("RGB")),
    "base64": of_base64,
    "data: URI": lambda path: f"data:image/png;base64,{of_base64(path)}",
    "open file": lambda path: io.BytesIO(Path(path).read_bytes()),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_the_same_in_every_form(shipped, photos, form):
    recipe = shipped.config.image
    np.testing.assert_array_equal(
        read_image(FORMS[form](photos[0]), recipe), read_image(photos[0], recipe)
    )


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (None, "no image"),
        (URL, f"{URL}: addresses are not fetched; download the image first"),
        ("s3://bucket/a.png", "addresses are not fetched"),
        ("photos/none.png", "photos/none.png: no such file, and no base64 of an image"),
        ("A" * 1000, r"A{77}\.\.\.: no such file"),
        ("data:image/png,abc", "data:image/png,abc: no such file, and no base64"),
        ("data:image/png;base64,aGVsbG8gd29ybGQ=", "not an image in a known format"),
        (b"", "the file is empty"),
        (b"hello world", "not an image in a known format"),
        (17, "cannot read an image from int"),
    ],
)
def test_what_is_no_image_says_why(shipped, image, told):
    with pytest.raises(BadImage, match=told):
        read_image(image, shipped.config.image)


def test_candidates_are_ranked_as_the_model_ranks_images(shipped, photos, query, expected):
    ranked = CandidateRanker(shipped).rank(query, given(photos))
    assert [photos[one.place] for one in ranked] == [path for path, _ in expected]
    np.testing.assert_allclose([one.score for one in ranked], [s for _, s in expected], atol=1e-6)
    logits = shipped.predict([(query, photos[one.place]) for one in ranked], raw_scores=True)
    np.testing.assert_allclose([one.logit for one in ranked], logits, atol=1e-5)
    assert CandidateRanker(shipped).rank(query, given(photos), 2) == ranked[:2]
    assert CandidateRanker(shipped).rank(query, []) == []
    with pytest.raises(ValueError, match="top_k=0; give a number from 1 on"):
        CandidateRanker(shipped).rank(query, given(photos), 0)


def test_the_cosine_counts_as_the_model_was_tuned(photos, query, photo_index):
    tuned = Reranker.from_pretrained("shapes-demo", precision="float32")
    tuned.calibration = dataclasses.replace(tuned.calibration, similarity_weight=7.0)
    scores = tuned.predict([(query, path) for path in photos])
    ids = [Path(path).name for path in photos]
    for index, candidates in ((None, given(photos)), (photo_index, stored(ids))):
        ranked = CandidateRanker(tuned, index).rank(query, candidates)
        assert [one.place for one in ranked] == np.argsort(-scores).tolist()
        found = [one.score for one in sorted(ranked)]
        np.testing.assert_allclose(found, scores, atol=1e-2)


def test_images_of_the_index_are_not_read_again(shipped, photos, query, photo_index, monkeypatch):
    """Tolerance is that of tokens kept as bfloat16."""
    ids = [Path(path).name for path in photos]
    expected = [one[:1] for one in CandidateRanker(shipped).rank(query, given(photos))]
    ranker = CandidateRanker(shipped, photo_index)
    # Candidates of the index and others are scored together.
    both = [Candidate("", photos[0]), Candidate("", None, ids[1]), Candidate("", photos[2], "new")]
    both.append(Candidate("", "gone.png", ids[3]))
    ranked = ranker.rank(query, both)
    assert [one[:1] for one in ranked] == expected

    def fail(*_):
        raise AssertionError("an image is encoded")

    monkeypatch.setattr(type(shipped.runtime), "encode_images", fail)
    again = ranker.rank(query, stored(ids))
    assert [one[:1] for one in again] == expected
    np.testing.assert_allclose(
        [one.score for one in again], [one.score for one in ranked], atol=1e-2
    )


def test_an_index_of_another_model_is_refused(photo_index):
    other = Reranker.from_pretrained("shapes-demo")
    other.fingerprint = "0" * 32
    with pytest.raises(BadStore, match="built with another model"):
        CandidateRanker(other, photo_index)


def test_equal_scores_keep_the_order_given(shipped, photos, query, monkeypatch):
    monkeypatch.setattr(
        CandidateRanker, "_score", lambda self, query, tokens, *_: (np.zeros(len(tokens)),) * 2
    )
    ranked = CandidateRanker(shipped).rank(query, given(photos))
    assert [one.place for one in ranked] == list(range(len(photos)))


def test_one_document_without_an_image_is_one(shipped, photos, query, caplog):
    candidates = given([None, photos[0], URL, photos[3], photos[0]])
    with pytest.raises(BadImage) as error:
        CandidateRanker(shipped).rank(query, candidates)
    told = str(error.value)
    assert told.startswith(f"documents[0]: no image; documents[2]: {URL}: addresses are not")
    assert told.endswith("(without_image='last' or 'drop' goes on without)")
    for choice, behind in (("last", [0, 2]), ("drop", [])):
        ranked = CandidateRanker(shipped, without_image=choice).rank(query, candidates)
        places = [one.place for one in ranked]
        # The same image at two places of a batch is rounded differently on some CPUs.
        assert places in ([3, 1, 4, *behind], [3, 4, 1, *behind])
        assert ranked[1].score == pytest.approx(ranked[2].score, abs=1e-5)
        assert all(one.score is None and one.logit is None for one in ranked[3:])
        assert f"2 documents not ranked ({choice}): documents[0]: no image" in caplog.text
        none = CandidateRanker(shipped, without_image=choice).rank(query, candidates[:1])
        assert [one.place for one in none] == behind[:1]
    with pytest.raises(ValueError, match="without_image='skip'; give error, last or drop"):
        CandidateRanker(shipped, without_image="skip")  # type: ignore[arg-type]
