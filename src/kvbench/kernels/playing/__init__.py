"""Recorded operations done again in C++ on a CPU: what small ones take in torch is getting there, not doing them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvbench.kernels.compiling import compiled
from kvbench.kernels.told import Call

SOURCE = Path(__file__).with_name("play.cpp")
DIMS = 4  # of tensors, at most
ALONG = 2  # the dimension along which play.cpp puts and takes
_MEND = "set engine=compiled, or CXX to another compiler"
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long
_COMPILED: Any = type(ctypes.pythonapi.Py_IncRef).__base__  # of every function of a library
_TYPES = {torch.bool: 0, torch.uint8: 0, torch.float32: 1, torch.int32: 2, torch.int64: 3}

Kind = IntEnum(
    "Kind",
    "CALL COPY CONVERT NEGATE SILU COS SIN NOT HIDE SOFTMAX LEAST PUT TAKE "
    "ADD SUBTRACT MULTIPLY REMAINDER DIVIDE LARGER SMALLER DIFFERS EQUALS ABOVE BELOW FROM UP_TO",
    start=0,
)


class Operation(ctypes.Structure):
    """One of those that play.cpp can do, as it has them."""

    _fields_: ClassVar = [
        ("kind", _LONG),
        ("type", _LONG),
        ("call", _POINTER),
        ("shape", _LONG * DIMS),
        ("places", _POINTER * 3),
        ("steps", _LONG * DIMS * 3),
        ("number", ctypes.c_double),
    ]
    kept: object  # what it reads and writes


class Playing:
    """Operations, one after the other.

    Args:
        operations: in the order in which they are done.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._kept = [operation.kept for operation in operations]
        self._operations = (Operation * len(operations))(*operations)

    def __call__(self) -> None:
        """Do them."""
        _library().play(self._operations, len(self._operations))


def of_call(call: Call) -> Operation | None:
    """Return a kernel's call as an operation; None for one that is no compiled code."""
    if not isinstance(call.kernel, _COMPILED):
        return None
    found = Operation(kind=Kind.CALL, call=ctypes.cast(call.kernel, _POINTER).value)
    found.places[0], found.kept = ctypes.addressof(call.given), call
    return found


def of_torch(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> list[Operation] | None:
    """Return what does an operation of torch's again, to what came of it; None for one that is not known here."""
    name = func.overloadpacket.__name__
    said = {key: value for key, value in kwargs.items() if key not in _OF_NO_MATTER and (key, value) != ("alpha", 1)}
    written = said.pop("out", args[0] if func._schema.is_mutable else out)
    rule = _RULES.get(name) if said.keys() <= _SAID.get(name, set()) else None
    return None if rule is None else rule(written, *args, **said)


def _made(kind: Kind, out: Tensor, *given: Tensor, number: float = 0) -> list[Operation] | None:
    """Return an operation on numbers that lie anywhere, what it is given spread to the shape of what comes of it."""
    given = (*given, given[-1])[:2]
    return _placed(kind, out.shape, (out, *(each.expand(out.shape) for each in given)), number)


def _placed(kind: Kind, shape: Sequence[int], places: Sequence[Tensor], number: float = 0) -> list[Operation] | None:
    kind_of = _TYPES.get(places[1].dtype)
    if len(shape) > DIMS or kind_of is None or any(each.device.type != "cpu" for each in places):
        return None
    made, more = Operation(kind=kind, type=kind_of, number=number), DIMS - len(shape)
    for place, each in enumerate(places):
        made.places[place] = each.data_ptr()
        made.steps[place][:] = [*[0] * more, *each.stride()]
    made.shape[:] = [*[1] * more, *shape]
    made.kept = places
    return [made]


def _are(dtype: torch.dtype, *tensors: Any) -> bool:
    return all(isinstance(each, Tensor) and each.dtype == dtype for each in tensors)


def _floats(kind: Kind, out: Tensor, given: Tensor, *others: Any) -> list[Operation] | None:
    return _made(kind, out, given) if _are(torch.float32, out, given) and not others else None


def _numbers(kind: Kind, out: Tensor, one: Any, other: Any) -> list[Operation] | None:
    """Return an operation on two numbers of a kind, of which the second may be the same everywhere."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor | int | float):
        return None
    if not isinstance(other, Tensor):
        other = torch.tensor(other, dtype=one.dtype) if one.is_floating_point() or isinstance(other, int) else None
    compares = kind >= Kind.DIFFERS
    known = one.dtype in _NUMBERS and _are(one.dtype, one, other) and (compares or out.dtype == one.dtype)
    return _made(kind, out, one, other) if known else None


def _integers(kind: Kind, out: Tensor, one: Any, other: Any, rounding_mode: str = "floor") -> list[Operation] | None:
    """Return an operation on integers and one other that is not 0."""
    known = isinstance(other, int) and other != 0 and not out.is_floating_point() and rounding_mode == "floor"
    return _numbers(kind, out, one, other) if known else None


def _clamp(out: Tensor, given: Tensor, low: Any = None, high: Any = None) -> list[Operation] | None:
    first = [] if low is None else _numbers(Kind.LARGER, out, given, low)
    if first is None or high is None:
        return first
    then = _numbers(Kind.SMALLER, out, out if first else given, high)
    return None if then is None else first + then


def _add_product(out: Tensor, given: Tensor, one: Tensor, other: Tensor, value: Any = 1) -> list[Operation] | None:
    if out is given or value not in (1, -1):
        return None
    product = _numbers(Kind.MULTIPLY, out, one, other)
    total = _numbers(Kind.ADD if value == 1 else Kind.SUBTRACT, out, given, out)
    return None if product is None or total is None else product + total


def _hide(out: Tensor, given: Tensor, mask: Any, number: Any) -> list[Operation] | None:
    known = _are(torch.float32, out, given) and _are(torch.bool, mask) and isinstance(number, int | float)
    return _made(Kind.HIDE, out, given, mask, number=float(number)) if known else None


def _not(out: Tensor, given: Tensor) -> list[Operation] | None:
    return _made(Kind.NOT, out, given) if _are(torch.bool, out, given) else None


def _softmax(out: Tensor, given: Tensor, dim: int, half_to_float: bool) -> list[Operation] | None:
    known = _are(torch.float32, out, given) and dim in (-1, given.dim() - 1) and out.stride(-1) == given.stride(-1) == 1
    return _made(Kind.SOFTMAX, out, given) if known else None


def _least(out: Tensor, given: Tensor, dim: int | None = None, keepdim: bool = False) -> list[Operation] | None:
    if given.dtype != torch.float32 or dim not in (-1, given.dim() - 1):
        return None
    places = out if keepdim else out[..., None]
    return _placed(Kind.LEAST, given.shape, (places, given, given))


def _copy(out: Tensor, *given: Any) -> list[Operation] | None:
    source = [each for each in given if isinstance(each, Tensor)][-1]
    if source.dtype == out.dtype:
        return _made(Kind.COPY, out, source)
    known = source.dtype in _NUMBERS and out.dtype in _NUMBERS
    return _made(Kind.CONVERT, out, source, number=_TYPES[out.dtype]) if known else None


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
    if not isinstance(given, Tensor) or given.dtype != whole.dtype:
        return None
    return _along(Kind.PUT, dim, index, (whole, given))


def _take(out: Tensor, whole: Tensor, dim: int, index: Tensor) -> list[Operation] | None:
    return _along(Kind.TAKE, dim, index, (out, whole)) if out.shape == index.shape else None


def _put_rows(out: Tensor, whole: Tensor, dim: int, index: Tensor, given: Tensor) -> list[Operation] | None:
    return _put(out, whole, dim, _spread(index, given, dim), given)


def _take_rows(out: Tensor, whole: Tensor, dim: int, index: Tensor) -> list[Operation] | None:
    return _take(out, whole, dim, _spread(index, out, dim))


def _spread(index: Tensor, rows: Tensor, dim: int) -> Tensor:
    """Return which row each number [...] belongs to, of an index of rows."""
    return index.view([-1 if each == dim % rows.dim() else 1 for each in range(rows.dim())]).expand(rows.shape)


def _along(kind: Kind, dim: int, index: Tensor, places: Sequence[Tensor]) -> list[Operation] | None:
    """Return what moves numbers along a dimension, which becomes the third of four."""
    if index.dim() > DIMS or index.dtype != torch.int64:
        return None
    filled = [
        each[(..., *[None] * (DIMS - index.dim()))].movedim(dim % index.dim(), ALONG) for each in (*places, index)
    ]
    return _placed(kind, filled[-1].shape, filled)


_NUMBERS = (torch.float32, torch.int32, torch.int64)
_OF_NO_MATTER = ("dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format")  # to what is there already
_SAID = {"div": {"rounding_mode"}, "addcmul": {"value"}}  # by name, where it matters
_RULES: dict[str, Callable[..., list[Operation] | None]] = {
    **{name: partial(_floats, kind) for name, kind in (("neg", Kind.NEGATE), ("silu", Kind.SILU))},
    **{name: partial(_floats, kind) for name, kind in (("cos", Kind.COS), ("sin", Kind.SIN))},
    **{
        name + ending: partial(_numbers, kind)
        for name, kind in (("add", Kind.ADD), ("sub", Kind.SUBTRACT), ("mul", Kind.MULTIPLY))
        for ending in ("", "_")
    },
    "maximum": partial(_numbers, Kind.LARGER),
    "minimum": partial(_numbers, Kind.SMALLER),
    "ne": partial(_numbers, Kind.DIFFERS),
    "eq": partial(_numbers, Kind.EQUALS),
    "gt": partial(_numbers, Kind.ABOVE),
    "lt": partial(_numbers, Kind.BELOW),
    "ge": partial(_numbers, Kind.FROM),
    "le": partial(_numbers, Kind.UP_TO),
    "remainder": partial(_integers, Kind.REMAINDER),
    "floor_divide": partial(_integers, Kind.DIVIDE),
    "div": partial(_integers, Kind.DIVIDE),
    "clamp": _clamp,
    "addcmul": _add_product,
    "masked_fill": _hide,
    "masked_fill_": _hide,
    "bitwise_not": _not,
    "_softmax": _softmax,
    "argmin": _least,
    "cat": _joined,
    "copy_": _copy,
    "_to_copy": _copy,
    "clone": _copy,
    "scatter_": _put,
    "gather": _take,
    "index_copy_": _put_rows,
    "index_select": _take_rows,
}


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(SOURCE, {}, _MEND)))
    library.play.argtypes, library.play.restype = [ctypes.POINTER(Operation), _LONG], None
    return library
