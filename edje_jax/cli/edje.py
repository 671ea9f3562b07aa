"""The `edje` command: train and evaluate models, index, search and serve images.

Each command lists its options with --help.
"""

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from edje_jax.cli.program import run_program
from edje_jax.config.model import TokenDtype
from edje_jax.first_stage.registry import FIRST_STAGES
from edje_jax.system.allocator import start_with_huge_pages

if TYPE_CHECKING:
    FirstStageName = str
else:
    FirstStageName = Literal[*FIRST_STAGES]


@dataclass(frozen=True)
class Train:
    """Train a model: `edje train --help` lists the configs, `edje train CONFIG --help` its options.

    Examples:
        edje train debug
        edje train tiny_backbone --data.train blip:train.json --workdir runs/backbone
    """

    arguments: tyro.conf.Positional[tuple[str, ...]] = ()
    """CONFIG and its options."""

    def run(self) -> None:
        from edje_jax.cli.train import main

        main(list(self.arguments))


@dataclass(frozen=True)
class Eval:
    """Evaluate a model, base beside reranked: `edje eval --help` lists the options.

    Examples:
        edje eval runs/mine --data blip:val.json --out runs/mine/eval
    """

    arguments: tyro.conf.Positional[tuple[str, ...]] = ()
    """MODEL and options."""

    def run(self) -> None:
        from edje_jax.cli.eval_options import main

        main(list(self.arguments))


@dataclass(frozen=True)
class Convert:
    """Convert a model; what SRC is, is recognised.

    Examples:
        edje convert runs/coco model/ --to edje
        edje convert edje_b.pth model/ --to edje --backbone google/siglip2-base-patch16-384 \
--language-model microsoft/MiniLM-L12-H384-uncased
        edje convert model/ edje.pth --to published
        edje convert model/ onnx/ --to onnx
    """

    src: tyro.conf.Positional[str]
    """Model folder or hub id, training workdir or one of its checkpoints, or published .pth."""
    dst: tyro.conf.Positional[str]
    """Folder (edje, onnx) or file (published) to write; must not exist yet."""
    to: Literal["edje", "published", "onnx"]
    """Format to write: a model folder, the published code's checkpoint, or ONNX files."""
    backbone: str = ""
    """Folder or hub id of the backbone that a published .pth was trained on."""
    language_model: str = ""
    """Folder or hub id of the BERT that a published .pth started from."""

    def run(self) -> None:
        from edje_jax.cli.convert import convert

        convert(self.src, self.dst, self.to, self.backbone, self.language_model)


@dataclass(frozen=True)
class Push:
    """Upload a model folder to the hub, its card written anew.

    Examples:
        edje push runs/coco me/edje-coco --metrics runs/coco/eval/metrics.json
        edje push runs/coco me/edje-coco --dry-run card.md
    """

    model: tyro.conf.Positional[str]
    """Model folder or training workdir."""
    hub_id: tyro.conf.Positional[str]
    """OWNER/NAME on the hub."""
    metrics: str = ""
    """metrics.json of an evaluation, for the card."""
    private: bool = False
    """Make the repository private if it is new."""
    dry_run: str = ""
    """Write the card to this file and upload nothing."""

    def run(self) -> None:
        from edje_jax.cli.push import push

        push(self.model, self.hub_id, self.metrics, self.private, self.dry_run)


@dataclass(frozen=True)
class IndexBuild:
    """Encode images into an index that can be searched; resumes where it stopped.

    Run again after the set changed, it encodes what is new or changed and takes up other captions;
    it names images that are gone, and --prune drops them. Images that were removed with `edje index
    remove` stay out. What cannot be read goes into rejected.csv.

    Examples:
        edje index build runs/coco/model photos/ --out photos.index
        edje index build runs/coco/model blip:captions.json --out coco.index --token-dtype int8
        edje index build runs/coco/model photos/ --out photos.index --shard 0/4      # of 4 machines
    """

    model: tyro.conf.Positional[str]
    """Model folder, training workdir or hub id."""
    images: tyro.conf.Positional[str]
    """Folder of images, or a SPEC such as blip:captions.json, whose captions are indexed too."""
    out: str
    """Folder of the index."""
    token_dtype: TokenDtype = "bfloat16"
    """Data type of stored tokens: 2 bytes a number, 1 or a half."""
    shard: str = ""
    """i/n: build the i-th of n shares (from 0); the last to finish completes the index."""
    workers: int = 0
    """Processes that decode images; 0 uses threads of this one."""
    image_root: str = ""
    """Folder that a SPEC's relative image paths start from."""
    max_bad: float = 1.0
    """Share of the set's records that may be bad: unreadable images, unusable captions. If no image
    can be read, the build fails anyway."""
    prune: bool = False
    """Drop images that are no longer in the set; without it, they keep answering."""
    restore: bool = False
    """Take images in again that were removed with `edje index remove`."""

    def run(self) -> None:
        from edje_jax.cli.index import build

        build(
            self.model, self.images, self.out,
            self.token_dtype, self.shard, self.workers, self.image_root,
            self.max_bad, self.prune, self.restore,
        )  # fmt: skip


@dataclass(frozen=True)
class IndexInfo:
    """Say what an index holds, in how many bytes, and which model made it.

    Examples:
        edje index info photos.index
    """

    index: tyro.conf.Positional[str]
    """Folder of the index."""

    def run(self) -> None:
        from edje_jax.cli.index import info

        info(self.index)


@dataclass(frozen=True)
class IndexVerify:
    """Check every file of an index against its checksum; exit code 1 if one differs.

    Examples:
        edje index verify photos.index
    """

    index: tyro.conf.Positional[str]
    """Folder of the index."""

    def run(self) -> None:
        from edje_jax.cli.index import verify

        verify(self.index)


@dataclass(frozen=True)
class IndexRemove:
    """Take images out of an index; `edje index compact` gives their room back.

    Builds leave them out from then on; `edje index build --restore` takes them in again.

    Examples:
        edje index remove photos.index 2019/cat.jpg 2019/dog.jpg
    """

    index: tyro.conf.Positional[str]
    """Folder of the index."""
    ids: tyro.conf.Positional[tuple[str, ...]]
    """Ids of the images."""

    def run(self) -> None:
        from edje_jax.cli.index import remove

        remove(self.index, self.ids)


@dataclass(frozen=True)
class IndexCompact:
    """Write the shards anew that hold removed, changed or dropped images, without these.

    Examples:
        edje index compact photos.index
    """

    index: tyro.conf.Positional[str]
    """Folder of the index."""

    def run(self) -> None:
        from edje_jax.cli.index import compact

        compact(self.index)


@dataclass(frozen=True)
class DataStat:
    """Count images and captions of a set, decode images, name those that cannot be read.

    Examples:
        edje data stat blip:train.json
        edje data stat "webdataset:cc3m/{00000..00331}.tar" --look-at 1000 --grid cc3m.png
        edje data stat "karpathy:dataset_coco.json#test" --image-root coco/
    """

    spec: tyro.conf.Positional[str]
    """SPEC of the set, as `kind:path[#split]`."""
    image_root: str = ""
    """Folder that relative image paths start from."""
    look_at: int = 0
    """Images to decode, spread over the set; 0 for all."""
    grid: str = ""
    """File for a sheet of images with their captions, such as set.png."""

    def run(self) -> None:
        from edje_jax.cli.data import stat

        stat(self.spec, self.image_root, self.look_at, self.grid)


@dataclass(frozen=True)
class DataPack:
    """Write a set as ArrayRecord shards, which read fast in any order; resumes where it stopped.

    What cannot be read goes into rejected.csv. Read the result as "arrayrecord:DIR/*.array_record".

    Examples:
        edje data pack blip:train.json --out packed/
        edje data pack "parquet:flickr30k/*.parquet#train" --out packed/ --shard-size 1000
    """

    spec: tyro.conf.Positional[str]
    """SPEC of the set, as `kind:path[#split]`."""
    out: str
    """Folder of the shards."""
    image_root: str = ""
    """Folder that relative image paths start from."""
    shard_size: int = 2048
    """Images in a shard."""

    def run(self) -> None:
        from edje_jax.cli.data import pack

        pack(self.spec, self.out, self.image_root, self.shard_size)


@dataclass(frozen=True)
class Search:
    """Search an index with words, or its captions with an image.

    Examples:
        edje search photos.index "two dogs on a beach"
        edje search photos.index "two dogs on a beach" --k 200 --top 5 --json
        edje search photos.index "two dogs on a beach" --min-score 0.5
        edje search coco.index --image dog.jpg
    """

    index: tyro.conf.Positional[str]
    """Folder of the index."""
    query: tyro.conf.Positional[str] = ""
    """Text to search for."""
    image: str = ""
    """An image to look for captions of, instead of a query."""
    k: int = 100
    """Candidates of the first stage that are reranked."""
    top: int = 10
    """Results to show."""
    min_score: float | None = None
    """Least score of a result, from 0 to 1: "nothing matches" is an answer then."""
    json: bool = False
    """Write results as JSON and nothing else."""
    model: str = ""
    """Present path of the index's model, if it was moved."""
    tokens_on: Literal["disk", "host", "device"] = "disk"
    """Memory that holds the tokens while the index is open."""
    first_stage: FirstStageName = "exact"
    """Search that finds the candidates; all but "exact" are built once and kept in the index."""

    def run(self) -> None:
        from edje_jax.cli.search import search

        search(self)


@dataclass(frozen=True)
class Serve:
    """Serve an index: a search page at /, and the HTTP of a reranker.

    Examples:
        edje serve photos.index
        edje serve photos.index --host 0.0.0.0 --port 80 --api-key "$KEY" --tokens-on host
        edje serve photos.index --root-path /search --cors-origin https://shop.example
    """

    index: tyro.conf.Positional[str]
    """Folder of the index."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one of this machine's."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    api_key: str = ""
    """Key that clients have to send; also read from the variable EDJE_API_KEY."""
    cors_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Origin whose pages may ask, such as https://shop.example, or "*"; give it once for each."""
    root_path: str = ""
    """Path that a reverse proxy puts before every other, such as /search."""
    model: str = ""
    """Present path of the index's model, if it was moved."""
    tokens_on: Literal["disk", "host", "device"] = "disk"
    """Memory that holds the tokens."""
    first_stage: FirstStageName = "exact"
    """Search that finds the candidates; all but "exact" are built once and kept in the index."""
    max_waiting: int = 64
    """Requests that may queue; one more gets a 429."""
    max_batch: int = 16
    """Requests computed together."""
    max_documents: int = 1000
    """Documents that a request may have reranked."""
    max_images: int = 64
    """Images that may be sent with a request, indexed ones not counted."""
    max_pixels: int = 64_000_000
    """Pixels that an image sent with a request may have."""
    max_body_mib: int = 32
    """MiB that the body of a request may have."""
    max_k: int = 1000
    """Candidates of the first stage that a search may have reranked."""
    timeout: float = 30.0
    """Seconds until a request is given up."""
    warm: bool = True
    """Compile every shape at the start; /ready answers 503 until that is done."""

    def run(self) -> None:
        from edje_jax.cli.serve import serve

        serve(self)


def _named(name: str, command: type) -> Any:
    """A subcommand whose help keeps its examples line by line."""
    told = inspect.cleandoc(command.__doc__ or "")
    return Annotated[command, tyro.conf.subcommand(name, description=told)]


INDEX = (
    _named("build", IndexBuild)
    | _named("info", IndexInfo)
    | _named("verify", IndexVerify)
    | _named("remove", IndexRemove)
    | _named("compact", IndexCompact)
)


@dataclass(frozen=True)
class Index:
    """Build and look after an index of images."""

    command: tyro.conf.OmitSubcommandPrefixes[INDEX]  # type: ignore[valid-type]

    def run(self) -> None:
        self.command.run()


DATA = _named("stat", DataStat) | _named("pack", DataPack)


@dataclass(frozen=True)
class Data:
    """Look at a set of images and captions, and pack it for training."""

    command: tyro.conf.OmitSubcommandPrefixes[DATA]  # type: ignore[valid-type]

    def run(self) -> None:
        self.command.run()


@dataclass(frozen=True)
class Tune:
    """Choose how to rerank: measure models, token dtypes and depths on a set.

    Prints R@1 against pairs per second and bytes, with the Pareto front marked.

    Examples:
        edje tune runs/demo --data shapes:val
        edje tune runs/s0 runs/s6 --data blip:val.json --k 10 50 100 --out runs/tune
        edje tune runs/demo --data shapes:val --k 100 --token-dtypes bfloat16 --queries 500 --save
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    """Model folders, training workdirs or hub ids: several compare, say, deferred layers."""
    data: str
    """SPEC of a validation set: what is best on a test set was fitted to it."""
    k: tuple[int, ...] = (5, 10, 20)
    """Depths."""
    token_dtypes: tuple[TokenDtype, ...] = ("bfloat16", "int8", "int4")
    """Data types of stored tokens."""
    out: str = ""
    """Folder for tune.json and tune.png."""
    image_root: str = ""
    """Folder that relative image paths start from (default: the JSON's own)."""
    max_bad: float = 0.01
    """Share of the images that may be unreadable."""
    precision: float = 0.9
    """Share of the results that shall be right above the least score that is told."""
    queries: int = 0
    """Captions, and images, that are asked for, spread over the set, all of which stays to be
    found; 0 asks for all."""
    save: bool = False
    """Write each model's calibration.json, by which search and scores go from then on."""

    def run(self) -> None:
        from edje_jax.cli.tune import tune

        tune(
            self.models,
            self.data,
            k=self.k,
            token_dtypes=self.token_dtypes,
            out=self.out,
            image_root=self.image_root,
            max_bad=self.max_bad,
            precision=self.precision,
            save=self.save,
            queries=self.queries,
        )


@dataclass(frozen=True)
class Doctor:
    """Tell what is installed and where it computes, and known trouble with its remedy.

    Examples:
        edje doctor
    """

    def run(self) -> None:
        from edje_jax.cli.doctor import doctor

        doctor()


COMMANDS = (
    _named("train", Train)
    | _named("eval", Eval)
    | _named("data", Data)
    | _named("index", Index)
    | _named("search", Search)
    | _named("serve", Serve)
    | _named("tune", Tune)
    | _named("convert", Convert)
    | _named("push", Push)
    | _named("doctor", Doctor)
)


PARSED_LATER = ("train", "eval")
"""Commands that parse what follows their names: a config decides what its options are."""


def main(arguments: list[str]) -> int:
    """Parse, then let the command do its work."""
    if arguments and arguments[0] in PARSED_LATER:
        arguments = [arguments[0], "--", *arguments[1:]]
    tyro.cli(COMMANDS, args=arguments, prog="edje", description=__doc__).run()
    return 0


def entry() -> None:
    """The console script."""
    if sys.argv[1:2] == ["train"]:
        start_with_huge_pages()
    run_program(main)


if __name__ == "__main__":
    entry()
