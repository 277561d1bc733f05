"""The reference's sums in C++ on a CPU, compiled when a form of rows is first met and kept in the cache folder."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kvbench.kernels import told
from kvbench.kernels.compiling import compiled, compiler
from kvbench.kernels.packed import steps

if TYPE_CHECKING:
    from kvbench.kernels.packed import Form, Packed

SOURCE, ENCODER = (Path(__file__).with_name(name) for name in ("rows.cpp", "encode.cpp"))
MEND = "set strategy.codec.kernel=reference, or CXX to another compiler"
LEAST_ROWS = 64  # that are worth a thread
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why entries of a model with this dtype on this device cannot be read, or None."""
    if device.type != "cpu":
        return f"the native kernel runs on a CPU, and the model is on {device}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the native kernel computes in float32, and the model in {str(dtype).removeprefix('torch.')}"
    if compiler() is None:
        return "the native kernel is compiled when it is needed, and no C++ compiler (CXX, g++, clang++) was found"
    return None


def logits(rows: Tensor, packed: Packed, out: Tensor) -> None:
    """Write the products of rows [B, G, g, D] with the first m packed ones into out [B, G, g, m], float32."""
    rows = rows.contiguous()
    asked = packed.given.asked(rows, out, out.stride(2), out.shape[3])
    told.call(packed.given.reader(rows.shape[2]).logits, asked, rows, out, packed)


def weighted(weights: Tensor, packed: Packed) -> Tensor:
    """Return the sum of the first m packed rows by weights [B, G, g, m] float32, as [B, G, g, D]."""
    batch, groups, share, entries = weights.shape
    parts = _parts(entries)
    out = weights.new_empty((parts * batch, groups, share, packed.form.dim))
    asked = packed.given.asked(weights, out, weights.stride(2), entries)
    told.call(packed.given.reader(share).weighted, asked, weights, out, packed)
    return out if parts == 1 else out.unflatten(0, (parts, batch)).sum(dim=0)


def write(entries: Tensor, packed: Packed, at: int | Tensor, clip: float) -> None:
    """Do what `Quantiser.write` does with entries float32 [B, G, T, D], each of which has scales of its own."""
    batch, heads, tokens, _ = entries.shape
    assert (batch, heads) == packed.codes.shape[:2]
    entries = entries if entries.stride(3) == 1 else entries.contiguous()
    slots = () if isinstance(at, int) else (at.expand(batch, heads, tokens).contiguous(),)
    numbers = _Numbers(
        entries.data_ptr(),
        slots[0].data_ptr() if slots else None,
        packed.given.address,
        *entries.stride()[:3],
        tokens,
        0 if slots else at,
        clip,
    )
    told.call(packed.given.write, numbers, entries, slots, packed)


class _Kept(ctypes.Structure):
    """What kept.h reads; what rows do not have is null, and steps are in numbers."""

    _fields_: ClassVar = [
        *((name, _POINTER) for name in ("codes", "scales", "lows")),
        *((name, _LONG * 2) for name in ("codes_step", "scales_step", "lows_step")),
        *((name, _LONG) for name in ("batch", "heads")),
    ]


class _Rows(_Kept):
    """What rows.cpp reads."""

    _fields_: ClassVar = [
        *(
            (name, _POINTER)
            for name in ("levels", "values", "channels", "positions", "frequencies", "table", "starts", "stops")
        ),
        ("outliers_step", _LONG),
        ("positions_step", _LONG * 2),
        ("table_step", _LONG),
        *((name, _LONG) for name in ("tokens", "outliers", "entries", "parts", "threads")),
    ]


class _Asked(ctypes.Structure):
    """What rows.cpp is asked of rows."""

    _fields_: ClassVar = [
        *((name, _POINTER) for name in ("given", "out")),
        *((name, _LONG) for name in ("row_step", "entries", "parts", "threads")),
        ("of", _POINTER),
    ]


class _Numbers(ctypes.Structure):
    """What encode.cpp makes rows of."""

    _fields_: ClassVar = [
        *((name, _POINTER) for name in ("numbers", "at", "to")),
        *((name, _LONG) for name in ("batch_step", "head_step", "token_step", "tokens", "first")),
        ("clip", ctypes.c_float),
    ]


class Given:
    """Packed rows as the native kernel is given them, and what was compiled for them.

    Args:
        packed: whose storage has to outlive this.
    """

    def __init__(self, packed: Packed) -> None:
        form, codes, scale, low = packed.form, packed.codes, packed.scale, packed.low
        outliers, turned = packed.outliers, packed.turned
        given = self.rows = _Rows()
        given.batch, given.heads = codes.shape[:2]
        given.tokens = form.tokens
        given.codes, given.codes_step = codes.data_ptr(), steps(codes)
        given.scales, given.scales_step = scale.data_ptr(), steps(scale)
        if low is not None:
            given.lows, given.lows_step = low.data_ptr(), steps(low)
        if packed.levels is not None:
            assert packed.levels.dtype == torch.float32
            given.levels = packed.levels.data_ptr()
        if outliers is not None:
            assert outliers.value.stride() == outliers.channel.stride()
            given.values, given.channels = outliers.value.data_ptr(), outliers.channel.data_ptr()
            given.outliers, given.outliers_step = outliers.value.shape[2], outliers.value.stride(0)
        if turned is not None:
            position, frequency = turned.position, turned.inverse_frequency
            assert (position.dtype, position.stride(2), frequency.dtype) == (torch.int32, 1, torch.float32)
            given.positions, given.frequencies = position.data_ptr(), frequency.data_ptr()
            given.positions_step = position.stride(0), position.stride(1) if position.shape[1] > 1 else 0
        if packed.table is not None:
            assert (packed.table.dtype, packed.table.stride(1)) == (torch.int32, 1)
            given.table, given.table_step = packed.table.data_ptr(), packed.table.stride(0)
            given.batch = len(packed.table)
            for name in ("codes_step", "scales_step", "lows_step"):
                getattr(given, name)[0] = 0  # all batch rows have theirs in the same pages
        if packed.spans is not None:
            start, stop = packed.spans.start, packed.spans.stop
            assert (start.dtype, stop.dtype) == (torch.int64, torch.int64)
            assert start.is_contiguous()
            assert stop.is_contiguous()
            given.starts, given.stops = start.data_ptr(), stop.data_ptr()
            given.batch, given.heads = start.shape
            for name in ("codes_step", "scales_step", "lows_step"):
                setattr(given, name, (0, 0))
        self.address = ctypes.addressof(given)
        self._form = _numbers(form, scale)
        self._run = {
            "PER_CHANNEL": int(form.tokens > 1),
            "CODEBOOK": int(form.levels == "codebook"),
            "OUTLIERS": 0 if outliers is None else outliers.channel.dtype.itemsize,
            "ROTARY": 0 if turned is None else len(turned.inverse_frequency),
            "PAGE": 0 if packed.table is None else codes.shape[2],
            "SPANS": int(packed.spans is not None),
        }
        self._readers: dict[int, ctypes.CDLL] = {}

    def asked(self, given: Tensor, out: Tensor, row_step: int, entries: int) -> _Asked:
        """Return what is asked of the first so many rows."""
        threads, parts = torch.get_num_threads(), _parts(entries)
        return _Asked(given.data_ptr(), out.data_ptr(), row_step, entries, parts, threads, self.address)

    def reader(self, share: int) -> ctypes.CDLL:
        """Return the library for so many queries of a KV head."""
        if share not in self._readers:
            self._readers[share] = _reader(**self._form, **self._run, SHARE=share)
        return self._readers[share]

    @cached_property
    def write(self) -> Callable[..., None]:
        """What rounds numbers to codes and keeps them."""
        return _encoder(**self._form).encode


def _parts(entries: int) -> int:
    """Return in how many parts, side by side, so many rows are read."""
    return max(1, min(torch.get_num_threads(), entries // LEAST_ROWS))


@cache
def _reader(**numbers: int) -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(SOURCE, numbers, MEND)))
    library.logits.argtypes = library.weighted.argtypes = [_POINTER]
    library.logits.restype = library.weighted.restype = None
    return library


@cache
def _encoder(**numbers: int) -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(ENCODER, numbers, MEND)))
    library.encode.argtypes = [_POINTER]
    library.encode.restype = None
    return library


def _numbers(form: Form, scale: Tensor) -> dict[str, int]:
    return {
        "DIM": form.dim,
        "BITS": form.bits,
        "CHANNELS": form.channels,
        "SYMMETRIC": int(form.symmetric),
        "E4M3": int(form.levels == "e4m3"),
        "BFLOAT": int(form.levels == "bfloat16"),
        "SHORT_SCALES": int(scale.dtype == torch.float8_e4m3fn),
    }
