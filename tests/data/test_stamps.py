"""Stamps of images, read without their content, and digests of it."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edje_jax.data.sources.registry import open_source
from edje_jax.data.stamps import digest_of, file_stamp, stamp_of
from tests.real_sets import WRITERS, scenes, write_every_format

KINDS = [*WRITERS, "arrayrecord"]


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, str]:
    """{kind: SPEC} of the same scenes."""
    return write_every_format(tmp_path_factory.mktemp("sets"))


def told(spec: str) -> tuple[list[str], list[str]]:
    """(stamps, digests) of a set's images, in the order of their ids."""
    source = open_source(spec)
    rows = sorted(range(len(source)), key=source.image_id)
    return [stamp_of(source, i) for i in rows], [digest_of(source, i) for i in rows]


@pytest.mark.parametrize("kind", [*KINDS, "mixture"])
def test_stamps_change_with_the_files_and_digests_with_the_content(kind, specs, tmp_path):
    spec = f"{specs['blip']}+{specs['webdataset']}" if kind == "mixture" else specs[kind]
    stamps, digests = told(spec)
    assert (stamps, digests) == told(spec)
    assert all(stamps) and len(set(digests)) == len(scenes())
    folder = Path(spec.partition(":")[2].partition("+")[0].partition("#")[0])
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    for path in filter(Path.is_file, folder.rglob("*")):
        os.utime(path, ns=(1, path.stat().st_mtime_ns - 1_000_000_000))
    later, same = told(spec)
    assert same == digests
    part = slice(0, len(scenes())) if kind == "mixture" else slice(None)
    assert not set(stamps[part]) & set(later[part])


def test_a_drawn_image_has_a_stamp_and_a_digest_of_its_pixels():
    small, large = (open_source("shapes:val", image_size=size) for size in (64, 96))
    assert stamp_of(small, 3) == stamp_of(small, 4) != stamp_of(large, 3)
    assert len({digest_of(small, 3), digest_of(small, 4), digest_of(large, 3)}) == 3


@pytest.mark.parametrize("kind", [pa.binary(), pa.null()])
def test_rows_of_a_table_that_name_files_are_told_by_these(kind, tmp_path):
    for scene in scenes(2):
        (tmp_path / scene.file).write_bytes(scene.png)
    rows = [{"bytes": None, "path": scene.file} for scene in scenes(2)]
    images = pa.array(rows, pa.struct([("bytes", kind), ("path", pa.string())]))
    table = pa.table({"image": images, "caption": ["one", "two"]})
    pq.write_table(table, tmp_path / "a.parquet")
    spec = f"parquet:{tmp_path / 'a.parquet'}"
    stamps, digests = told(spec)
    assert stamps == ["", ""]
    (tmp_path / scenes(1)[0].file).write_bytes(scenes(2)[1].png)
    assert told(spec)[1] == [digests[1]] * 2


def test_a_file_has_size_and_time_and_a_remote_one_has_not(tmp_path):
    (tmp_path / "a").write_bytes(b"four")
    os.utime(tmp_path / "a", ns=(1, 1_700_000_000_123_456_789))
    assert file_stamp(str(tmp_path / "a")) == "4-1700000000123456789"
    assert file_stamp("gs://bucket/a") == ""
    with pytest.raises(FileNotFoundError):
        file_stamp(str(tmp_path / "b"))
