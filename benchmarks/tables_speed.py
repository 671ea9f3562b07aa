"""Tables of time and memory, each from the result file of one script."""

from collections.abc import Mapping

from pages import Row, load_result, markdown

GB = 1e9


def measured() -> dict[str, str]:
    """Tables of `docs/measured.md`: search, reading of images and of videos, large evaluations."""
    frames = load_result("video_frames")["frames per second"]
    return {
        "search": search(load_result("search")["sizes"]),
        "reading": reading(load_result("data")["pictures per second"]),
        "videos": videos(frames["10 s"], frames["100 s"]),
        "large evaluations": evaluations(load_result("coco_shaped")["shapes"]),
    }


def parts_of_a_batch() -> dict[str, str]:
    """Table of `docs/guide/training.md`: a step in parts."""
    cells = [
        [parts, f"{(at['peak_bytes'] - at['bytes_before']) / GB:.2f} GB", f"{at['seconds']:.1f}"]
        for parts, at in load_result("accumulate")["parts"].items()
    ]
    head = ("`--accumulate`", "what the step adds at its peak", "seconds")
    return {"parts of a batch": markdown(head, cells)}


def search(sizes: Mapping[str, Row]) -> str:
    """Milliseconds of a query's parts, by the number of images."""
    parts = {
        "first stage, exact": "exact",
        "first stage, faiss flat": "faiss-flat",
        "reading 100 rows of tokens from disk": "gather, disk",
        "reranking 100, MiniLM-L12 of full size in float32": "rerank",
    }
    cells = [
        [shown, *(part_of_query(int(images), at, part) for images, at in sizes.items())]
        for shown, part in parts.items()
    ]
    return markdown(("", *(f"{int(images):,}" for images in sizes)), cells)


def part_of_query(images: int, at: Row, part: str) -> str:
    """Median milliseconds; of tokens fewer rows may be there than images."""
    shown = digits(at[part]["p50"])
    rows = at["rows of tokens"]
    return f"{shown} (of {rows:,} rows)" if part == "gather, disk" and rows != images else shown


def reading(rates: Mapping[str, Row]) -> str:
    """Images a second of every way to read them."""
    return markdown(
        ("side", "images a second, mean of two rounds (least to most)"),
        ([side, spread(at)] for side, at in rates.items()),
    )


def videos(short: Mapping[str, Row], long: Mapping[str, Row]) -> str:
    """Frames a second of every way to read videos, for short and for long ones."""
    head = (
        "side",
        "frames a second, videos of 10 s: median of five rounds (least to most)",
        "of 100 s",
    )
    return markdown(head, ([side, spread(at), spread(long[side])] for side, at in short.items()))


def spread(at: Row) -> str:
    """Median with the least and most of the rounds."""
    return f"{at['median']:,.0f} ({at['least']:,.0f} to {at['most']:,.0f})"


def evaluations(shapes: Mapping[str, Row]) -> str:
    """Time and memory of evaluations as large as two public sets'."""
    names = {"coco": "COCO", "flickr30k": "Flickr30k"}
    cells = []
    for key, at in shapes.items():
        encoder = at["joint_encoder"].split(",")[0].removesuffix("-H384")
        what = f"{names[key]}, {at['pictures']:,} images, {at['captions']:,} captions, {encoder}"
        scored = "all" if at["pairs_scored"] == at["pairs"] else f"{at['pairs_scored']:,}"
        times = [f"{at['ms_per_pair']:.1f} ms", f"{60 * at['hours_for_all_pairs']:.0f} min"]
        seconds = at["seconds"]
        rest = seconds["files"] + seconds["first stage, intervals, calibration"]
        memory = f"{at['resident_peak_bytes'] / GB:.2f} GB"
        cells.append([what, f"{at['pairs']:,}", scored, *times, f"{rest:.1f} s", memory])
    head = ("", "pairs", "of which scored", "a pair", "all pairs", "the rest", "peak memory")
    return markdown(head, cells)


def hamming() -> dict[str, str]:
    """Table of `docs/first-stage.md`: milliseconds of a search by codes."""
    rows = load_result("hamming")["rows"]
    ways = ("popcount", "product", "numpy", "faiss")
    cells = []
    for row in sorted(rows, key=lambda row: (row["queries"], row["bits"])):
        times = [digits(row["milliseconds"][way]["median"]) for way in ways]
        cells.append([f"{row['bits']:,}", str(row["queries"]), *times])
    head = ("bits", "queries at once", "XOR and count, JAX", "product of -1 and 1, JAX", "NumPy")
    return {"codes": markdown((*head, "faiss"), cells)}


def large_indexes() -> dict[str, str]:
    """Table of `docs/large-indexes.md`: opening an index and searching it, by its images."""
    largest = load_result("index_scale")
    cells = []
    for at in (*largest["smaller"], largest):
        cells.append(
            [
                f"10^{len(str(at['images'])) - 1}",
                f"{at['open_seconds']:.2f} s",
                f"{at['open_anonymous_mb']:.1f} MB",
                f"{at['first_search_seconds']:.2f} s",
                f"{1000 * at['next_search_seconds']:.0f} ms",
                *(f"{digits(at['p50_ms'][way])} ms" for way in ("codes", "faiss-ivf", "exact")),
            ]
        )
    head = ("images", "opening", "anonymous memory", "first search", "next ones")
    return {"sizes": markdown((*head, "`codes`", "`faiss-ivf`", "`exact`"), cells)}


def digits(value: float) -> str:
    """Milliseconds with two digits that count, and no fraction from 10 on."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:,.0f}"
