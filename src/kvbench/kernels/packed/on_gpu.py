"""The reference's sums on a GPU, in Triton, which compiles them when a form of rows is first met.

So far they were interpreted, and compiled for GPUs that were not there: no GPU has run them yet.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvbench.kernels.packed import steps

if TYPE_CHECKING:
    from kvbench.kernels.packed import Packed

NUMBERS = 4096  # of rows, that are unpacked at once
LEAST_ROWS, MOST_ROWS = 16, 128  # that are unpacked at once
PROGRAMS = 512  # that fill a GPU
ALL = 2**30  # rows, more than there are


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why entries of a model with this dtype on this device cannot be read, or None."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the triton kernel runs on a CUDA device, and the model is on {device}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the triton kernel computes in float32, and the model in {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "the triton kernel needs the package triton, which torch for CUDA brings"
    return None


def logits(rows: Tensor, packed: Packed, out: Tensor) -> None:
    """Write the products of rows [B, G, g, D] with the first m packed ones into out [B, G, g, m], float32."""
    given = arguments(packed, rows.shape[2], out.shape[3])
    _read(rows.contiguous(), packed.form.dim, out, out.stride(2), parts(given, len(rows)), given)


def weighted(weights: Tensor, packed: Packed) -> Tensor:
    """Return the sum of the first m packed rows by weights [B, G, g, m] float32, as [B, G, g, D]."""
    given, dim = arguments(packed, *weights.shape[2:], is_sum=True), packed.form.dim
    count, size = parts(given, len(weights))
    out = weights.new_empty((count, *weights.shape[:3], dim))
    _read(weights, weights.stride(2), out, dim, (count, size), given)
    return out[0] if count == 1 else out.sum(dim=0)


def _read(
    given: Tensor, given_step: int, out: Tensor, out_step: int, parts: tuple[int, int], rest: dict[str, Any]
) -> None:
    from kvbench.kernels.packed.triton_rows import read

    batch, heads = given.shape[:2]
    with torch.cuda.device_of(given):
        grid = read[(batch * heads, parts[0])]
        grid(given, given_step, out, out_step, part_rows=parts[1], enable_fp_fusion=True, **rest)


def parts(given: dict[str, Any], batch: int) -> tuple[int, int]:
    """Return how many parts the rows are read in, side by side, and how many of them a part has at most."""
    rows = given["ROWS"]
    blocks = -(-given["entries"] // rows)
    each = -(-blocks // max(1, PROGRAMS // (batch * given["heads"])))
    return max(1, -(-blocks // max(1, each))), max(1, each) * rows


def arguments(packed: Packed, share: int, entries: int, *, is_sum: bool = False) -> dict[str, Any]:
    """Return what the kernel is told of the first rows, and of their form, by name; steps are in numbers."""
    form, codes, low, outliers, turned = packed.form, packed.codes, packed.low, packed.outliers, packed.turned
    rotary = 0 if turned is None else len(turned.inverse_frequency)
    rows = max(LEAST_ROWS, min(MOST_ROWS, NUMBERS // _power(form.dim)))
    sharing = form.tokens & -form.tokens  # rows of a block that is never in two groups
    if sharing >= LEAST_ROWS:
        rows = min(rows, sharing)
    numbers = codes if form.numbers is None else codes.view(form.numbers)
    given = _pointers(packed, numbers)
    return given | {
        "entries": entries,
        "heads": packed.groups,
        "SUMS": is_sum,
        "SHARE": share,
        "QUERIES": _power(share) if is_sum else 1,
        "ROWS": rows,
        "ROTARY": rotary,
        "PAIRS": _power(rotary),
        "LANES": _power(form.dim - 2 * rotary),
        "TOKENS": min(form.tokens, ALL),
        "IS_GROUP": sharing >= LEAST_ROWS,
        "DIM": form.dim,
        "BITS": form.bits,
        "WIDTH": codes.shape[3],
        "LEVELS": form.levels if form.numbers is None else "numbers",
        "MIDDLE": 2 ** (form.bits - 1) - 1 if form.symmetric and form.levels == "integers" else 0,
        "CHANNELS": form.channels,
        "SCALES": form.scales,
        "HAS_LOW": low is not None,
        "HAS_OUTLIERS": outliers is not None,
        "PAGE": 0 if packed.table is None else codes.shape[2],
        "SPANS": packed.spans is not None,
    }


def _pointers(packed: Packed, numbers: Tensor) -> dict[str, Any]:
    """Return tensors and how far it is in them from one batch row, and from one head, to the next."""
    low, outliers, turned = packed.low, packed.outliers, packed.turned
    given: dict[str, Any] = {"levels": packed.levels, "values": None, "places": None, "outliers": 0}
    for name, of in (("codes", numbers), ("scales", packed.scale), ("lows", low)):
        given[name] = of
        given[f"{name}_batch"], given[f"{name}_head"] = (0, 0) if of is None else steps(of)
        if packed.table is not None:
            given[f"{name}_batch"] = 0  # all batch rows have theirs in the same pages
        if packed.spans is not None:
            given[f"{name}_batch"] = given[f"{name}_head"] = 0
    given |= {"table": packed.table, "table_step": 0 if packed.table is None else packed.table.stride(0)}
    spans = packed.spans
    given |= {"starts": None, "stops": None} if spans is None else {"starts": spans.start, "stops": spans.stop}
    given |= {"outliers_batch": 0, "positions": None, "positions_batch": 0, "positions_head": 0, "frequencies": None}
    if outliers is not None:
        assert outliers.value.stride() == outliers.channel.stride()
        given |= {"values": outliers.value, "places": outliers.channel, "outliers": outliers.value.shape[2]}
        given["outliers_batch"] = outliers.value.stride(0)
    if turned is not None:
        position = turned.position
        assert (position.dtype, position.stride(2)) == (torch.int32, 1)
        given |= {"positions": position, "positions_batch": position.stride(0), "frequencies": turned.inverse_frequency}
        given["positions_head"] = position.stride(1) if position.shape[1] > 1 else 0
    return given


def _power(number: int) -> int:
    """Return the least power of 2 that is no smaller."""
    return 1 << max(0, number - 1).bit_length()
