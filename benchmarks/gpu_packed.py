"""Attention of one token to packed entries, beside the same to dense ones: one layer of Llama-3.1-8B's shape.

    python -m benchmarks.gpu_packed

Times of blocks of steps, taken in turns; the ratio is the median over rounds, its ends the least and the largest.
Bandwidth is of what is held, over what this machine reads in the same process. Prints one table. No GPU has run it yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import pandas as pd
import torch
from torch import Tensor

from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.kernels.attend import Entries, Tile, attend_one
from kvbench.kernels.packed import Kernel, Packed, Rows, why_not
from kvbench.measure.clock import clock_for
from kvbench.measure.hardware import stream_bandwidth

HEADS, KV_HEADS, DIM = 32, 8, 128
CELLS = ((1, 32768), (16, 8192), (16, 32768))  # batch rows and entries of each
INTEGERS = partial(Quantiser, symmetric=False, levels="integers", clip=1.0, scales="float16")
ROUNDS, STEPS = 10, 20

FORMS = {  # of keys and of values
    "int8": (INTEGERS(bits=8, along="channels", group=0), INTEGERS(bits=8, along="channels", group=0)),
    "int4": (INTEGERS(bits=4, along="channels", group=0), INTEGERS(bits=4, along="channels", group=0)),
    "kivi4": (INTEGERS(bits=4, along="tokens", group=32), INTEGERS(bits=4, along="channels", group=32)),
    "kivi2": (INTEGERS(bits=2, along="tokens", group=32), INTEGERS(bits=2, along="channels", group=32)),
}


def packed(numbers: Tensor, how: Quantiser, kernel: Kernel) -> Rows:
    """Return entries [B, G, m, D] packed, batch row by batch row."""
    codes, scale, low = (torch.cat(part) for part in zip(*map(how.encode, numbers.split(1)), strict=True))
    return Rows([Packed(how.form(DIM), codes, scale, low, kernel)], numbers.dtype)


def held_bytes(entries: Tensor | Entries) -> int:
    """Return the bytes of entries."""
    if isinstance(entries, Tensor):
        return entries.nbytes
    assert isinstance(entries, Rows)
    (part,) = entries.parts
    assert isinstance(part, Packed)
    return sum(each.nbytes for each in (part.codes, part.scale, part.low) if each is not None)


def cell(batch: int, length: int, device: torch.device, rounds: int, steps: int) -> list[dict[str, object]]:
    """Return a row for each form."""
    dtype = torch.bfloat16
    kernel: Kernel = "triton" if why_not("triton", device, dtype) is None else "reference"
    keys, values = (torch.randn(batch, KV_HEADS, length, DIM, dtype=dtype, device=device) for _ in range(2))
    query = torch.randn(batch, HEADS, 1, DIM, dtype=dtype, device=device)
    tiles = {"dense": Tile(keys, values)}
    for name, (of_keys, of_values) in FORMS.items():
        tiles[name] = Tile(packed(keys, of_keys, kernel), packed(values, of_values, kernel))
    clock = clock_for(device)

    def took(step: Callable[[], object]) -> float:
        clock.settle()
        marks = [clock.mark()]
        for _ in range(steps):
            step()
        marks.append(clock.mark())
        clock.settle()
        return clock.durations(marks)[0].ms / steps

    arms = {name: partial(attend_one, query, [tile], DIM**-0.5, with_weights=False) for name, tile in tiles.items()}
    for step in arms.values():  # compiles
        step()
    times = pd.DataFrame([{name: took(step) for name, step in arms.items()} for _ in range(rounds)])
    bandwidth = stream_bandwidth(device, 1)
    rows: list[dict[str, object]] = []
    for name, tile in tiles.items():
        ratio, ms = times[name] / times["dense"], median(times[name])
        held = held_bytes(tile.keys) + held_bytes(tile.values)
        row = {"batch": batch, "entries": length, "form": name, "kernel": "" if name == "dense" else kernel}
        row |= {"bytes": held, "ms": ms, "bandwidth_share": held / (ms / 1e3) / bandwidth}
        row |= {"ratio": ratio.median(), "ratio_low": ratio.min(), "ratio_high": ratio.max()}
        rows.append(row)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cells", nargs="+", default=[f"{batch}x{length}" for batch, length in CELLS])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    device, rows = torch.device(arguments.device), []
    with torch.no_grad():
        for name in arguments.cells:
            batch, length = map(int, name.split("x"))
            rows += cell(batch, length, device, arguments.rounds, arguments.steps)
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
