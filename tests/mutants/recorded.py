"""Tapes that leave something out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from kvbench.engines import tape
from kvbench.kernels import few_rows, playing, told
from kvbench.kernels.packed import native
from tests.mutants.core_mutant import Mutant
from tests.support import few_rows as support

DECODED = partial(support.recorded_is_compiled, "baseline", "llama")
PACKED = partial(support.recorded_is_compiled, "quantization_8bit", "llama")


def untold(kernel: Callable[[int], object], given: ctypes.Structure, *kept: object) -> None:
    """Call a kernel, and tell nobody."""
    kernel(ctypes.addressof(given))


def all_but(name: str, known: Any, func: Any, *given: Any) -> Any:
    """Take an operation for nothing."""
    return [] if func.overloadpacket.__name__ == name else known(func, *given)


class Deaf:
    """Tells nobody, in the place of one module's `told`."""

    call = staticmethod(untold)


def _without(name: str) -> tuple[object, str, object]:
    return playing, "of_torch", partial(all_but, name, playing.of_torch)


MUTANTS = (
    Mutant(name="kernels are not told of", patches=((told, "call", untold),), killed_by=(DECODED, PACKED)),
    Mutant(name="nor those of packed rows", patches=((native, "told", Deaf),), killed_by=(PACKED,)),
    Mutant(name="norms are not told of", patches=((few_rows, "told", Deaf),), killed_by=(DECODED,)),
    Mutant(name="nothing is kept", patches=(_without("scatter_"),), killed_by=(DECODED,)),
    Mutant(name="residuals stay", patches=(_without("add"),), killed_by=(DECODED,)),
    Mutant(name="tokens stay the same", patches=((tape, "_again", lambda *_: None),), killed_by=(DECODED,)),
)
