"""`kvbench hardware`: what this machine can do, measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from kvbench.configuration import check, compose
from kvbench.folders import cache_folder, hardware_record
from kvbench.measure.disk import measure_disk
from kvbench.measure.environment import accelerator
from kvbench.measure.hardware import Widths, measure_hardware
from kvbench.measure.rates import Capability
from kvbench.results.export import export
from kvbench.sizing import network_of

_UNITS = {"bytes/s": ("GB/s", 1e9), "flop/s": ("Gflop/s", 1e9), "launches/s": ("k/s", 1e3), "s": ("us", 1e-6)}
_SLOW = ("MB/s", 1e6)  # of a disk


def main(
    overrides: Sequence[str], *, device: Literal["auto", "cpu", "cuda"], threads: int, batch: int, disk: str, out: str
) -> None:
    """Measure and print bandwidths, products, launches, the disk and, on a GPU, the links to it; keep them in a file.

    Args:
        overrides: model=<name>, whose products are measured too; none for no model.
        device: "auto" takes cuda where there is one.
        threads: of the CPU.
        batch: rows of a decode step.
        disk: folder on the disk; "" for the cache folder.
        out: csv or json file for the numbers; "" for one in the cache folder.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda is not available here; use --device=cpu.")
    if threads < 1:
        raise ValueError(f"--threads must be at least 1; got {threads}.")
    if batch < 1:
        raise ValueError(f"--batch must be at least 1; got {batch}.")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    found = measure_hardware(torch.device(name), threads, widths=_widths(overrides, batch))
    found += measure_disk(Path(disk) if disk else cache_folder(), threads)
    for one in found:
        print(_line(one))
    for line in _missing(found, name, overrides):
        print(line)
    file = Path(out) if out else hardware_record(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {**accelerator(name), "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
    export(pd.DataFrame([{**one.record(), **facts} for one in found]), file)
    print(f"record: {file}")


def _widths(overrides: Sequence[str], batch: int) -> Widths | None:
    if not overrides:
        return None
    checked = check(compose([*overrides, "strategy=baseline", "quality=none"]))
    network = network_of(checked.model)
    return Widths(hidden=network.hidden, kv_width=network.kv_width, batch_size=batch)


def _line(one: Capability) -> str:
    unit, scale = _SLOW if one.unit == "bytes/s" and one.value < 1e9 else _UNITS[one.unit]
    spread = f"{one.low / scale:.1f} to {one.high / scale:.1f}"
    return f"{one.name:32} {one.value / scale:10.1f} {unit:8} ({spread}) {one.device} {one.dtype} {one.shape}".rstrip()


def _missing(found: Sequence[Capability], device: str, overrides: Sequence[str]) -> Iterator[str]:
    names = {one.name for one in found}
    if device != "cuda":
        yield "links: none, they are measured where there is a CUDA device"
    if not overrides:
        yield "products of a model: none, name one with model=<name>"
    if "disk_read_cold_1M" not in names:
        yield "cold reads: none, this file system does not forget what it read; name another with --disk=<folder>"
