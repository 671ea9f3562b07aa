"""Commands that ask an index: `edje search` and `edje serve`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from edje_jax.config.captioner import CaptionScore
from edje_jax.config.model import InferencePrecision, RuntimeName
from edje_jax.first_stage.registry import FIRST_STAGES, check_first_stage

if TYPE_CHECKING:
    FirstStageName = str
else:
    FirstStageName = Literal[*FIRST_STAGES]

IndexStageName = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(FIRST_STAGES) + ",milvus:URI}",
        instance_from_str=lambda words: check_first_stage(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
"""Name of a first stage: one of `registry.FIRST_STAGES`, or milvus: and an address."""

Text = Annotated[
    str | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [] if value is None else [value],
    ),
]
"""Text, or None if it is not given; tyro by itself reads the word "None" as not given, too."""

On = Annotated[str, tyro.conf.arg(metavar="ray[://HOST:PORT]")]
"""Cluster of Ray."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of commands that open an index, which may be one behind a URL."""

    cache: str | None = None
    """Folder for copies of the files of an index behind a URL (default: in ~/.cache/edje_jax)."""
    cache_gigabytes: float | None = None
    """Room that the copies may take (default: 100); the tokens and thumbnails that were not used
    for longest are deleted, and fetched again when they are needed."""


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Options of commands that score pairs."""

    runtime: RuntimeName = "jax"
    """Runtime that scores pairs: jax, on all devices, or onnx: ONNX Runtime, on the CPU."""
    precision: InferencePrecision = "auto"
    """Precision of scoring; auto is float32 on a CPU, and bfloat16 on other devices."""


@dataclass(frozen=True)
class Search(CacheOptions, RuntimeOptions):
    """Search an index with words, or its captions with an image. In an index of videos, words also
    find the moment of each.

    Examples:
        edje search photos.index "two dogs on a beach"
        edje search photos.index "two dogs on a beach" --k 200 --top 5 --json
        edje search photos.index "two dogs on a beach" --min-score 0.5
        edje search photos.index "two dogs" --where "year >= 2010 and license == 'cc-by'"
        edje search photos.index "a dog" --not "on a beach" --not "a cat"
        edje search photos.index "a dog in snow" --image dog.jpg --image-weight 0.3
        edje search photos.index --like 2019/dog.jpg
        edje search photos.index --image dog.jpg --among images
        edje search coco.index --image dog.jpg
        edje search s3://bucket/photos.index "two dogs on a beach" --cache /fast/disk
        edje search photos.index "two dogs on a beach" --then captioner.index --then-weight 0.5
    """

    index: tyro.conf.Positional[str]
    """Folder of the index, or its URL, such as s3://bucket/photos.index."""
    query: tyro.conf.Positional[Text] = None
    """Text to search for, unless an image is given."""
    negatives: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="not", metavar="WORDS")
    ] = ()
    """Text that the images must not match; give it once for each."""
    image: str | None = None
    """An image to look for captions of; with a query or --among images, one to resemble. In an
    index of videos it may be a video."""
    like: Text = None
    """Id of an image of the index, to find more like it."""
    image_weight: float = 0.5
    """Weight of the image beside the query, from 0 to 1."""
    among: Literal["captions", "images"] = "captions"
    """Kind of item that an --image alone looks for."""
    k: int = 100
    """Candidates of the first stage that are reranked."""
    top: int = 10
    """Results to show."""
    min_score: float | None = None
    """Least score of a result, from 0 to 1: "nothing matches" is an answer then."""
    ids: str | None = None
    """File with an id on every line: only these images are searched."""
    where: Text = None
    """Filter by metadata: only images are searched for which it holds."""
    json: bool = False
    """Write results as JSON and nothing else."""
    details: bool = False
    """Have each result of --json tell the first stage and the seconds of every part."""
    then: str | None = None
    """Index of a second model over the same images, which reranks the best candidates; opened with
    the same --tokens-on, --cache, --runtime and --precision (default: none)."""
    then_k: int = 20
    """Candidates that the model of --then reranks; the rest of --k follows in the first order, with
    the first model's scores."""
    then_weight: float | None = None
    """Weight of its scores beside the first model's, from 0 to 1 (default: 1, which leaves those
    aside)."""
    then_caption_score: CaptionScore | None = None
    """Score of its model, a captioner: sum, mean or pmi (default: its own)."""
    then_model: str | None = None
    """Present path of the model of --then, if it was moved (default: where it was then)."""
    model: str | None = None
    """Present path of the index's model, if it was moved (default: where it was then)."""
    tokens_on: Literal["disk", "host", "device"] = "disk"
    """Memory that holds the tokens while the index is open."""
    first_stage: IndexStageName = "exact"
    """Search that finds the candidates; most are built once and kept in the index."""
    bits: int | None = None
    """Length of the codes that a first stage of codes compares (default: the longest)."""
    by_codes: int | None = None
    """Candidates that a first stage of codes finds, before they are rescored (default: ten times
    --k)."""
    by_projection: int | None = None
    """Candidates that are kept of these by the query's projection against their codes (default:
    all, without that step); by the embeddings, --k are kept then."""

    def run(self) -> None:
        from edje_jax.cli.search import search

        search(self)


@dataclass(frozen=True)
class Serve(CacheOptions, RuntimeOptions):
    """Serve an index: a search page at /, and the HTTP of a reranker.

    Examples:
        edje serve photos.index
        edje serve photos.index --host 0.0.0.0 --port 80 --api-key "$KEY" --tokens-on host
        edje serve photos.index --runtime onnx --precision int8
        edje serve photos.index --root-path /search --cors-origin https://shop.example
        edje serve /shared/photos.index --on ray --partitions 4 --replicas 2
    """

    index: tyro.conf.Positional[str]
    """Folder of the index, or its URL."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one of this machine's."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    api_key: Text = None
    """Key that clients have to send (default: that of the variable EDJE_API_KEY, or else none)."""
    cors_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Origin whose pages may ask, such as https://shop.example, or "*"; give it once for each."""
    root_path: str = "/"
    """Path that a reverse proxy puts before every other, such as /search."""
    model: str | None = None
    """Present path of the index's model, if it was moved (default: where it was then)."""
    tokens_on: Literal["disk", "host", "device"] = "disk"
    """Memory that holds the tokens."""
    first_stage: IndexStageName = "exact"
    """Search that finds the candidates; most are built once and kept in the index."""
    bits: int | None = None
    """Length of the codes that a first stage of codes compares (default: the longest)."""
    by_codes: int | None = None
    """Candidates that a first stage of codes finds, before they are rescored (default: ten times
    --k)."""
    by_projection: int | None = None
    """Candidates that are kept of these by the query's projection against their codes (default:
    all, without that step); by the embeddings, --k are kept then."""
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
    log_json: bool = False
    """Write the log as lines of JSON, one of them for each request."""
    traces: bool = False
    """Send OpenTelemetry traces, as the variables OTEL_EXPORTER_OTLP_ENDPOINT and so on say."""
    warm: bool = True
    """Compile every shape at the start; /ready answers 503 until that is done."""
    on: On | None = None
    """Cluster whose processes search and score: ray, the Ray cluster of RAY_ADDRESS or of this
    machine, or ray://HOST:PORT (default: this process does)."""
    partitions: int = 1
    """Parts into which --on ray divides the index, each in processes of its own; a request asks all
    of them."""
    replicas: int = 1
    """Processes for each part of the index with --on ray, among which requests are divided."""

    def run(self) -> None:
        from edje_jax.cli.serve import serve

        serve(self)
