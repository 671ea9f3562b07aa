"""Graphs of ONNX Runtime kept in files, beside the model or in the cache folder.

A file's name holds a fingerprint of the parameters that it was made of and of the version of the
graphs: a model that has changed, or a newer version, does not find the file, and makes another in
its place. A file is written under a temporary name and then renamed, so that one which is there is
whole, and several processes may make it at once.
"""

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.model import EdjeConfig, to_dict
from edje_jax.system.cache_folder import cache_folder
from edje_jax.system.files import atomic_path
from edje_jax.system.processors import has_vnni
from edje_jax.weights.folder import Model
from edje_jax.weights.hub import exported
from edje_jax.weights.model_stamp import params_fingerprint

log = logging.getLogger(__name__)

FOLDER = "onnx-runtime"
"""Folder of the files, in that of the model or of the cache."""
VERSION = 1
"""Raised whenever the graphs of a model change."""

Part = Literal["text", "pairs"]

_one_at_a_time = threading.Lock()
"""Lock of the threads of this process, whose temporary names are the same."""


@dataclass(frozen=True)
class Export:
    """The online part of a model as graphs of ONNX Runtime, of one precision."""

    config: EdjeConfig
    params: PyTree[np.ndarray]
    """Parameters of the joint encoder or of the captioner, float32."""
    precision: Literal["float32", "int8"]
    source: str
    """Path or name that the model was loaded by."""

    @classmethod
    def of(cls, model: Model, precision: Literal["float32", "int8"]) -> "Export":
        """Export of a model that was loaded; nothing is made yet."""
        part = "captioner" if model.config.captioner else "joint_encoder"
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), model.params[part])
        return cls(model.config, params, precision, model.source)

    def session(self, part: Part) -> Any:
        """An `onnxruntime.InferenceSession` of a part, from its file if there is one.

        A call of it uses one thread, and several threads may call it at once.

        Raises:
            ModuleNotFoundError: there is no file, and to make one `onnx` is missing.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # Errors
        if not has_vnni():
            # Sums of products of uint8 and int8 would overflow; this makes both uint8.
            options.add_session_config_entry("session.x64quantprecision", "1")
        opened = partial(
            onnxruntime.InferenceSession, sess_options=options, providers=["CPUExecutionProvider"]
        )
        name = f"{part}-{self.precision}-{self.fingerprint}.onnx"
        with _one_at_a_time:
            for folder in self._folders():
                # A file that is damaged, or may not be read, is made again.
                with contextlib.suppress(Exception):
                    if (folder / name).exists():
                        return opened(folder / name)
            model = self._make(part)
            self._keep(name, model)
        return opened(model)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the parameters and shapes, and over the version of the graphs."""
        config, params = self.config, params_fingerprint(self.params)
        parts = [config.joint_encoder, *config.joint_heads.values()]
        others = [part for part in (config.captioner, config.video) if part]
        shapes = map(to_dict, [*parts, *others])
        told = json.dumps(
            [VERSION, params, config.num_tokens, config.max_text_length, *shapes], sort_keys=True
        )
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def _make(self, part: Part) -> bytes:
        try:
            from edje_jax.runtimes import onnx_captioner, onnx_graph
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the first use of a model by the runtime onnx needs more ({error}): pip install"
                " 'edje-jax[onnx]'"
            ) from error
        graphs = onnx_captioner if self.config.captioner else onnx_graph
        graph = {"text": graphs.text_graph, "pairs": graphs.pairs_graph}[part]
        made = graph(self.config, self.params, self.precision == "int8")
        return made.SerializeToString()

    def _keep(self, name: str, model: bytes) -> None:
        """Write a file into the first folder that takes it, in the place of older ones."""
        for folder in self._folders():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(model)
            except OSError as error:
                log.debug("%s: not kept there (%s)", folder, error)
                continue
            kind = name.rpartition("-")[0]
            for other in folder.glob(f"{kind}-*.onnx"):
                if other.name != name:
                    other.unlink(missing_ok=True)
            log.info("exported %s", folder / name)
            return
        log.warning(
            "%s: its export for the runtime onnx could not be kept, and is made again by each"
            " process; let its folder, or ~/.cache, be writable", self.source,
        )  # fmt: skip

    def _folders(self) -> Iterator[Path]:
        """Folders where files may be: beside a model that was named by its path, and the cache."""
        named = Path(self.source).expanduser()
        if named.is_dir():
            yield exported(named) / FOLDER
        if cache := cache_folder(FOLDER):
            place = str(named.resolve()) if named.exists() else self.source
            yield cache / hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:16]
