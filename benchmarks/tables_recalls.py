"""Tables of recalls of several trainings beside each other, from `recalls.py`."""

from typing import Any

from pages import interval, load_result, markdown
from tables_first_stage import DIRECTIONS

Row = dict[str, Any]


def tables() -> dict[str, str]:
    """Tables of deferred layers on built-in scenes and on drawn images, by name."""
    made = {}
    for name, file in (("scenes", "deferred_recalls"), ("emoji", "deferred_recalls_emoji")):
        groups = load_result(file)["groups"]
        made[f"{name} recalls"] = recalls(groups)
        made[f"{name} differences"] = differences(groups)
    return made


def recalls(groups: dict[str, Row]) -> str:
    """R@1 of each seed, their mean and deviation, for each number of deferred layers."""
    cells = []
    for name, group in groups.items():
        count = len(group["t2i"]["R@1"])
        line = [name.removeprefix("s"), ", ".join(map(str, range(count)))]
        for way in DIRECTIONS:
            found = group[way]
            spread = f"{found['mean']:.1f} ± {found['deviation']:.1f}"
            line += [", ".join(f"{value:.1f}" for value in found["R@1"]), spread]
        cells.append(line)
    return markdown(("s", "seeds", "text to image", "mean", "image to text", "mean"), cells)


def differences(groups: dict[str, Row]) -> str:
    """Difference to no deferred layers, seed by seed, with its interval."""
    cells = []
    for name, group in groups.items():
        each = [group[way].get("beside", ()) for way in DIRECTIONS]
        for seed, found in enumerate(zip(*each, strict=True)):
            shown = [f"{one['difference']:+.1f} {interval(one['interval'])}" for one in found]
            cells.append([name.removeprefix("s"), str(seed), *shown])
    return markdown(("s", "seed", *DIRECTIONS.values()), cells)


def windows() -> dict[str, str]:
    """Table of `docs/guide/training.md`: backbones trained on whole images and on windows."""
    head = ["`tiny_backbone` trained on"]
    for shown in DIRECTIONS.values():
        head += [f"{shown}, base", "reranked", "gain", "less whole images'"]
    cells = []
    for name, group in load_result("windows_recalls")["groups"].items():
        line = [name]
        for way in DIRECTIONS:
            found = group[way]
            base, after = found["base R@1"][0], found["R@1"]
            less = [
                f"{one['difference']:+.1f} {interval(one['interval'])}"
                for one in found.get("beside", ())
            ]
            line += [f"{base:.1f}", ", ".join(f"{value:.1f}" for value in after)]
            line += [f"{found['mean'] - base:+.1f}", ", ".join(less)]
        cells.append(line)
    return {"windows": markdown(head, cells)}
