"""`kvbench hardware`: what this machine can do, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from kvbench.measure.hardware import measure_hardware
from kvbench.results.export import export

_UNITS = {"bytes/s": ("GB/s", 1e9), "flop/s": ("Gflop/s", 1e9)}


def main(device: Literal["auto", "cpu", "cuda"], threads: int, out: str) -> None:
    """Measure and print read and copy bandwidth, gemv, GEMM and, on a GPU, the links to it.

    Args:
        device: "auto" takes cuda where there is one.
        threads: of the CPU.
        out: csv or json file for the numbers; "" for none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda is not available here; use --device=cpu.")
    if threads < 1:
        raise ValueError(f"--threads must be at least 1; got {threads}.")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    found = measure_hardware(torch.device(name), threads)
    for one in found:
        unit, scale = _UNITS[one.unit]
        spread = f"{one.low / scale:.1f} to {one.high / scale:.1f}"
        print(f"{one.name:16} {one.value / scale:10.1f} {unit:8} ({spread}) {one.device} {one.dtype}")
    if out:
        export(pd.DataFrame([one.record() for one in found]), Path(out))
