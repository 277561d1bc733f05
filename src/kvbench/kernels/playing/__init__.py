"""Recorded operations done again in C++ on a CPU: what small ones take in torch is getting there, not doing them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from enum import IntEnum, auto
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvbench.kernels.compiling import compiled
from kvbench.kernels.told import Call

SOURCE = Path(__file__).with_name("play.cpp")
DIMS = 4  # of tensors, at most
_MEND = "set engine=compiled, or CXX to another compiler"
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long
_COMPILED: Any = type(ctypes.pythonapi.Py_IncRef).__base__  # of every function of a library


class Kind(IntEnum):
    """What play.cpp can do."""

    CALL = 0
    COPY_1 = auto()
    COPY_4 = auto()
    COPY_8 = auto()
    NEGATE = auto()
    SILU = auto()
    ADD = auto()
    MULTIPLY = auto()
    SCALE = auto()
    HIDE = auto()
    DIFFERS = auto()
    NOT = auto()
    SOFTMAX = auto()
    PUT = auto()


class Operation(ctypes.Structure):
    """One of them, as play.cpp has it."""

    _fields_: ClassVar = [
        ("kind", _LONG),
        ("call", _POINTER),
        ("shape", _LONG * DIMS),
        ("places", _POINTER * 3),
        ("steps", _LONG * DIMS * 3),
        ("number", ctypes.c_double),
    ]


def playing(operations: Sequence[Operation]) -> Callable[[], object]:
    """Return what does operations one after the other; whatever they read and write has to outlive it."""
    whole = (Operation * len(operations))(*operations)
    return partial(_library().play, whole, len(whole))


def is_playing(call: Callable[[], object]) -> bool:
    """Return whether C++ does all of a call."""
    return isinstance(call, partial) and isinstance(call.func, _COMPILED)


def of_call(call: Call) -> Operation | None:
    """Return a kernel's call as an operation; None for one that is no compiled code."""
    if not isinstance(call.kernel, _COMPILED):
        return None
    found = Operation(kind=Kind.CALL, call=ctypes.cast(call.kernel, _POINTER).value)
    found.places[0] = ctypes.addressof(call.given)
    return found


def of_torch(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> list[Operation] | None:
    """Return what does an operation of torch's again, to what came of it; None for one that is not known here."""
    name = func.overloadpacket.__name__
    rule = _RULES.get(name.removesuffix("_") if func._schema.is_mutable else name)
    if rule is None or any(key not in _OF_NO_MATTER and value != 1 for key, value in kwargs.items()):
        return None
    return rule(args[0] if func._schema.is_mutable else out, *args)


def _made(kind: Kind, out: Tensor, *given: Tensor, number: float = 0) -> list[Operation] | None:
    """Return an operation on numbers that lie anywhere, what it is given spread to the shape of what comes of it."""
    if out.dim() > DIMS or any(each.device.type != "cpu" for each in (out, *given)):
        return None
    made = Operation(kind=kind, number=number)
    given = (*given, given[-1])[:2]
    for place, each in enumerate((out, *(one.expand(out.shape) for one in given))):
        made.places[place] = each.data_ptr()
        made.steps[place][:] = [*[0] * (DIMS - out.dim()), *each.stride()]
    made.shape[:] = [*[1] * (DIMS - out.dim()), *out.shape]
    return [made]


def _are(dtype: torch.dtype, *tensors: Any) -> bool:
    return all(isinstance(each, Tensor) and each.dtype == dtype for each in tensors)


def _unary(kind: Kind, out: Tensor, given: Tensor) -> list[Operation] | None:
    return _made(kind, out, given) if _are(torch.float32, out, given) else None


def _add(out: Tensor, one: Tensor, other: Any) -> list[Operation] | None:
    return _made(Kind.ADD, out, one, other) if _are(torch.float32, out, one, other) else None


def _multiply(out: Tensor, one: Tensor, other: Any) -> list[Operation] | None:
    if isinstance(other, int | float) and _are(torch.float32, out, one):
        return _made(Kind.SCALE, out, one, number=float(other))
    return _made(Kind.MULTIPLY, out, one, other) if _are(torch.float32, out, one, other) else None


def _hide(out: Tensor, given: Tensor, mask: Tensor, number: Any) -> list[Operation] | None:
    known = _are(torch.float32, out, given) and mask.dtype == torch.bool and isinstance(number, int | float)
    return _made(Kind.HIDE, out, given, mask, number=float(number)) if known else None


def _differs(out: Tensor, given: Tensor, number: Any) -> list[Operation] | None:
    known = given.dtype == torch.int32 and isinstance(number, int)
    return _made(Kind.DIFFERS, out, given, number=float(number)) if known else None


def _not(out: Tensor, given: Tensor) -> list[Operation] | None:
    return _made(Kind.NOT, out, given) if _are(torch.bool, out, given) else None


def _softmax(out: Tensor, given: Tensor, dim: int, half_to_float: bool) -> list[Operation] | None:
    last = given.dim() - 1
    known = _are(torch.float32, out, given) and dim in (-1, last) and out.stride(-1) == given.stride(-1) == 1
    return _made(Kind.SOFTMAX, out, given) if known else None


def _copy(out: Tensor, *given: Any) -> list[Operation] | None:
    source, sizes = [each for each in given if isinstance(each, Tensor)][-1], (1, 4, 8)
    if source.dtype != out.dtype or out.dtype.itemsize not in sizes:
        return None
    return _made((Kind.COPY_1, Kind.COPY_4, Kind.COPY_8)[sizes.index(out.dtype.itemsize)], out, source)


def _joined(out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> list[Operation] | None:
    found: list[Operation] = []
    at = 0
    for part in parts:
        one = _copy(out.narrow(dim, at, part.shape[dim]), part) if part.dim() == out.dim() else None
        if one is None:
            return None
        found += one
        at += part.shape[dim]
    return found


def _put(out: Tensor, whole: Tensor, dim: int, index: Tensor, given: Any) -> list[Operation] | None:
    """Return what puts numbers of four bytes [B, G, t] or [B, G, t, D] along the third dimension."""
    if (
        out is not whole
        or not isinstance(given, Tensor)
        or dim != 2
        or whole.dim() not in (3, 4)
        or whole.dtype.itemsize != 4
    ):
        return None
    if whole.device.type != "cpu" or any(mine < size for mine, size in zip(given.shape, index.shape, strict=True)):
        return None
    made = Operation(kind=Kind.PUT)
    for place, each in enumerate((whole, given, index)):
        made.places[place] = each.data_ptr()
        made.steps[place][:] = [*each.stride(), *[0] * (DIMS - each.dim())]
    made.shape[:] = [*index.shape, *[1] * (DIMS - index.dim())]
    return [made]


_OF_NO_MATTER = ("dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format")  # to what is there already
_RULES: dict[str, Callable[..., list[Operation] | None]] = {
    "neg": partial(_unary, Kind.NEGATE),
    "silu": partial(_unary, Kind.SILU),
    "add": _add,
    "mul": _multiply,
    "masked_fill": _hide,
    "ne": _differs,
    "bitwise_not": _not,
    "_softmax": _softmax,
    "cat": _joined,
    "copy": _copy,
    "_to_copy": _copy,
    "clone": _copy,
    "scatter": _put,
}


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(SOURCE, {}, _MEND)))
    library.play.argtypes, library.play.restype = [ctypes.POINTER(Operation), _LONG], None
    return library
