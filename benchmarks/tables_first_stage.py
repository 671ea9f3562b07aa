"""Tables of heads of the first stage, from the results of `first_stage.py`."""

from pages import DIRECTIONS, Row, difference, in_brackets, load_result, markdown

HEAD = (
    *("bytes", "R@1", "R@10", "R@50", "gain in R@1", "gain in R@10"),
    *("R@1, 10 reranked", "50", "200"),
)


def tables() -> dict[str, str]:
    """Tables of drawn images and of built-in scenes, in both directions, by name."""
    return {
        f"{data} {direction}": table(load_result(f"first_stage_{data}")["stages"], direction)
        for data in ("emoji", "shapes")
        for direction in DIRECTIONS
    }


def table(stages: list[Row], direction: str) -> str:
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
                    f"{found['mean'][depth]:.1f} {in_brackets(found['interval'][depth])}"
                    for depth in ("R@1", "R@10")
                ),
                f"{found['mean']['R@50']:.1f}",
                *(gain(found, over[direction], depth) if over else "" for depth in ("R@1", "R@10")),
                *(f"{reranked(found, k):.1f}" for k in (10, 50, 200)),
            ]
        )
    return markdown((DIRECTIONS[direction], *HEAD), rows)


def label(stage: Row) -> str:
    """Name of a stage; trained ones stand out."""
    name = stage["name"].replace("principal ", "").replace("1024", "1,024").replace("2048", "2,048")
    return f"**{name}**" if stage["trained"] else name


def gain(found: Row, over: Row, depth: str) -> str:
    """Difference of mean recalls with the interval that the result has for it."""
    return difference(found["mean"][depth] - over["mean"][depth], found["gain"][depth])


def reranked(found: Row, k: int) -> float:
    """R@1 after the best k were reranked, the mean over runs."""
    values = [run[f"k={k}"] for run in found["reranked"]]
    return sum(values) / len(values)
