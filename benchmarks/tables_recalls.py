"""Tables of recalls of several trainings beside each other, from `recalls.py`."""

from pages import DIRECTIONS, Row, difference, each, load_result, markdown


def deferred() -> dict[str, str]:
    """Tables of deferred layers on built-in scenes and on drawn images, by name."""
    made = {}
    for name, file in (("scenes", "deferred_recalls"), ("emoji", "deferred_recalls_emoji")):
        groups = load_result(file)["groups"]
        made[f"{name} recalls"] = recalls(groups)
        made[f"{name} differences"] = differences(groups)
    return made


def recalls(groups: dict[str, Row]) -> str:
    """R@1 of each run, their mean and deviation, for each number of deferred layers."""
    cells = []
    for name, group in groups.items():
        line = [name.removeprefix("s")]
        for way in DIRECTIONS:
            found = group[way]
            line += [each(found["R@1"]), f"{found['mean']:.1f} ± {found['deviation']:.1f}"]
        cells.append(line)
    return markdown(("s", "text to image, seeds 0, 1, ...", "mean", "image to text", "mean"), cells)


def differences(groups: dict[str, Row]) -> str:
    """Difference to no deferred layers, run by run, with its interval."""
    cells = []
    for name, group in groups.items():
        beside = [group[way].get("beside", ()) for way in DIRECTIONS]
        for seed, found in enumerate(zip(*beside, strict=True)):
            cells.append(
                [
                    name.removeprefix("s"),
                    str(seed),
                    *(difference(one["difference"], one["interval"]) for one in found),
                ]
            )
    return markdown(("s", "seed", *DIRECTIONS.values()), cells)


def windows() -> dict[str, str]:
    """Table of `docs/guide/training.md`: backbones trained on whole images and on windows."""
    head = ["`tiny_backbone` trained on"]
    for shown in DIRECTIONS.values():
        head += [f"{shown}, base", "reranked", "reranked, less whole images'"]
    cells = []
    for name, group in load_result("windows_recalls")["groups"].items():
        line = [name]
        for way in DIRECTIONS:
            found = group[way]
            base = found["base R@1"][0]
            less = ", ".join(
                difference(one["difference"], one["interval"]) for one in found.get("beside", ())
            )
            line += [f"{base:.1f}", each(found["R@1"]), less]
        cells.append(line)
    return {"windows": markdown(head, cells)}
