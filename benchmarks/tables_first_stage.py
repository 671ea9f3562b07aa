"""Tables of heads of the first stage, from the results of `first_stage.py`."""

from typing import Any

from pages import interval, load_result, markdown

HEAD = (
    *("bytes", "R@1", "R@10", "R@50", "gain in R@1", "gain in R@10"),
    *("R@1, 10 reranked", "50", "200"),
)
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}


def tables() -> dict[str, str]:
    """Tables of drawn images and of built-in scenes, in both directions, by name."""
    return {
        f"{data} {direction}": table(load_result(f"first_stage_{data}")["stages"], direction)
        for data in ("emoji", "shapes")
        for direction in DIRECTIONS
    }


def table(stages: list[dict[str, Any]], direction: str) -> str:
    """Table of all stages in one direction; gains are over the stage that the result names."""
    by_name = {stage["name"]: stage for stage in stages}
    rows = []
    for stage in stages:
        found = stage[direction]
        over = by_name.get(found.get("over", ""))
        rows.append(
            [
                label(stage),
                f"{stage['bytes']:,}",
                *(
                    f"{found['mean'][depth]:.1f} {interval(found['interval'][depth])}"
                    for depth in ("R@1", "R@10")
                ),
                f"{found['mean']['R@50']:.1f}",
                *(gain(found, over[direction], depth) if over else "" for depth in ("R@1", "R@10")),
                *(f"{reranked(found, k):.1f}" for k in (10, 50, 200)),
            ]
        )
    return markdown((DIRECTIONS[direction], *HEAD), rows)


def label(stage: dict[str, Any]) -> str:
    """Name of a stage; trained ones stand out."""
    name = stage["name"].replace("principal ", "").replace("1024", "1,024").replace("2048", "2,048")
    return f"**{name}**" if stage["trained"] else name


def gain(found: dict[str, Any], over: dict[str, Any], depth: str) -> str:
    """Difference of mean recalls with the interval that the result has for it."""
    difference = found["mean"][depth] - over["mean"][depth]
    return f"{difference:+.1f} {interval(found['gain'][depth])}"


def reranked(found: dict[str, Any], k: int) -> float:
    """R@1 after the best k were reranked, the mean over runs."""
    values = [run[f"k={k}"] for run in found["reranked"]]
    return sum(values) / len(values)
