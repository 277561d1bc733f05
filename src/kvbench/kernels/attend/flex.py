"""Attention of one query token per row over pages, by torch's FlexAttention: it says outputs, never logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from kvbench.kernels.compiling import compiler

SHAPES = 64  # of pools and batches, each of which may be compiled for, before torch refuses


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why entries of a model with this dtype on this device cannot be read, or None."""
    if device.type != "cpu":
        return f"FlexAttention over pages was seen on a CPU alone, and the model is on {device}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"FlexAttention computes in float32 on a CPU, and the model in {str(dtype).removeprefix('torch.')}"
    if not torch.cpu._is_avx2_supported() or sys.platform == "darwin":
        return "torch compiles FlexAttention for processors with AVX2, and not for macOS"
    if compiler() is None:
        return "FlexAttention is compiled when it is needed, and no C++ compiler (CXX, g++, clang++) was found"
    return None


def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, *, table: Tensor, seen: Tensor) -> Tensor:
    """Attention over the pages of each row, and nothing of others.

    The slots of a page lie together for each head, and the next page's behind those of all heads. So each head is given
    all that follows its own slots of the first page, where a page begins `heads` blocks of slots behind the one before.

    Args:
        query: [B, H, 1, D].
        keys: of all pages [n, G, P, D]; slots that hold nothing are finite in pages that a row reads.
        values: the same [n, G, P, D_v].
        scale: factor of the logits.
        table: pages of each row, int32 [B, c], negative where there is none.
        seen: which of a row's slots are attended to [B, 1 or G, c * P], none of them without a page.

    Returns:
        The output [B, H, 1, D_v].
    """
    from torch.nn.attention.flex_attention import BlockMask

    (pages, groups, size, _), (batch, heads) = keys.shape, query.shape[:2]
    blocks = groups * (pages - 1) + 1
    column = _columns(table, pages)
    index = table.new_zeros(batch, 1, 1, blocks)
    index[:, 0, 0, : table.shape[1]] = _first(table) * groups
    by_head = seen.shape[1] > 1
    seen = seen.repeat_interleave(heads // groups, dim=1) if by_head else seen

    def is_seen(row: Tensor, head: Tensor, _: Tensor, slot: Tensor) -> Tensor:
        page = slot // (size * groups)
        return seen[row, head if by_head else 0, column[row, page] * size + slot % size]

    count = (table >= 0).sum(dim=1, dtype=torch.int32)[:, None, None]
    mask = BlockMask.from_kv_blocks(
        count,
        index,
        torch.zeros_like(count),  # pages that need no mask: without any what torch 2.13 writes does not compile
        torch.zeros_like(index),
        BLOCK_SIZE=(1, size),
        mask_mod=is_seen,
        seq_lengths=(1, blocks * size),
        compute_q_blocks=False,
    )
    rooms = (_behind_first_page(room, batch) for room in (keys, values))
    with torch.no_grad(), _disable_current_modes():  # no way back on a CPU, and nothing compiled while one watches
        out: Tensor = _compiled()(query, *rooms, block_mask=mask, scale=scale, enable_gqa=heads != groups)
    return out


def _columns(table: Tensor, pages: int) -> Tensor:
    """Return which column of a row's table [B, c] says each page [B, pages + 1]; anything where none does."""
    column = torch.arange(table.shape[1], device=table.device).expand_as(table)
    where = table.masked_fill(table < 0, pages).long()
    return torch.zeros(len(table), pages + 1, dtype=torch.int64, device=table.device).scatter_(1, where, column)


def _first(table: Tensor) -> Tensor:
    """Return a table [B, c] with the pages that there are in front, and 0 behind them."""
    order = (table < 0).to(torch.int8).argsort(dim=1, stable=True)
    return table.gather(1, order).clamp(min=0)


def _behind_first_page(room: Tensor, batch: int) -> Tensor:
    """Return for each head what lies from its slots of the first page on [B, G, slots, D]; heads overlap."""
    pages, groups, size, width = room.shape
    slots = (groups * (pages - 1) + 1) * size
    return room.as_strided((batch, groups, slots, width), (0, size * width, width, 1), room.storage_offset())


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    torch._inductor.config.compile_threads = 1  # processes that wait for more to compile would disturb what is timed
    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    return compiled
