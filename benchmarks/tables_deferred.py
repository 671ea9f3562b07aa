"""Tables of deferred layers: what they do to recall, to the choice of a model, and to speed."""

import tables_recalls
from pages import DIRECTIONS, Row, load_result, markdown

TUNED = {
    "runs/four-layers": "four layers",
    "runs/demo": "demo, three layers",
    "runs/published-layout": "published layout, four layers",
}
"""Models of `tune.json`, and what the page calls them."""


def tables() -> dict[str, str]:
    """All tables of the page, by name."""
    return {
        **tables_recalls.deferred(),
        "tune": tuned(load_result("tune")["choices"]),
        "speed": speed(load_result("rerank_deferred")["sides"]),
    }


def tuned(choices: list[Row]) -> str:
    """Recall, speed and time of each model at k = 10 in bfloat16; * is on the Pareto front."""
    asked = {each["model"]: each for each in choices if each["k"] == 10 and in_bfloat16(each)}
    cells = []
    for model, name in TUNED.items():
        at = asked[model]
        rate = at["pairs_per_second"]
        recalls = [f"{at[way]:.1f}" for way in ("t2i", "i2t")]
        made = ["*" if at["on_front"] else "", name, str(at["deferred_layers"])]
        made += [at["online_vision"], *recalls]
        cells.append([*made, f"{rate:,.0f}", f"{1000 * at['k'] / rate:.1f}"])
    head = ("", "model", "s", "online vision", *DIRECTIONS.values(), "pairs/s", "ms a query")
    return markdown(head, cells)


def in_bfloat16(choice: Row) -> bool:
    """Whether a choice keeps tokens in bfloat16."""
    return choice["token_dtype"] == "bfloat16"


def speed(sides: dict[str, Row]) -> str:
    """Pairs a second by deferred layers and what online layers do to vision rows."""
    first = sides["ours"]["pairs_per_second"]
    cells = []
    for layers, vision in ((0, ""), (6, ""), (9, ""), (6, "attended"), (9, "attended")):
        suffix = f", s = {layers}" * bool(layers) + f", {vision}" * bool(vision)
        rate = sides[f"ours{suffix}"]["pairs_per_second"]
        times = rate / first
        cells.append(
            [
                str(layers),
                vision or "updated",
                f"{rate:.1f}",
                "1" if not layers else f"{times:.1f}" if times >= 10 else f"{times:.2f}",
                f"{sides[f'torch float32{suffix}']['pairs_per_second']:.1f}",
            ]
        )
    head = ("s", "online vision", "pairs/s", "times s = 0", "PyTorch's module, pairs/s")
    return markdown(head, cells)
