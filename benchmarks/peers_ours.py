"""Our sides of `peers.py` and `growth.py`: a worker that needs no PyTorch.

A side is {"layout", "runtime", "precision"} with optional "queries", "k", "words" and "together";
{"tower": true} is the offline part: SigLIP2's vision tower and the adapter.
"""

from typing import Any
from weakref import WeakValueDictionary

import jax
import numpy as np
from pairs import Pairs, Settings, random_params, runtime_of
from side_workers import Side, Spec, answer_requests

from edje_jax.config.model import EdjeConfig
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.dual_encoder import IMAGE_BATCHES
from edje_jax.search.reranker import Reranker
from edje_jax.system.allocator import keep_freed_memory
from edje_jax.weights.backbone import expected_params
from edje_jax.weights.edje import expected_params as expected_edje_params

SIDE_BYTES, TOWER_BYTES = 1.5e9, 4e9
"""Memory that a side takes at most, with what compiling it takes."""


OPEN: WeakValueDictionary[tuple[str, ...], Runtime] = WeakValueDictionary()
"""Runtimes that sides hold."""


def open_runtime(folder: str, runtime: Any, precision: Any) -> Runtime:
    """Runtime of a model folder, as users open it; one for all sides that hold it."""
    key = folder, runtime, precision
    if (known := OPEN.get(key)) is None:
        loaded = Reranker.from_pretrained(folder, precision=precision, runtime=runtime)
        known = OPEN[key] = loaded.runtime
    return known


def scoring_side(spec: Spec, settings: Settings) -> Side:
    """Part "score": each query's candidates in a call of their own, or all queries "together"."""
    runtime = open_runtime(str(settings.model(spec["layout"])), spec["runtime"], spec["precision"])
    queries, k = spec.get("queries", settings.queries), spec.get("k", settings.k)
    task = Pairs(queries, k, runtime.config, **{x: spec[x] for x in ("words",) if x in spec})
    on_device = spec["runtime"] == "jax" and jax.default_backend() != "cpu"
    tokens: Any = jax.device_put(task.tokens) if on_device else task.tokens
    pairs = np.arange(queries * k)
    calls = [pairs] if spec.get("together") else np.split(pairs, queries)

    def score() -> np.ndarray:
        logits = []
        for rows in calls:
            first, last = task.owner[rows[0]], task.owner[rows[-1]]
            ids = task.ids[first : last + 1]
            logits.append(runtime.score_pairs(ids, tokens, task.owner[rows] - first, rows))
        return np.concatenate(logits)

    facts = {"parameters": parameters(settings.config), "stored": task.tokens.shape[1:]}
    return Side({"score": score}, facts)


def tower_side(settings: Settings) -> Side:
    """Part "read": images through the vision tower and the adapter, in the runtime's batches."""
    config, rng = settings.config, np.random.default_rng(0)
    weights = random_params(expected_params(config.backbone), 0.02)
    runtime = runtime_of(Pairs(1, 1, config), weights)
    size = config.backbone.vision.image_size
    pixels = rng.standard_normal((settings.images, size, size, 3), np.float32)
    # A batch that is not of a program's size would be filled up to one.
    step = settings.images if settings.images in IMAGE_BATCHES else 1

    def read() -> list[Any]:
        parts = [pixels[n : n + step] for n in range(0, len(pixels), step)]
        return [runtime.encode_pixels(part) for part in parts]

    return Side({"read": read}, {})


def parameters(config: EdjeConfig) -> dict[str, int]:
    """Parameters of the joint encoder, and with the vision tower and the adapter; nothing is
    allocated."""
    model, backbone = expected_edje_params(config), expected_params(config.backbone)

    def count(*trees: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(trees))

    online = count(model["joint_encoder"])
    return {"online": online, "total": online + count(model["adapter"], backbone["vision"])}


def serve(text: str) -> None:
    """Serve `peers.py` or `growth.py`."""
    keep_freed_memory()  # As the programs do
    settings = Settings.read(text)

    def build(spec: Spec) -> Side:
        return tower_side(settings) if spec.get("tower") else scoring_side(spec, settings)

    def needed(spec: Spec) -> float:
        return 0.0 if settings.tiny else TOWER_BYTES if spec.get("tower") else SIDE_BYTES

    answer_requests(build, needed, {"jax": jax.__version__})
