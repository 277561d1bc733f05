"""Tapes that leave something out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from kvbench.engines import tape
from kvbench.kernels import few_rows, told
from kvbench.kernels.packed import native
from tests.mutants.core_mutant import Mutant
from tests.support import few_rows as support

again = tape._again
DECODED = partial(support.recorded_is_compiled, "baseline", "llama")
PACKED = partial(support.recorded_is_compiled, "quantization_8bit", "llama")


def untold(kernel: Callable[[int], object], given: ctypes.Structure, *kept: Tensor) -> None:
    """Call a kernel, and tell nobody."""
    kernel(ctypes.addressof(given))


def all_but(name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Callable[[], object] | None:
    """Take an operation for nothing."""
    return None if func.overloadpacket.__name__ == name else again(func, args, kwargs, out)


class Deaf:
    """Tells nobody, in the place of one module's `told`."""

    call = staticmethod(untold)


MUTANTS = (
    Mutant(name="kernels are not told of", patches=((told, "call", untold),), killed_by=(DECODED, PACKED)),
    Mutant(name="nor those of packed rows", patches=((native, "told", Deaf),), killed_by=(PACKED,)),
    Mutant(name="norms are not told of", patches=((few_rows, "told", Deaf),), killed_by=(DECODED,)),
    Mutant(name="nothing is kept", patches=((tape, "_again", partial(all_but, "scatter_")),), killed_by=(DECODED,)),
    Mutant(name="residuals stay", patches=((tape, "_again", partial(all_but, "add")),), killed_by=(DECODED,)),
)
