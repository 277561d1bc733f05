"""A few rows against a large matrix in C++ on a CPU: what a decode step does with weights, keys and values."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.kernels.compiling import compiled, compiler

SOURCE = Path(__file__).with_name("rows.cpp")
LANES = 16  # numbers of a row that are taken at a time
DTYPES = (torch.float32, torch.bfloat16)
_MEND = "set engine=eager, or CXX to another compiler"
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why matrices of this dtype on this device cannot be read, or None."""
    if device.type != "cpu":
        return f"is for a CPU, and the model is on {device}; set engine=eager or model.device=cpu"
    if dtype not in DTYPES:
        return "reads float32 and bfloat16; set engine=eager, or model.dtype=float32 or bfloat16"
    if compiler() is None:
        return "needs a C++ compiler, and found none (CXX, g++, clang++); set engine=eager"
    return None


def fits(width: int) -> bool:
    """Return whether rows of so many numbers can be read."""
    return width % LANES == 0


def products(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the products of rows with the rows of a matrix [..., r, n], float32.

    Args:
        rows: [..., r, K], float32.
        matrix: [..., n, K] of the same leading dimensions, rows one behind the other; float32 or bfloat16.
        bias: added to them [n], float32.
    """
    rows = rows.contiguous()
    out = rows.new_empty(*rows.shape[:-1], matrix.shape[-2])
    given = _given(matrix, rows, bias, out, count=rows.shape[-2], parts=1)
    _library().products(ctypes.byref(given), matrix.dtype == torch.bfloat16)
    return out


def sums(weights: Tensor, matrix: Tensor) -> Tensor:
    """Return the sums of a matrix's rows by weights [..., r, K], float32.

    Args:
        weights: [..., r, n], float32.
        matrix: as of `products`.
    """
    weights = weights.contiguous()
    sets = matrix.shape[:-2].numel()
    parts = 1 if sets >= torch.get_num_threads() else torch.get_num_threads()
    out = weights.new_empty(parts, *weights.shape[:-1], matrix.shape[-1])
    given = _given(matrix, weights, None, out, count=weights.shape[-2], parts=parts)
    _library().sums(ctypes.byref(given), matrix.dtype == torch.bfloat16)
    return out[0] if parts == 1 else out.sum(dim=0)


@dataclass(frozen=True)
class Entries:
    """Keys or values as the model made them, for attention to read.

    Args:
        data: [B, G, m, D], as `products` takes a matrix.
    """

    data: Tensor

    outlier_entries: ClassVar[int] = 0
    sink_entries: ClassVar[int] = 0

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.data.shape[1]

    @property
    def exact(self) -> int:
        """Entries that are as the model made them: all."""
        return self.data.shape[2]

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32."""
        return products(rows.float(), self.data)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]."""
        return sums(weights.float(), self.data).to(self.data.dtype)


class _Given(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, _POINTER) for name in ("matrix", "rows", "bias", "out")),
        *((name, _LONG) for name in ("sets", "step", "entries", "count", "width", "parts", "threads")),
    ]


def _given(matrix: Tensor, rows: Tensor, bias: Tensor | None, out: Tensor, *, count: int, parts: int) -> _Given:
    assert matrix.stride()[-2:] == (matrix.shape[-1], 1)
    sets = matrix.shape[:-2]
    assert matrix.dim() < 4 or matrix.stride(0) == sets[1] * matrix.stride(1)
    return _Given(
        matrix.data_ptr(),
        rows.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        sets.numel(),
        matrix.stride(-3) if sets else 0,
        *(matrix.shape[-2], count, matrix.shape[-1]),
        parts,
        torch.get_num_threads(),
    )


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(SOURCE, {}, _MEND)))
    for function in (library.products, library.sums):
        function.argtypes, function.restype = [_POINTER, ctypes.c_int], None
    return library
