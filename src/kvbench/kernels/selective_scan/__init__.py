"""A selective state space model's recurrence (Gu and Dao, arXiv:2312.00752, algorithm 2) in C++ on a CPU.

What it says, in plain torch, is `kvbench.models.mamba`'s loop over tokens, which computes wherever this does not.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvbench.kernels import told
from kvbench.kernels.compiling import compiled, compiler

SOURCE = Path(__file__).with_name("scan.cpp")
WIDE = 16  # channels that are taken at a time
_MEND = "set CXX to another compiler"
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


def is_native(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Return whether the recurrence of so many channels can be computed here: on a CPU, in float32, with a compiler."""
    return device.type == "cpu" and dtype == torch.float32 and channels % WIDE == 0 and compiler() is not None


def selective_scan(
    step: Tensor, fed: Tensor, by: Tensor, of: Tensor, log_rate: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what each token reads of the state [B, T, D], and the state after the last one [B, N, D].

    The state goes from h to exp(-step * e^log_rate) h + step * fed * by with each token, which reads its product with
    `of`.

    Args:
        step: how far a token moves each channel, above 0 [B, T, D].
        fed: what it feeds them [B, T, D].
        by: how it divides that over a channel's numbers [B, T, N].
        of: what it reads of them [B, T, N].
        log_rate: logarithm of the rates at which they fall [D, N].
        start: state before the first token [B, N, D].
    """
    out, last = _Scan.apply(step, fed, by, of, log_rate, start)  # type: ignore[no-untyped-call]
    return out, last


class _Tensors(ctypes.Structure):
    def __init__(self, **given: Any) -> None:
        pointers = {name: it.data_ptr() for name, it in given.items() if isinstance(it, Tensor)}
        super().__init__(**{**given, **pointers})


class _Given(_Tensors):
    _fields_: ClassVar = [
        *((name, _POINTER) for name in ("step", "fed", "by", "of", "log_rate", "start", "out", "last")),
        *((name, _LONG) for name in ("batch", "tokens", "channels", "threads")),
    ]


class _Gradients(_Tensors):
    _fields_: ClassVar = [(name, _POINTER) for name in ("out", "last", "step", "fed", "by", "of", "log_rate", "start")]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        step, fed, by, of, log_rate, start = (each.contiguous() for each in given)
        out, last = torch.empty_like(step), torch.empty_like(start)
        tensors = (step, fed, by, of, log_rate, start, out, last)
        told.call(_library(log_rate.shape[1]).forward, _given(*tensors), *tensors)
        context.save_for_backward(step, fed, by, of, log_rate, start)
        return out, last

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        step, fed, by, of, log_rate, start = context.saved_tensors
        out, last = (each.contiguous() for each in gradients)
        made = [torch.empty_like(step), torch.empty_like(fed), torch.zeros_like(by), torch.zeros_like(of)]
        made += [torch.zeros_like(start), torch.empty_like(start)]
        names = ("step", "fed", "by", "of", "log_rate", "start")
        wanted = _Gradients(out=out, last=last, **dict(zip(names, made, strict=True)))
        _library(log_rate.shape[1]).backward(
            ctypes.byref(_given(step, fed, by, of, log_rate, start, out, last)), ctypes.byref(wanted)
        )
        return (*made[:4], made[4].sum(dim=0).mT, made[5])


def _given(*tensors: Tensor) -> _Given:
    names = ("step", "fed", "by", "of", "log_rate", "start", "out", "last")
    batch, tokens, channels = tensors[0].shape
    return _Given(
        **dict(zip(names, tensors, strict=True)),
        batch=batch,
        tokens=tokens,
        channels=channels,
        threads=torch.get_num_threads(),
    )


@cache
def _library(states: int) -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiled(SOURCE, {"STATES": states}, _MEND)))
    library.forward.argtypes = [_POINTER]
    library.backward.argtypes = [_POINTER, _POINTER]
    library.forward.restype = library.backward.restype = None
    return library
