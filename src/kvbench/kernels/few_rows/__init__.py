"""A few rows against a large matrix in C++ on a CPU: what a decode step does with weights, keys and values."""

from __future__ import annotations

import copy
import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.kernels import told
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


class Matrix:
    """A matrix, or several, as the kernel is given it: made once for a storage, as making it takes as long as a call.

    Args:
        data: [..., n, K], rows one behind the other; float32 or bfloat16.
        bias: added to products [n], float32; None for nothing.
    """

    def __init__(self, data: Tensor, bias: Tensor | None = None) -> None:
        sets = data.shape[:-2]
        assert data.stride()[-2:] == (data.shape[-1], 1)
        assert data.dim() < 4 or data.stride(0) == sets[1] * data.stride(1)
        self.data, self.bias, self.address = data, bias, data.data_ptr()
        self._sets = sets.numel()
        self._given = _Given(
            matrix=self.address,
            bias=None if bias is None else bias.data_ptr(),
            sets=self._sets,
            step=data.stride(-3) if sets else 0,
            width=data.shape[-1],
            halves=data.dtype == torch.bfloat16,
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Matrix:
        """Return the same of a copy of the storage."""
        return Matrix(copy.deepcopy(self.data, memo), copy.deepcopy(self.bias, memo))

    def products(self, rows: Tensor, entries: int) -> Tensor:
        """Return the products of rows with the first so many of the matrix [..., r, entries], float32.

        Args:
            rows: [..., r, K], float32.
            entries: rows of the matrix.
        """
        rows = rows.contiguous()
        out = rows.new_empty((*rows.shape[:-1], entries))
        share = rows.numel() // (self._sets * rows.shape[-1])
        told.call(_library().products, self._told(rows, out, entries, share, 1), rows, out, self)
        return out

    def sums(self, weights: Tensor) -> Tensor:
        """Return the sums of the matrix's first rows by weights [..., r, K], float32.

        Args:
            weights: [..., r, m], float32.
        """
        weights = weights.contiguous()
        parts = 1 if self._sets >= torch.get_num_threads() else torch.get_num_threads()
        out = weights.new_empty((parts, *weights.shape[:-1], self.data.shape[-1]))
        given = self._told(weights, out, weights.shape[-1], weights.shape[-2], parts)
        told.call(_library().sums, given, weights, out, self)
        return out[0] if parts == 1 else out.sum(dim=0)

    def _told(self, rows: Tensor, out: Tensor, entries: int, count: int, parts: int) -> _Given:
        given = _Given.from_buffer_copy(self._given)
        given.rows, given.out = rows.data_ptr(), out.data_ptr()
        given.entries, given.count, given.parts, given.threads = entries, count, parts, torch.get_num_threads()
        return given


def normed(rows: Tensor, weight: Tensor, least: float) -> Tensor:
    """Return rows divided by the roots of their mean squares, by a weight per column.

    Args:
        rows: [..., K], float32.
        weight: [K], float32.
        least: added to the mean squares.
    """
    rows = rows.contiguous()
    out = torch.empty_like(rows)
    width = len(weight)
    given = _Norms(rows.data_ptr(), weight.data_ptr(), out.data_ptr(), rows.numel() // width, width, least)
    told.call(_library().norms, given, rows, weight, out)
    return out


@dataclass(frozen=True)
class Entries:
    """Keys or values as the model made them, for attention to read.

    Args:
        matrix: [B, G, capacity, D].
        exact: how many of them are there, which are as the model made them.
    """

    matrix: Matrix
    exact: int

    outlier_entries: ClassVar[int] = 0
    sink_entries: ClassVar[int] = 0

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.matrix.data.shape[1]

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32."""
        return self.matrix.products(rows.float(), self.exact)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]."""
        return self.matrix.sums(weights.float()).to(self.matrix.data.dtype)


class _Given(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, _POINTER) for name in ("matrix", "rows", "bias", "out")),
        *((name, _LONG) for name in ("sets", "step", "entries", "count", "width", "parts", "threads", "halves")),
    ]


class _Norms(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, _POINTER) for name in ("rows", "weight", "out")),
        *((name, _LONG) for name in ("count", "width")),
        ("least", ctypes.c_float),
    ]


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(SOURCE, {}, _MEND)))
    for function in (library.products, library.sums, library.norms):
        function.argtypes, function.restype = [_POINTER], None
    return library
