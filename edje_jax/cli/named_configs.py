"""Training configs by name: the files of the package `configs`.

The package stands at the top of a checkout and is installed as `edje_jax.configs`. An editable
install has it in the checkout alone, so both places are looked at. In either it is imported as
`edje_jax.configs`; its files import each other relatively.
"""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import edje_jax
from edje_jax.cli.program import UsageError

PACKAGE = "edje_jax.configs"


def choose_config(arguments: Sequence[str], usage: str) -> tuple[str, Any]:
    """The name and the value of the config that the first argument names: one of
    `config_names()`, or a Python file that defines `config`.

    Raises:
        UsageError: there is none of that name; the message suggests the nearest.
    """
    names = config_names()
    listed = f"configs: {', '.join(names)}"
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"which config?\n{usage}\n{listed}")
    name = arguments[0]
    if name.endswith(".py"):
        return Path(name).stem, _from_file(Path(name))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no config called {name!r}.{hint}\n{listed}")
    return name, load_config(name)


def load_config(name: str) -> Any:
    """The value of a named config.

    Raises:
        ModuleNotFoundError: there is none of that name.
    """
    return importlib.import_module(f"{_package().__name__}.{name}").config


def config_names() -> list[str]:
    """Names that `choose_config` knows, sorted."""
    return sorted(p.stem for p in configs_folder().glob("*.py") if p.stem != "__init__")


def configs_folder() -> Path:
    """Folder of the named configs: inside an installed package, beside it in a checkout.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    return Path(_package().__path__[0])


@cache
def _package() -> ModuleType:
    """The package of configs, imported under one name from wherever it is."""
    inside = Path(edje_jax.__file__).resolve().parent
    for folder in (inside / "configs", inside.parent / "configs"):
        if (init := folder / "__init__.py").exists():
            spec = importlib.util.spec_from_file_location(
                PACKAGE, init, submodule_search_locations=[str(folder)]
            )
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[PACKAGE] = module
            spec.loader.exec_module(module)
            return module
    raise FileNotFoundError(
        f"{inside / 'configs'}: no configs here, nor beside the package; install edje-jax again"
    )


def _from_file(path: Path) -> Any:
    """The value of a config in a file of the user's own.

    The file is imported as if it stood among the named configs, so that a copy of one of them still
    finds the config that it builds on.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such config file")
    spec = importlib.util.spec_from_file_location(f"{_package().__name__}.{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise UsageError(f"{path}: defines no value called `config`")
    return module.config
