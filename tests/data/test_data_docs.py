"""Commands of docs/guide/data.md, run on small sets of the names that it uses."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tyro

from edje_jax.cli.edje import main
from edje_jax.cli.named_configs import choose_config
from edje_jax.data.sources.registry import KINDS, open_source
from edje_jax.training.assemble import open_sets
from tests.real_sets import WRITERS, scenes
from tests.videos import write_video

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guide" / "data.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


@pytest.fixture
def sets(tmp_path, monkeypatch) -> Path:
    """The current folder, with every set that the page names but the one it makes."""
    made = scenes()
    for kind, name in (
        ("blip", "."), ("karpathy", "k"), ("tfds", "tfds"), ("webdataset", "cc3m"),
        ("parquet", "flickr30k"),
    ):  # fmt: skip
        folder = tmp_path / name if name != "." else tmp_path / "pictures"
        WRITERS[kind](folder, made)
    (tmp_path / "pictures" / "all.json").rename(tmp_path / "pictures" / "train.json")
    for path in [*(tmp_path / "pictures").iterdir(), *(tmp_path / "k").iterdir()]:
        path.rename(tmp_path / path.name)
    (tmp_path / made[0].file).rename(tmp_path / "pictures" / "0.png")
    (tmp_path / made[0].file).write_bytes(made[0].png)
    write_videos(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write_videos(folder: Path) -> None:
    """A video, and a list of it in each form."""
    write_video(folder / "videos" / "v0.mkv", "mjpeg", frames=4)
    lists = {
        "MSRVTT_data": {
            "videos": [{"video_id": "v0", "split": "test"}],
            "sentences": [{"video_id": "v0", "caption": "it is grey"}],
        },
        "vatex_validation": [{"videoID": "v0", "enCap": ["it is grey"]}],
        "test_data": [{"video": "v0.avi", "description": "it is grey"}],
        "val_1": {"v0": {"sentences": ["it is grey"]}},
    }
    for name, value in lists.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def test_the_page_is_read():
    assert len(COMMANDS) >= 8 and all(line.startswith(("edje ", "python ")) for line in COMMANDS)


def test_every_command_works_in_the_order_of_the_page(sets, capsys):
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        if program == "edje":
            assert main(arguments) == 0
            continue
        # Parsed, and the sets opened; training itself is tested elsewhere.
        assert arguments[0] == "train.py"
        _, default = choose_config(arguments[1:], "")
        config = tyro.cli(type(default), default=default, args=arguments[2:])
        train, _ = open_sets(config.data)
        # The one image that the first "test" shares with the others is left out.
        assert len(train) >= 24 - bool(config.data.exclude)
        assert (len(train) == 23) == bool(config.data.exclude)
    assert (sets / "cc3m.png").exists() and (sets / "packed").is_dir()


def test_every_spec_of_the_table_opens(sets):
    specs = re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)
    assert {spec.partition(":")[0] for spec in specs} == set(KINDS)
    assert main(["data", "pack", "blip:train.json", "--out", "packed"]) == 0
    for spec in specs:
        source = open_source(spec)
        assert source.image(0).mode == "RGB"
        assert bool(source.captions(0)) == (not spec.startswith(("folder:", "video:")))
