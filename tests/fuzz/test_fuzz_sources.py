"""Mutated sets of every kind: each is read to its end, or refused in one line.

`EDJE_FUZZ_INPUTS` says how many inputs the fuzzers try in all, of which four fifths are sets; input
n of a kind is the same in every run. `make fuzz` tries many.
"""

import copy
import io
import itertools
import json
import math
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from edje_jax.config.model import ImageRecipe
from edje_jax.config.run import DataConfig
from edje_jax.data.decoders import PREFIX, may_be_image
from edje_jax.data.feature_cache import Caption, dataset_stamp
from edje_jax.data.loader import RowRecipe, TrainingBatches
from edje_jax.data.pack import pack
from edje_jax.data.sources import registry
from edje_jax.data.sources.captioned import Captioned
from edje_jax.data.sources.folder import Folder
from edje_jax.data.sources.registry import open_source
from edje_jax.data.statistics import grid, statistics
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.types import Source
from tests.real_sets import Scene, write_tar, write_tfds

INPUTS = int(os.environ.get("EDJE_FUZZ_INPUTS", "500")) * 4 // 5
COUNT = 5
"""Images of a set before it is mutated."""
GOLDENS = Path(__file__).parents[1] / "goldens" / "reference_tiny"
ODD_TEXTS = (
    "", " ", "\0", "a\0b", "\ud83d", "\udce9", "\ud83d\ude00", "é", "🐕", "a\nb\r\nc", "\u2028",
    "a.b", "..", "../x", "/", ".jpg", "http://x/y.jpg", "%s", "{0..9}", "#", "NaN", "x" * 100_001,
    "\ufeff", "\x1b[31m", "0.png", "1", "A" * 300,
)  # fmt: skip
ODD_VALUES = (
    *ODD_TEXTS, None, True, 0, -1, 7, 1.5, math.nan, math.inf, 10**30, [], {}, [None], [["x"]],
    ["x", 5, ""], {"raw": "x"}, {"caption": ["x"]}, [[[[[["x"]]]]]], ["x"] * 300,
)  # fmt: skip


class Mutated(NamedTuple):
    """A mutated set."""

    spec: str
    records: Callable[[], int | None]
    """Records in its files, of the split that is asked for; None where it cannot be counted."""


# --- mutations ------------------------------------------------------------------------------------


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few bytes flipped, deleted, repeated or put in."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 1, 2, 4, 16, 600)), max(len(data) - at, 0))
        part = data[at : at + length]
        part = rng.choice(
            (b"", rng.randbytes(length), part * 2, bytes(length), b"\xff" * length, b'"', b"}\n{")
        )
        data = data[:at] + part + data[at + length :]
    return data if rng.random() < 0.9 else data[: rng.randrange(len(data) + 1)]


def mutate_json(rng: random.Random, value: Any) -> Any:
    """A value with a few of its nodes replaced by odd ones, renamed, repeated or gone."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 5))):
        nodes = list(_nodes(value))
        parent, key = rng.choice(nodes) if nodes else ([value], 0)
        match rng.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice((*ODD_TEXTS, "image", "caption"))] = parent.pop(key)
            case 2 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case _:
                parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return value


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys) if isinstance(value, dict | list) else ():
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _nodes(value[key])


def write_json(rng: random.Random, path: Path, value: Any, lines: list[Any]) -> None:
    """A mutated JSON file: its values, its form, or its bytes."""
    value = mutate_json(rng, value)
    match rng.randrange(6):
        case 0:
            data = mutate_bytes(rng, json.dumps(value).encode())
        case 1:
            data = b"\n".join(json.dumps(mutate_json(rng, line)).encode() for line in lines)
        case 2:
            text = json.dumps(value, ensure_ascii=False)
            data = text.encode(rng.choice(("utf-16", "utf-8-sig", "latin-1")), "replace")
        case _:
            data = json.dumps(value).encode()
    path.write_bytes(data)


def write_images(rng: random.Random, folder: Path, made: list[Scene]) -> None:
    """The images, of which one may be mutated or gone."""
    for scene in made:
        (folder / scene.file).write_bytes(scene.png)
    match rng.randrange(4):
        case 0:
            (folder / made[0].file).write_bytes(mutate_bytes(rng, made[0].png))
        case 1:
            (folder / made[0].file).unlink()


# --- kinds ----------------------------------------------------------------------------------------


def entries_of(path: Path) -> list[Any]:
    """The entries of a JSON list, or of JSON Lines."""
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] == b"\xff\xfe" else "utf-8-sig", "surrogateescape")
    try:
        value = json.loads(text)
    except ValueError:
        return [_entry(line) for line in text.split("\n") if line.strip()]
    if isinstance(value, dict):
        return value.get("images", [value])
    return value


def _entry(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def blip(rng: random.Random, folder: Path, made: list[Scene]) -> Mutated:
    entries = [
        {"image": scene.file, "caption": list(scene.captions), "image_id": scene.number}
        for scene in made
    ]
    write_images(rng, folder, made)
    write_json(rng, folder / "a.json", entries, entries)
    return Mutated(f"blip:{folder}/a.json", lambda: len(entries_of(folder / "a.json")))


def karpathy(rng: random.Random, folder: Path, made: list[Scene]) -> Mutated:
    entries = [
        {
            "filepath": ".", "filename": scene.file, "cocoid": scene.number, "split": "test",
            "sentences": [{"raw": text} for text in scene.captions],
        }
        for scene in made
    ]  # fmt: skip
    write_images(rng, folder, made)
    write_json(rng, folder / "a.json", {"images": entries}, entries)

    def records() -> int:
        splits = [
            e.get("split") if isinstance(e, dict) else 0 for e in entries_of(folder / "a.json")
        ]
        return sum(split == "test" or not isinstance(split, str) for split in splits)

    return Mutated(f"karpathy:{folder}/a.json#test", records)


def webdataset(rng: random.Random, folder: Path, made: list[Scene]) -> Mutated:
    members = []
    for scene in made:
        facts = mutate_json(rng, {"caption": list(scene.captions), "image_id": scene.number})
        text = rng.choice((*ODD_TEXTS, "one\ntwo"))
        members += [
            (f"{scene.number}.png", scene.png),
            (f"{scene.number}.json", json.dumps(facts).encode()),
            (f"{scene.number}.txt", text.encode(rng.choice(("utf-8", "utf-16")), "surrogatepass")),
        ]
    for _ in range(rng.choice((0, 1, 3))):
        at = rng.randrange(len(members))
        name, data = members[at]
        odd = rng.choice(
            ("a.b.png", "1.png", ".txt", "x", "café.png", "a/b.txt", "1.b.png", "\n.txt")
        )
        members[at] = rng.choice(((name, mutate_bytes(rng, data)), (odd, data), (f"x{name}", data)))
    path = folder / "a.tar"
    write_tar(path, members)
    if rng.random() < 0.5:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))

    def records() -> int:
        groups: dict[str, list[str]] = {}
        lone = 0
        with tarfile.open(path) as tar:
            for info in filter(tarfile.TarInfo.isfile, tar):
                below, name = os.path.split(info.name)
                stem, _, ending = name.partition(".")
                if stem:
                    key = os.path.join(below, stem).removeprefix("./")
                    groups.setdefault(key, []).append(ending)
            for key in [key for key, endings in groups.items() if set(endings) == {""}]:
                del groups[key]
                lone += may_be_image(tar.extractfile(key).read(PREFIX))
        dotted = [group for group in groups.values() if all("." in ending for ending in group)]
        keys = [len({ending.rpartition(".")[0] for ending in group}) for group in dotted]
        return lone + len(groups) - len(dotted) + sum(keys)

    return Mutated(f"webdataset:{path}", records)


def parquet(rng: random.Random, folder: Path, made: list[Scene]) -> Mutated:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = []
    for scene in made:
        texts = [rng.choice((*ODD_TEXTS, None, *scene.captions)) for _ in range(rng.randrange(4))]
        data = rng.choice((scene.png, scene.png, mutate_bytes(rng, scene.png), None))
        name = rng.choice((scene.file, scene.file, "", "\0", "x", None))
        rows.append((texts, {"bytes": data, "path": name}, rng.choice((*ODD_TEXTS, *"abcdefgh"))))
    texts, images, ids = zip(*rows, strict=True)

    def strings(values: list[str | None]) -> Any:
        kind = rng.choice((pa.string(), pa.large_string(), pa.string_view()))
        encoded = [x if x is None else x.encode("utf-8", "surrogatepass") for x in values]
        return pa.array(encoded, pa.binary()).view(pa.string()).cast(kind)

    flat = strings(list(itertools.chain(*texts)))
    starts = list(itertools.accumulate(map(len, texts), initial=0))
    columns = {
        "caption": pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), flat),
        "image": pa.array(images),
        rng.choice(("image_id", "id", "other")): strings(list(ids)),
    }
    path = folder / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    if rng.random() < 0.5:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    return Mutated(f"parquet:{path}", lambda: pq.read_metadata(path).num_rows)


def tfds(rng: random.Random, folder: Path, made: list[Scene]) -> Mutated:
    prepared = folder.parent / "tfds"
    if not prepared.exists():
        pytest.importorskip("tensorflow_datasets")
        texts = ["fine", b"caf\xe9", "", "\0", "a\nb"]
        spec = write_tfds(prepared, [s._replace(captions=(*texts, str(s.number))) for s in made])
        (prepared / "spec").write_text(spec.removeprefix("tfds:").removesuffix("#train"))
    for path in Path((prepared / "spec").read_text()).iterdir():
        shutil.copy(path, folder)
    path = rng.choice(sorted(folder.iterdir()))
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(mutate_json(rng, json.loads(path.read_text()))))
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    return Mutated(f"tfds:{folder}#train", lambda: None)


def arrayrecord(rng: random.Random, folder: Path, made: list[Scene]) -> Mutated:
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    images = [{"id": str(s.number), "captions": list(s.captions)} for s in made]
    table = {
        "format": "edje_jax pictures", "version": 1, "shard": 0, "shards": 1, "set": "s",
        "pictures": mutate_json(rng, images), "rejected": [],
    }  # fmt: skip
    path = folder / "pictures-00000-of-00001.array_record"
    out = writer(str(path), "group_size:1,uncompressed")
    for scene in made:
        out.write(mutate_bytes(rng, scene.png) if rng.random() < 0.1 else scene.png)
    out.write(json.dumps(table if rng.random() < 0.7 else mutate_json(rng, table)).encode())
    out.close()
    if rng.random() < 0.3:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    return Mutated(f"arrayrecord:{path}", lambda: COUNT)


def folder(rng: random.Random, folder: Path, made: list[Scene]) -> Mutated:
    write_images(rng, folder, made)
    odd = (b"caf\xe9.png", b".hidden.png", b"x.JPG", b"\x1b[31m.png", b"a\nb.webp", b"x", b"x.txt")
    for name in rng.sample(odd, 3):
        path = os.path.join(os.fsencode(folder), name)
        Path(os.fsdecode(path)).write_bytes(mutate_bytes(rng, made[0].png))
    return Mutated(f"folder:{folder}", lambda: len(os.listdir(folder)))


def shapes(rng: random.Random, folder: Path, made: list[Scene]) -> Mutated:
    """A SPEC of any kind, itself mutated."""
    examples = [kind.example for kind in registry.KINDS.values()]
    spec = rng.choice((*examples, "blip:a.json@0.5+shapes:val@0.5", "shapes:val#lines"))
    for _ in range(rng.choice((0, 1, 2))):
        at = rng.randrange(len(spec) + 1)
        odd = rng.choice((*PRINTABLE, "#", "@", "+", ":", "{", "}", "@0", "+shapes:val", "*"))
        spec = spec[:at] + odd[:300] + spec[at + rng.choice((0, 1, 3)) :]
    return Mutated(spec, lambda: None)


PRINTABLE = [text for text in ODD_TEXTS if "\n" not in text and "\ud83d" not in text]

KINDS = (blip, karpathy, webdataset, parquet, tfds, arrayrecord, folder, shapes)


# --- the walk -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe() -> RowRecipe:
    """Tiny tokenizers and images."""
    joint = JointTokenizer(GOLDENS / "bert", 16)
    return RowRecipe(ImageRecipe(size=8), BackboneTokenizer(GOLDENS / "siglip", 16), joint)


def images() -> list[Scene]:
    """A few images of a few hundred bytes with their captions."""
    made = []
    for number in range(COUNT):
        stream = io.BytesIO()
        Image.new("RGB", (8 + number, 8), (40 * number, 0, 0)).save(stream, "PNG")
        made.append(Scene(number, stream.getvalue(), (f"image {number}", "a dog", "two cats")))
    return made


def accounted(source: Source) -> int:
    """Good, bad and passed over."""
    if isinstance(source, Folder):
        return len(source) + source.passed_over.total
    assert isinstance(source, Captioned)
    return len(source) + source.joined + len(source.bad)


def walk(source: Source, recipe: RowRecipe, folder: Path, rng: random.Random) -> None:
    """Read a source as statistics, the loader, and once in a while a pack do."""
    for index in range(min(len(source), 2 * COUNT)):
        assert source.image_id(index)
        for caption in source.captions(index):
            assert caption.strip() and caption.encode()
    if len(source) > 10 * COUNT:  # The built-in scenes
        return
    source = pickle.loads(pickle.dumps(source))
    found = statistics(source)
    assert len(found.sizes) + len(set(found.bad)) <= len(source)
    data = DataConfig(batch_size=COUNT)
    # Not through the shuffle, which is slow for a few records.
    rows = [Caption(record, 0) for record in range(len(source))]
    batch, bad = TrainingBatches(source, recipe, data, 0, 1)._batch(rows, 0)
    assert batch.valid.sum() + len(bad) >= len({*map(source.image_id, range(len(source)))})
    dataset_stamp(source)
    if rng.random() < 0.02:
        grid(source)
    if rng.random() < 0.05 and found.ids == len(source):
        written, rejected = pack(source, folder / "packed")
        assert written + len(rejected) >= len(source)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_mutated_set_is_read_or_refused_in_one_line(kind, tmp_path, recipe, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made, opened = images(), 0
    inputs = -(-INPUTS // len(KINDS))
    for number in range(inputs):
        rng = random.Random(f"{kind.__name__} {number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        mutated = kind(rng, folder, made)
        told = f"input {number} of {kind.__name__}: {mutated.spec!r}"
        try:
            source = open_source(mutated.spec)
        except (ValueError, OSError) as error:
            # The project's own, or the system's.
            assert type(error) is ValueError or isinstance(error, OSError), told
            assert str(error) and "\n" not in str(error), told
            continue
        except BaseException as error:
            raise AssertionError(told) from error
        try:
            if (records := mutated.records()) is not None:
                assert accounted(source) == records
            walk(source, recipe, folder, rng)
        except BaseException as error:
            raise AssertionError(told) from error
        opened += 1
        shutil.rmtree(folder)
    assert opened > inputs / (100 if kind is shapes else 4)
