"""`edje push`: the card, and what is sent where. No network."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from edje_jax.cli.program import UsageError
from edje_jax.cli.push import push

METRICS = {
    "k": 10, "data": "blip:val.json", "similarity_weight": 2.5,
    "t2i": {"base": {"R@1": 12.34, "R@5": 50.0}, "reranked": {"R@1": 56.78, "R@5": 60.0}},
    "i2t": {"base": {"R@1": 1.0, "R@5": 2.0}, "reranked": {"R@1": 3.0, "R@5": 4.0}},
}  # fmt: skip


def test_the_card_says_what_where_how_and_how_well(trained, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    card = push(
        str(trained), "me/mine", str(tmp_path / "metrics.json"), dry_run=str(tmp_path / "card.md")
    )
    assert (tmp_path / "card.md").read_text() == card
    head, body = card.split("---\n", 2)[1:]
    assert "pipeline_tag: text-ranking\n" in head and "library_name: edje_jax\n" in head
    assert "base_model" not in head  # The run's backbone was a folder on this disk
    for needed in (
        'Reranker.from_pretrained("me/mine")',
        'AutoModel.from_pretrained("me/mine", trust_remote_code=True)',
        "edje convert me/mine onnx/ --to onnx",
        "On `blip:val.json`, top 10 reranked, similarity weight 2.5:",
        "| text to image, base | 12.3 | 50.0 |",
        "| text to image, reranked | 56.8 | 60.0 |",
        '"batch_size"',
    ):
        assert needed in body, needed


def test_the_card_goes_last(trained, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append(("create", name, options))
            return name

        def upload_folder(self, **options):
            sent = {p.name for p in Path(options["folder_path"]).iterdir()}
            assert {"config.json", "model.safetensors", "modeling_edje.py", "backbone"} <= sent
            calls.append(("folder", options["ignore_patterns"]))

        def upload_file(self, **options):
            calls.append(("file", options["path_in_repo"]))
            assert "pipeline_tag" in Path(options["path_or_fileobj"]).read_text()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    push(str(trained), "me/mine", private=True)
    assert calls == [
        ("create", "me/mine", {"private": True, "exist_ok": True}),
        ("folder", ["README.md", "onnx-runtime/*"]),
        ("file", "README.md"),
    ]


@pytest.mark.parametrize("name", ["mine", "a/b/c", "./mine", "/mine"])
def test_what_is_no_hub_id_is_refused(name, trained):
    with pytest.raises(UsageError, match="a hub id is OWNER/NAME"):
        push(str(trained), name)


def test_a_model_or_metrics_that_are_not_there(trained):
    with pytest.raises(FileNotFoundError):
        push("./nowhere", "me/mine")
    with pytest.raises(FileNotFoundError):
        push(str(trained), "me/mine", "./nowhere.json")
