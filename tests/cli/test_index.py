"""`edje index` and `edje search` as users type them.

Covers cli/commands/index.py, cli/first_stage_options.py and cli/search.py.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edje_jax.cli.edje import main
from edje_jax.cli.index import share_of
from edje_jax.cli.program import UsageError
from edje_jax.data.images import BadImage
from edje_jax.index.store import BadStore, Store
from edje_jax.scenes.shapes import Shapes
from tests.videos import write_video

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    source = Shapes("val")
    for i in range(9):
        source.image(i).save(folder / ("more" if i % 2 else ".") / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def index(trained, images, tmp_path_factory) -> Path:
    """Index of a folder without captions; to be read only."""
    out = tmp_path_factory.mktemp("index") / "made" / "index"
    main(["index", "build", str(trained), str(images), "--out", str(out)])
    return out


def test_a_folder_becomes_an_index_that_answers(index, images, capsys):
    main(["search", str(index), "a red circle", "--top", "3", "--json"])
    told = capsys.readouterr().out
    results = json.loads(told)
    assert told.count("\n") == 1 and len(results) == 3
    for result in results:
        assert result.keys() == {"id", "score", "similarity", "base_rank"}
        assert (images / result["id"]).exists()
    main(["search", str(index), "a red circle", "--top", "3"])
    table = capsys.readouterr().out
    assert all(result["id"] in table for result in results)


def test_a_folder_of_videos_becomes_an_index_that_tells_moments(
    video_model, tmp_path, capsys, caplog
):
    write_video(tmp_path / "films" / "a.mp4")
    write_video(tmp_path / "films" / "b.mkv", "mjpeg")
    (tmp_path / "films" / "empty.mkv").write_bytes(b"")
    index = str(tmp_path / "index")
    caplog.set_level(logging.INFO, "edje_jax")
    main(["index", "build", str(video_model), f"video:{tmp_path}/films", "--out", index])
    assert "2 videos (2 new," in caplog.text and "1 bad)" in caplog.text
    assert "empty.mkv" in (tmp_path / "index" / "rejected.csv").read_text()
    main(["search", index, "a red circle", "--json"])
    results = json.loads(capsys.readouterr().out)
    assert {result["id"] for result in results} == {"a.mp4", "b.mkv"}
    assert all(0 <= result["moment"] <= 2 for result in results)
    main(["search", index, "a red circle"])
    table = capsys.readouterr().out
    assert "video" in table and "moment" in table and "0:0" in table


def test_info_and_verify_and_remove(index, capsys, tmp_path):
    main(["index", "info", str(index)])
    told = capsys.readouterr().out
    assert "bytes an image" in told and "rejected" in told
    main(["index", "verify", str(index)])
    assert "files are as they were written" in capsys.readouterr().out
    assert (index / "rejected.csv").read_text().splitlines()[1].startswith("broken.jpg,")
    with pytest.raises(UsageError, match="which images"):
        main(["index", "remove", str(index)])


def test_a_first_stage_is_built_from_what_is_stored(trained, images, tmp_path, caplog):
    out = tmp_path / "index"
    args = ["index", "build", str(trained), str(images), "--out", str(out)]
    main([*args, "--first-stage", "faiss-flat"])
    kept = out / "first-stage" / "faiss-flat" / "embeddings"
    assert (kept / "stamp.json").exists()
    main(["index", "first-stage", str(out), "faiss-hnsw"])
    assert (out / "first-stage" / "faiss-hnsw" / "embeddings" / "stamp.json").exists()
    with caplog.at_level("INFO"):
        main(["index", "first-stage", str(out), "exact"])
    assert "exact is built at every opening" in caplog.text
    with pytest.raises(BadStore, match=r"no codes in this index.*edje train first_stage"):
        main(["index", "first-stage", str(out), "codes"])
    with pytest.raises(ValueError, match="--bits 64: the first stage 'exact' reads embeddings"):
        main(["index", "first-stage", str(out), "exact", "--bits", "64"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--first-stage", "codes"], "first stage codes: the model has no codes; train heads"),
        (["--first-stage", "exact", "--bits", "8"], "first stage exact-8: exact compares no codes"),
        (["--bits", "8"], "--bits 8: goes with a --first-stage of codes"),
    ],
)
def test_a_first_stage_that_cannot_be_built_is_told_before_the_work(
    trained, images, tmp_path, arguments, message
):
    out = tmp_path / "index"
    with pytest.raises(UsageError, match=message):
        main(["index", "build", str(trained), str(images), "--out", str(out), *arguments])
    assert not out.exists()


def test_brackets_in_names_are_no_markup(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    images, out = tmp_path / "[of] [" / "2020]", tmp_path / "index[1]"
    images.mkdir(parents=True)
    Shapes("val").image(0).save(images / "[red].png")
    main(["index", "build", str(trained), str(images), "--out", str(out)])
    main(["index", "info", str(out)])
    assert "[of] [/2020]" in capsys.readouterr().out
    main(["search", str(out), "a red circle"])
    assert "[red].png" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "40")
    main(["index", "remove", str(out), "[red].png"])
    told = capsys.readouterr().out
    assert told == f"1 removed; `edje index compact {out}` gives their room back\n"


def test_flipped_byte_fails_verification(trained, images, tmp_path):
    out = tmp_path / "index"
    main(["index", "build", str(trained), str(images), "--out", str(out)])
    path = out / "tokens-00000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadStore, match=r"1 damaged[\s\S]*tokens-00000.npy: not what was written"):
        main(["index", "verify", str(out)])


def test_captions_answer_an_image(trained, images, tmp_path, capsys):
    records = [
        {"image": f"{'more/' if i % 2 else ''}{i}.png", "caption": [f"image number {i}"]}
        for i in range(9)
    ]
    (images / "set.json").write_text(json.dumps(records))
    out, spec = tmp_path / "index", f"blip:{images / 'set.json'}"
    main(["index", "build", str(trained), spec, "--out", str(out), "--token-dtype", "int8"])
    capsys.readouterr()
    main(["search", str(out), "--image", str(images / "0.png"), "--top", "2", "--json"])
    results = json.loads(capsys.readouterr().out)
    assert [set(result) for result in results] == [
        {"id", "caption", "score", "similarity", "base_rank"}
    ] * 2
    main(["search", str(out), "--image", str(images / "0.png"), "--top", "2"])
    assert results[0]["caption"] in capsys.readouterr().out


def test_wrong_usage_says_what_is_right(index, trained, images, tmp_path):
    for arguments, message in (
        (["search", str(index)], "give a query"),
        (["search", str(index), "dogs", "--k", "0"], "both count from 1"),
    ):
        with pytest.raises(UsageError, match=message):
            main(arguments)
    for shard in ("2/2", "a/b", "1", "-1/2"):
        with pytest.raises(UsageError, match="write i/n with i from 0"):
            share_of(shard)
    with pytest.raises(BadImage, match=r"nothing\.jpg: no such file"):
        main(["search", str(index), "--image", "nothing.jpg"])
    with pytest.raises(FileNotFoundError, match="nothing"):
        main(["search", str(index), "dogs", "--model", str(tmp_path / "nothing")])


def test_a_share_is_told_or_taken_from_the_cluster(monkeypatch):
    assert share_of("1/4") == (1, 4) and share_of("") == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert share_of("") == (2, 8) and share_of("0/4") == (0, 4)


@pytest.mark.extra
def test_kill_9_loses_nothing(trained, tmp_path):
    """A process that is killed again and again ends with the index of one that was not."""
    command = [
        sys.executable, "-c",
        "import sys; from edje_jax.index import build; build.SHARD_ROWS = 20;"
        "from edje_jax.cli.edje import main; main(sys.argv[1:])",
        "index", "build", str(trained), "shapes:val", "--out",
    ]  # fmt: skip
    straight, killed = tmp_path / "straight", tmp_path / "killed"

    def start(out: Path) -> subprocess.Popen:
        return subprocess.Popen([*command, str(out)], cwd=ROOT, env={**os.environ})

    assert start(straight).wait(timeout=300) == 0
    kills = 0
    for shards in (1, 3, 10, 20):
        process = start(killed)
        while len(list(killed.glob("tokens-*.npy*"))) < shards and process.poll() is None:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(timeout=60)
    assert kills >= 3, "the build was too quick to be killed"
    assert start(killed).wait(timeout=300) == 0
    names = sorted(path.name for path in straight.iterdir())
    assert sorted(path.name for path in killed.iterdir() if path.suffix != ".tmp") == names
    for name in names:
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name
    assert len(Store(killed)) == len(Shapes("val"))
