"""From images to answers: build, look after, open and search an index.

Covers index/build.py, index/image_index.py, index/maintain.py, index/shard_content.py and
index/store.py.
"""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from edje_jax import ImageIndex, Reranker
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.data.sources.folder import Folder
from edje_jax.first_stage.registry import FIRST_STAGES, find_first_stage
from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.image_index import TokensOn
from edje_jax.index.maintain import compact, remove
from edje_jax.index.shard_content import RecordDecoder
from edje_jax.index.store import BadStore, Store, verify
from edje_jax.models.token_formats import FORMATS, TokenFormat, unpack
from edje_jax.scenes.shapes import Shapes
from edje_jax.types import Source

IMAGES = 23
TEXTS = ["a red circle left of a blue square", "green", "a small striped green star and a ring"]


@pytest.fixture(scope="module")
def reranker(trained) -> Reranker:
    return Reranker.from_pretrained(trained)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 5)
    monkeypatch.setattr(building, "BATCH", 2)


def write_set(folder: Path, images: int = IMAGES, bad: tuple[int, ...] = ()) -> Source:
    """A BLIP-style set of shapes, one image of which is named by two entries."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes, records = Shapes("val"), []
    for i in range(images):
        shapes.image(i).save(folder / f"{i:03d}.png")
        if i in bad:
            (folder / f"{i:03d}.png").write_bytes(b"no image")
        records.append({"image": f"{i:03d}.png", "caption": list(shapes.captions(i))[: i % 3]})
    records.append({"image": "003.png", "caption": ["the fourth, once more"]})
    records = [record for record in records if record["caption"]]
    (folder / "set.json").write_text(json.dumps(records))
    return BlipJson(str(folder / "set.json"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(reranker, tmp_path_factory) -> tuple[Source, Path]:
    """An index of shards of five; to be read only."""
    folder = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SHARD_ROWS", 5)
        patch.setattr(building, "BATCH", 2)
        source = write_set(folder / "set")
        assert build(reranker.runtime, reranker.stamp, source, "blip:set", folder / "index")
    return source, folder / "index"


def test_an_index_holds_what_the_model_says_of_each_image(reranker, built):
    source, folder = built
    store = Store(folder)
    ids = [source.image_id(i) for i in range(len(source))]
    assert [store.row(i).id for i in range(len(store))] == ids and len(store.shards) == 4
    images = [source.image(i) for i in range(len(source))]
    tokens = reranker.encode_images(images)
    got = np.asarray(unpack(store.tokens(np.arange(len(store)))), np.float32)
    np.testing.assert_allclose(got, tokens, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(store.embeddings, reranker.embed_images(images), atol=1e-5)
    captions = [text for _, text in store.captions]
    assert captions == [text for i in range(len(source)) for text in source.captions(i)]
    np.testing.assert_allclose(store.caption_embeddings, reranker.embed_texts(captions), atol=1e-5)
    for i in (0, 7, len(store) - 1):
        assert Path(store.row(i).path).samefile(source.path(i))  # type: ignore[attr-defined]
        (folder.parent / "thumbnail.jpg").write_bytes(store.thumbnail(i))
        assert Image.open(folder.parent / "thumbnail.jpg").format == "JPEG"
    assert list(verify(folder)) == []
    assert not list(folder.glob("*.tmp")) and not (folder / "build.json").exists()


def test_search_is_the_first_stage_reranked(reranker, built):
    _, folder = built
    index = ImageIndex.open(folder)
    tokens = np.asarray(unpack(index.tokens[np.arange(len(index))]), np.float32)
    cosines = reranker.embed_texts(TEXTS) @ index.store.embeddings[:].T
    logits = reranker.score_matrix(TEXTS, tokens)
    found = reranker.search(index, TEXTS, k=7, top_k=4)
    assert [len(results) for results in found] == [4, 4, 4]
    for query, results in enumerate(found):
        near = np.argsort(-cosines[query], kind="stable")[:7]
        order = near[np.argsort(-logits[query][near], kind="stable")][:4]
        assert [result["id"] for result in results] == [index.store.row(int(i)).id for i in order]
        for result, i in zip(results, order, strict=True):
            assert result["score"] == pytest.approx(1 / (1 + np.exp(-logits[query, i])), abs=1e-5)
            assert result["similarity"] == pytest.approx(cosines[query, i], abs=1e-5)
            assert result["base_rank"] == 1 + list(near).index(i)
    assert reranker.search(index, [], k=5) == []
    assert len(reranker.search(index, TEXTS[:1], k=1000, top_k=1000)[0]) == len(index)


def test_results_are_the_same_wherever_tokens_rest(reranker, built):
    _, folder = built
    results = [
        reranker.search(ImageIndex.open(folder, tokens_on=place), TEXTS, k=9)
        for place in ("disk", "host", "device")
    ]
    assert results[0] == results[1] == results[2]
    with pytest.raises(ValueError, match="tokens on 'tape'"):
        ImageIndex.open(folder, tokens_on="tape")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no first stage called 'fast'; there are exact"):
        ImageIndex.open(folder, first_stage="fast")


def test_no_query_depends_on_the_others(reranker, built):
    index = ImageIndex.open(built[1])
    together = reranker.search(index, TEXTS, k=9)
    for query, results in zip(TEXTS, together, strict=True):
        alone = reranker.search(index, [query], k=9)[0]
        assert [a["id"] for a in alone] == [b["id"] for b in results]
        np.testing.assert_allclose(
            [a["score"] for a in alone], [b["score"] for b in results], atol=1e-5
        )


def test_an_image_finds_captions(reranker, built):
    source, folder = built
    index = ImageIndex.open(folder)
    image = source.image(4)
    captions = [text for _, text in index.store.captions]
    cosines = reranker.embed_images([image]) @ reranker.embed_texts(captions).T
    logits = reranker.score_matrix(captions, reranker.encode_images([image]))[:, 0]
    near = np.argsort(-cosines[0], kind="stable")[:6]
    order = near[np.argsort(-logits[near], kind="stable")][:3]
    results = reranker.search_captions(index, [image], k=6, top_k=3)[0]
    assert [result["caption"] for result in results] == [captions[i] for i in order]
    for result, i in zip(results, order, strict=True):
        assert result["id"] == index.store.row(index.store.captions[int(i)][0]).id


def pack_signs(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return {"signs": np.packbits(tokens > 0, axis=-1), "levels": np.abs(tokens).mean(-1)}


def unpack_signs(columns: dict) -> jax.Array:
    signs = jnp.unpackbits(jnp.asarray(columns["signs"]), axis=-1).astype(jnp.float32)
    return (2 * signs - 1) * columns["levels"][..., None]


SIGNS = TokenFormat(
    rows=lambda m, d: {
        "signs": jax.ShapeDtypeStruct((m, d // 8), np.uint8),
        "levels": jax.ShapeDtypeStruct((m,), np.float32),
    },
    pack=pack_signs,
    unpack=unpack_signs,
)
"""A format of one bit for each element, which only this test knows."""


@pytest.mark.parametrize("dtype", [*FORMATS, "signs"])
def test_every_token_dtype_searches(reranker, built, tmp_path, dtype, monkeypatch):
    monkeypatch.setitem(FORMATS, "signs", SIGNS)
    source, _ = built
    assert build(
        reranker.runtime,
        reranker.stamp,
        source,
        "blip:set",
        tmp_path,
        BuildOptions(token_dtype=dtype),
    )
    store = Store(tmp_path)
    arrays = [
        path for name in store.manifest.token_column_names for path in tmp_path.glob(f"{name}-*")
    ]
    kept = sum(path.stat().st_size for path in arrays)
    assert kept == len(store) * store.manifest.bytes_per_image + 128 * len(arrays)
    tokens = np.asarray(unpack(store.tokens(np.arange(len(store)))), np.float32)
    results = reranker.search(ImageIndex(store), TEXTS, k=len(store), top_k=5)
    for text, found in zip(TEXTS, results, strict=True):
        logits = reranker.score_matrix([text], tokens)[0]
        best = [store.row(int(i)).id for i in np.argsort(-logits, kind="stable")[:5]]
        assert [result["id"] for result in found] == best
    remove(tmp_path, [store.row(i).id for i in (0, 2)])
    assert compact(tmp_path) == 2
    rest = Store(tmp_path)
    got = np.asarray(unpack(rest.tokens(np.arange(len(rest)))), np.float32)
    order = [store.image_of_id[rest.row(i).id] for i in range(len(rest))]
    np.testing.assert_array_equal(got, tokens[order])
    listed = {name for record in rest.manifest.shards for name in record["files"]}
    assert {path.name for path in tmp_path.glob("*.npy")} == {n for n in listed if ".npy" in n}


def test_an_index_in_a_token_format_of_a_newer_version_is_refused(built, tmp_path):
    shutil.copytree(built[1], tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"token_dtype": "int2"}))
    with pytest.raises(BadStore, match=r"manifest\.json: keeps tokens as int2, and .* update it"):
        Store(tmp_path / "index")


def test_building_again_changes_nothing(reranker, built, tmp_path):
    source, folder = built
    shutil.copytree(folder, tmp_path / "index")
    before = files(tmp_path / "index")
    assert build(reranker.runtime, reranker.stamp, source, "blip:set", tmp_path / "index")
    assert files(tmp_path / "index") == before


def test_one_stream_of_images_fills_all_shards(reranker, built, tmp_path, monkeypatch):
    """Worker processes are started once, and what is built already is not read again."""
    source, folder = built
    read, read_batches = [], RecordDecoder.read

    def spied(decoder, batches, workers):
        read.append(len(batches))
        return read_batches(decoder, batches, workers)

    monkeypatch.setattr(RecordDecoder, "read", spied)
    assert not build(
        reranker.runtime, reranker.stamp, source, "blip:set", tmp_path, BuildOptions(share=(0, 2))
    )
    assert build(reranker.runtime, reranker.stamp, source, "blip:set", tmp_path)
    assert read == [6, 4] and files(tmp_path) == files(folder)


def test_many_machines_fill_one_index(reranker, built, tmp_path):
    source, folder = built
    assert not build(
        reranker.runtime, reranker.stamp, source, "blip:set", tmp_path, BuildOptions(share=(1, 3))
    )
    with pytest.raises(BadStore, match="this index is unfinished; run the same"):
        Store(tmp_path)
    assert not build(
        reranker.runtime, reranker.stamp, source, "blip:set", tmp_path, BuildOptions(share=(0, 3))
    )
    assert build(
        reranker.runtime, reranker.stamp, source, "blip:set", tmp_path, BuildOptions(share=(2, 3))
    )
    assert files(tmp_path) == files(folder)


def test_a_build_that_was_killed_anywhere_goes_on(reranker, built, tmp_path, monkeypatch):
    """After every single file that it writes or deletes, and then once more."""
    source, folder = built
    expected, touched = files(folder), 0

    class Killed(BaseException):
        pass

    def dying(plain, at: int):
        def act(*arguments, **options):
            nonlocal touched
            plain(*arguments, **options)
            touched += 1
            if touched == at:
                raise Killed

        return act

    at = deaths = 0
    while True:
        at += 1
        index = tmp_path / str(at)
        with monkeypatch.context() as patch:
            patch.setattr(building, "SHARD_ROWS", 5)
            patch.setattr(os, "replace", dying(os.replace, at))
            patch.setattr(Path, "unlink", dying(Path.unlink, at))
            touched = 0
            try:
                build(reranker.runtime, reranker.stamp, source, "blip:set", index)
                break
            except Killed:
                deaths += 1
        assert build(reranker.runtime, reranker.stamp, source, "blip:set", index)
        assert files(index) == expected, f"killed after {at} files"
        shutil.rmtree(index)
    assert deaths > 25


def test_a_set_that_changed_under_a_build_keeps_what_is_done(reranker, tmp_path):
    source, index = write_set(tmp_path / "set"), tmp_path / "index"
    build(reranker.runtime, reranker.stamp, source, "blip:set", index, BuildOptions(share=(0, 2)))
    done = {path.name: path.read_bytes() for path in index.glob("tokens-*")}
    assert len(done) == 2
    more = write_set(tmp_path / "set", IMAGES + 2)
    assert build(reranker.runtime, reranker.stamp, more, "blip:set", index)
    store = Store(index)
    assert set(store.image_of_id) == {more.image_id(i) for i in range(len(more))}
    assert done.items() <= files(index).items() and list(verify(index)) == []


def test_what_is_removed_during_a_build_stays_removed(reranker, tmp_path):
    index = tmp_path / "index"
    build(reranker.runtime, reranker.stamp, write_set(tmp_path / "set", 12), "blip:set", index)
    more = write_set(tmp_path / "set", 26)
    assert not build(
        reranker.runtime, reranker.stamp, more, "blip:set", index, BuildOptions(share=(0, 2))
    )
    with pytest.raises(BadStore, match="a build is under way"):
        compact(index)
    remove(index, ["001.png"])
    assert build(
        reranker.runtime, reranker.stamp, more, "blip:set", index, BuildOptions(share=(1, 2))
    )
    assert "001.png" not in Store(index).image_of_id and "019.png" in Store(index).image_of_id


def test_an_index_may_be_empty(reranker, tmp_path):
    index = tmp_path / "index"
    source = write_set(tmp_path / "set", 2)
    build(reranker.runtime, reranker.stamp, source, "blip:set", index)
    remove(index, list(Store(index).image_of_id))

    def check(tokens_on: TokensOn, first_stage: str) -> None:
        opened = ImageIndex.open(index, tokens_on=tokens_on, first_stage=first_stage)
        assert len(opened) == 0 and reranker.search(opened, TEXTS) == [[], [], []]
        assert reranker.search_captions(opened, [source.image(0)]) == [[]]

    for _ in ("with its rows", "compacted"):
        for tokens_on in get_args(TokensOn):
            check(tokens_on, "exact")
        for first_stage in FIRST_STAGES:
            if find_first_stage(first_stage).reads == "embeddings":
                check("disk", first_stage)
        assert list(verify(index)) == []
        compact(index)
    assert Store(index).manifest.shards == ()


def test_images_are_added_removed_and_compacted(reranker, tmp_path):
    source = write_set(tmp_path / "set", 12)
    index = tmp_path / "index"
    build(reranker.runtime, reranker.stamp, source, "blip:set", index)
    first = {name: data for name, data in files(index).items() if name.startswith("tokens")}
    more = write_set(tmp_path / "set", 20)
    build(reranker.runtime, reranker.stamp, more, "blip:set", index)
    grown = Store(index)
    assert {grown.row(i).id for i in range(len(grown))} == {
        more.image_id(i) for i in range(len(more))
    }
    assert first.items() <= files(index).items(), "what was there is left as it is"

    with pytest.raises(BadStore, match=r"not in the index: nothing\.png; nothing was removed"):
        remove(index, ["001.png", "nothing.png"])
    assert remove(index, ["001.png", "004.png", "019.png"]) == 3
    with pytest.raises(BadStore, match="not in the index"):
        remove(index, ["001.png"])
    left = Store(index)
    kept = [grown.image_of_id[left.row(i).id] for i in range(len(left))]
    assert len(left) == len(grown) - 3 and "001.png" not in left.image_of_id

    def same(a: Store, rows: list[int]) -> None:
        columns = grown_tokens[np.array(rows)].columns
        for name, column in a.tokens(np.arange(len(a))).columns.items():
            np.testing.assert_array_equal(column, columns[name])
        np.testing.assert_array_equal(a.embeddings[:], grown_embeddings[rows])
        assert [text for _, text in a.captions] == [
            text for row in rows for text in grown.row(row).captions
        ]
        assert len(a.captions) == len(a.caption_embeddings)
        np.testing.assert_allclose(
            a.caption_embeddings, reranker.embed_texts([t for _, t in a.captions]), atol=1e-5
        )
        assert [a.thumbnail(i) for i in range(len(a))] == [thumbnails[row] for row in rows]

    grown_tokens, grown_embeddings = grown.tokens(np.arange(len(grown))), grown.embeddings[:]
    thumbnails = [grown.thumbnail(i) for i in range(len(grown))]
    same(left, kept)
    assert compact(index) == 3
    after = Store(index)
    order = [grown.image_of_id[after.row(i).id] for i in range(len(after))]
    assert sorted(order) == sorted(kept)
    same(after, order)
    assert list(verify(index)) == [] and compact(index) == 0
    # Removed stays removed, until it is asked for.
    build(reranker.runtime, reranker.stamp, more, "blip:set", index)
    assert "001.png" not in Store(index).image_of_id
    build(reranker.runtime, reranker.stamp, more, "blip:set", index, BuildOptions(restore=True))
    assert {"001.png", "004.png", "019.png"} < Store(index).image_of_id.keys()


def test_bad_images_are_listed_and_can_be_mended(reranker, tmp_path):
    source = write_set(tmp_path / "set", bad=(2, 4, 5, 7, 8, 10))
    index = tmp_path / "index"
    assert build(reranker.runtime, reranker.stamp, source, "blip:set", index)
    store = Store(index)
    assert "004.png" not in store.image_of_id and len(store) == len(source) - 6
    with (index / "rejected.csv").open(newline="") as file:
        listed = list(csv.reader(file))
    assert listed[0] == ["id", "reason"]
    bad = ["002.png", "004.png", "005.png", "007.png", "008.png", "010.png"]
    assert sorted(row[0] for row in listed[1:]) == bad
    assert all("not an image" in reason for _, reason in listed[1:])
    before = files(index)
    build(reranker.runtime, reranker.stamp, source, "blip:set", index)
    assert files(index) == before
    Shapes("val").image(4).save(tmp_path / "set" / "004.png")
    build(reranker.runtime, reranker.stamp, source, "blip:set", index)
    assert "004.png" in Store(index).image_of_id
    assert "004.png" not in (index / "rejected.csv").read_text()


def test_damage_is_named(reranker, built, tmp_path):
    _, folder = built
    for name in sorted(files(folder)):
        if name in ("manifest.json", "rejected.csv"):
            continue
        shutil.copytree(folder, tmp_path / "flipped")
        path = tmp_path / "flipped" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert list(verify(tmp_path / "flipped")) == [
            (name, "not what was written: its checksum differs")
        ]
        path.write_bytes(data[:-1])
        with pytest.raises(BadStore, match=rf"{name}: \d+ bytes, written with \d+"):
            Store(tmp_path / "flipped")
        path.unlink()
        with pytest.raises(BadStore, match=f"{name}: missing"):
            Store(tmp_path / "flipped")
        assert list(verify(tmp_path / "flipped")) == [(name, "missing")]
        shutil.rmtree(tmp_path / "flipped")


def test_what_does_not_belong_together_is_refused(reranker, built, tmp_path):
    source, folder = built
    shutil.copytree(folder, tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    with pytest.raises(BadStore, match="keeps tokens as bfloat16, asked for int8"):
        build(
            reranker.runtime,
            reranker.stamp,
            source,
            "blip:set",
            tmp_path / "index",
            BuildOptions(token_dtype="int8"),
        )
    foreign = manifest | {"model": {"fingerprint": "0" * 32, "source": "another/model"}}
    (tmp_path / "index" / "manifest.json").write_text(json.dumps(foreign))
    told = r"another model \(another/model, 0 deferred layers\) than this one \(.*, 0 deferred"
    with pytest.raises(BadStore, match=told):
        build(reranker.runtime, reranker.stamp, source, "blip:set", tmp_path / "index")
    with pytest.raises(BadStore, match="built with another model"):
        reranker.search(ImageIndex.open(tmp_path / "index"), TEXTS)
    with pytest.raises(BadStore, match="built with another model"):
        reranker.search_captions(ImageIndex.open(tmp_path / "index"), [source.image(0)])
    (tmp_path / "index" / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(BadStore, match="another version"):
        Store(tmp_path / "index")
    (tmp_path / "index" / "manifest.json").write_text("{")
    with pytest.raises(BadStore, match="not valid JSON"):
        Store(tmp_path / "index")
    with pytest.raises(BadStore, match="no index here"):
        ImageIndex.open(tmp_path / "nothing")
    # A build with another token dtype was begun.
    build(
        reranker.runtime,
        reranker.stamp,
        source,
        "blip:set",
        tmp_path / "two",
        BuildOptions(share=(0, 2)),
    )
    with pytest.raises(BadStore, match=r"unfinished build of another kind \(token_dtype differ"):
        build(
            reranker.runtime,
            reranker.stamp,
            source,
            "blip:set",
            tmp_path / "two",
            BuildOptions(token_dtype="int8"),
        )


def test_no_captions_no_answers_to_an_image(reranker, tmp_path):
    write_set(tmp_path / "set", 6)
    build(
        reranker.runtime,
        reranker.stamp,
        Folder(str(tmp_path / "set")),
        "folder:set",
        tmp_path / "index",
    )
    index = ImageIndex.open(tmp_path / "index")
    assert len(index) == 6 and len(reranker.search(index, TEXTS, k=3)[0]) == 3
    with pytest.raises(ValueError, match="no captions in this index"):
        reranker.search_captions(index, [Shapes("val").image(0)])
