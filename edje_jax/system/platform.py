"""Platform that programs are made for, which is not always the one that makes them."""

from contextlib import AbstractContextManager

import jax

_PROGRAMS_FOR = jax.make_user_context(None)
"""Platform that was named; a part of the key under which JAX keeps traced programs."""


def platform() -> str:
    """Platform of the programs that are traced now: "cpu", "gpu" or "tpu".

    That of JAX's default backend, except inside `programs_for`.
    """
    return _PROGRAMS_FOR.value or jax.default_backend()


def programs_for(name: str) -> AbstractContextManager[None]:
    """Trace programs for another platform than this process has.

    A process without a TPU can compile for one (`jax.experimental.topologies`). What depends on the
    platform while a program is traced, such as the choice of an attention kernel, follows this.
    """
    return _PROGRAMS_FOR(name)
