"""How many bytes attention moves: counted on the tiled reference, beside the formula, for several tiles.

    python -m benchmarks.flash_attention

Nothing is timed; the table of docs/flash_attention.md is what this prints.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kvbench.kernels.attend.tiled import Tiling, attend_tiled, crossing_untiled

TOKENS, DIM, DTYPE = 1024, 64, torch.float32
TILES = ((64, 64), (128, 64), (128, 128), (256, 128), (TOKENS, 128))


def lines() -> Iterator[str]:
    """Yield the table, a line at a time."""
    item = DTYPE.itemsize
    yield "| queries x keys of a tile | causal | fast memory KiB | crossed MiB, counted | by the formula | of untiled |"
    yield "|---|---|---|---|---|---|"
    random = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(1, 1, TOKENS, DIM, generator=random).to(DTYPE) for _ in range(3))
    untiled = crossing_untiled(TOKENS, TOKENS, DIM, item)
    for (rows, columns), is_causal in ((tile, causal) for tile in TILES for causal in (False, True)):
        tiling = Tiling(rows=rows, columns=columns, is_causal=is_causal)
        crossed = attend_tiled(query, keys, values, DIM**-0.5, tiling)[2]
        formula, fast = tiling.crossing(TOKENS, TOKENS, DIM, item), tiling.fast_bytes(DIM, item) / 2**10
        yield (
            f"| {rows} x {columns} | {'yes' if is_causal else 'no'} | {fast:,.0f} | {crossed / 2**20:.2f} | "
            f"{formula / 2**20:.2f} | {crossed / untiled:.1%} |"
        )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    print(*lines(), sep="\n")
