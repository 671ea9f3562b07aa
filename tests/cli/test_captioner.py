"""A captioner's folder wherever a command takes a model."""

import json
from pathlib import Path

import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.cli.edje import main as edje
from edje_jax.cli.evaluate import evaluate_model
from edje_jax.cli.push import push
from edje_jax.evaluate.measure import Protocol
from edje_jax.integrations.candidates import Candidate, CandidateRanker
from edje_jax.scenes.shapes import Shapes

IMAGES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A set of captioned images in the form of BLIP."""
    folder, scenes = tmp_path_factory.mktemp("set"), Shapes("val")
    for i in range(IMAGES):
        scenes.image(i).save(folder / f"{i}.png")
    records = [
        {"image": f"{i}.png", "caption": list(scenes.captions(i))[:2]} for i in range(IMAGES)
    ]
    (folder / "set.json").write_text(json.dumps(records))
    return folder / "set.json"


@pytest.fixture(scope="module")
def index(captioner, data) -> str:
    out = str(data.parent / "index")
    arguments = [str(captioner), f"blip:{data}", "--out", out, "--token-dtype", "int4"]
    assert edje(["index", "build", *arguments]) == 0
    return out


def test_an_index_tells_its_bytes_and_answers(captioner, index, data, capsys):
    assert edje(["index", "verify", index]) == 0
    assert edje(["index", "info", index]) == 0
    config = Reranker.from_pretrained(captioner).config
    tokens, width = config.num_tokens, config.joint_encoder.hidden_size
    told = " ".join(capsys.readouterr().out.split())
    assert f"{tokens} x {width} int4, {tokens * (width // 2 + 2):,} bytes an image" in told
    assert edje(["search", index, "a red circle", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == IMAGES and all(0 <= one["score"] <= 1 for one in found)
    assert edje(["search", index, "--image", str(data.parent / "3.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["caption"]
    arguments = ["a red circle", "--not", "a blue square", "--image", str(data.parent / "3.png")]
    assert edje(["search", index, *arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == IMAGES


def test_an_evaluation_writes_its_report(captioner, data, tmp_path):
    protocol = Protocol(k=4, caption_score="mean")
    metrics = evaluate_model(str(captioner), f"blip:{data}", protocol, out=tmp_path)
    assert metrics["caption_score"] == "mean"
    assert "Where words look" in (tmp_path / "report.html").read_text()


def test_tuning_tells_the_bytes_of_each_token_dtype(captioner, data, tmp_path):
    arguments = ["--k", "4", "--token-dtypes", "int8", "int4", "--out", str(tmp_path)]
    assert edje(["tune", str(captioner), "--data", f"blip:{data}", *arguments]) == 0
    choices = json.loads((tmp_path / "tune.json").read_text())["choices"]
    config = Reranker.from_pretrained(captioner).config
    tokens, width = config.num_tokens, config.joint_encoder.hidden_size
    assert [one["bytes_per_picture"] for one in choices] == [
        tokens * (width + 2), tokens * (width // 2 + 2)
    ]  # fmt: skip


def test_the_card_calls_it_a_captioner(captioner):
    card = push(str(captioner), "me/mine", dry_run=str(captioner.parent / "card.md"))
    assert "# A captioner that reranks" in card and "forward and backward" in card
    assert "EDJE reranker" not in card


def test_candidates_of_other_libraries(captioner, index, data):
    """Tokens of an index, and of an image that comes along."""
    reranker = Reranker.from_pretrained(captioner)
    ranker = CandidateRanker(reranker, ImageIndex.open(index))
    given = [Candidate("one", None, "1.png"), Candidate("other", str(data.parent / "2.png"))]
    found = {one.place: one.logit for one in ranker.rank("a red circle", given)}
    tokens = reranker.encode_images([data.parent / "2.png"])
    assert found[1] == pytest.approx(reranker.score(["a red circle"], tokens)[0], abs=1e-4)
    assert found[0] is not None
