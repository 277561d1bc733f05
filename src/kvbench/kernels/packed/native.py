"""The reference's sums in C++ on a CPU, compiled when a form of rows is first met and kept in the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvbench.folders import cache_folder
from kvbench.kernels.packing import packed_width

if TYPE_CHECKING:
    from kvbench.kernels.packed import Form, Packed

FOLDER = Path(__file__).parent
SOURCE, ENCODER, FORM = FOLDER / "rows.cpp", FOLDER / "encode.cpp", FOLDER / "form.h"
LANGUAGE = ("-std=c++17", "-shared", "-fPIC", "-fopenmp", "-w")
SPEED = ("-O3", "-march=native")
SUMS = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")
FLAGS = (*LANGUAGE, *SPEED, *SUMS)  # with -ffast-math a library makes its whole process flush small numbers to 0
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


def compiler() -> str | None:
    """Return the C++ compiler: $CXX, or the first one on the path."""
    return shutil.which(os.environ.get("CXX") or "") or shutil.which("g++") or shutil.which("clang++")


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
    """Write the products of rows [B, G, g, D] with packed ones into out [B, G, g, m], float32."""
    batch, groups, share, _ = rows.shape
    rows = rows.contiguous()
    code = _library(packed.form, share).logits
    code(rows.data_ptr(), out.data_ptr(), out.stride(2), *_arguments(packed, batch * groups))


def weighted(weights: Tensor, packed: Packed) -> Tensor:
    """Return the sum of packed rows by weights [B, G, g, m] float32, as [B, G, g, D]."""
    batch, groups, share, _ = weights.shape
    out = weights.new_empty((batch, groups, share, packed.form.dim))
    code = _library(packed.form, share).weighted
    code(weights.data_ptr(), weights.stride(2), out.data_ptr(), *_arguments(packed, batch * groups))
    return out


def encode(rows: Tensor, form: Form) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what `Quantiser.encode` does of rows float32 [B, G, T, D], each of which has scales of its own."""
    size, rows = rows.shape[:3], rows.contiguous()
    codes = torch.empty((*size, packed_width(form.dim, form.bits)), dtype=torch.uint8)
    scale = torch.empty((*size, form.scales), dtype=torch.float16)
    low = None if form.symmetric else torch.empty_like(scale)
    pointers = [codes.data_ptr(), scale.data_ptr(), scale.data_ptr() if low is None else low.data_ptr()]
    _encoder(form).encode(rows.data_ptr(), size.numel(), *pointers)
    return codes, scale, low


def _arguments(packed: Packed, heads: int) -> tuple[int, ...]:
    codes, scale, low = packed.codes, packed.scale, packed.low
    assert (packed.levels, packed.outliers, packed.turned) == (None, None, None), "not written yet"
    return (
        codes.data_ptr(),
        codes.stride(1),
        scale.data_ptr(),
        scale.data_ptr() if low is None else low.data_ptr(),
        scale.stride(1),
        heads,
        codes.shape[2],
        packed.form.tokens,
        torch.get_num_threads(),
    )


@cache
def _library(form: Form, share: int) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_compiled(SOURCE, {**_numbers(form), "SHARE": share})))
    beside: list[type[Any]] = [_POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG, ctypes.c_int]
    library.logits.argtypes = [_POINTER, _POINTER, _LONG, *beside]
    library.weighted.argtypes = [_POINTER, _LONG, _POINTER, *beside]
    library.logits.restype = library.weighted.restype = None
    return library


@cache
def _encoder(form: Form) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_compiled(ENCODER, _numbers(form))))
    library.encode.argtypes = [_POINTER, _LONG, _POINTER, _POINTER, _POINTER]
    library.encode.restype = None
    return library


def _numbers(form: Form) -> dict[str, int]:
    return {
        "DIM": form.dim,
        "BITS": form.bits,
        "CHANNELS": form.channels,
        "PER_CHANNEL": int(form.tokens > 1),
        "SYMMETRIC": int(form.symmetric),
        "IS_FLOAT": int(form.levels in ("e4m3", "float16")),
    }


def _compiled(source: Path, numbers: Mapping[str, int]) -> Path:
    """Return the library for these numbers, compiled unless this machine has done so before."""
    program = compiler()
    assert program is not None
    defined = [f"-D{name}={number}" for name, number in numbers.items()]
    texts = [file.read_text(encoding="utf-8") for file in (source, FORM)]
    made_of = "\n".join([*texts, program, _processor(), *FLAGS, *defined])
    file = cache_folder() / "native" / f"{hashlib.sha256(made_of.encode()).hexdigest()[:20]}.so"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        command = [program, *FLAGS, *defined, f"-I{FOLDER}", str(source), "-o", str(draft)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(
                f"the native kernel did not compile; set strategy.codec.kernel=reference, or CXX to another compiler. "
                f"{' '.join(command)}:\n{done.stderr.strip()}"
            )
        draft.replace(file)
    return file


def _processor() -> str:
    """Return what the machine code depends on: the processor's extensions."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return ""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
