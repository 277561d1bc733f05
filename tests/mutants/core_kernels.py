"""Kernels that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.kernels import attend, column_sums
from kvbench.kernels.attend import Partial, Tile
from tests.mutants.core_mutant import Mutant
from tests.mutants.core_scores import under_mask
from tests.support import checks, parts

attend_one, attend_prompt, logits, visible_to, columns = (
    attend.attend_one,
    attend.attend_prompt,
    attend._logits,
    attend.visible_to,
    column_sums._columns,
)


def tiles_averaged(query: Tensor, tiles: Sequence[Tile], scale: float, *, with_weights: bool) -> Any:
    """Give every tile the same weight."""
    found = [attend_one(query, [tile], scale, with_weights=True) for tile in tiles]
    out = torch.stack([part for part, _ in found]).mean(dim=0)
    return out, [weights[0] / len(tiles) for _, weights in found if weights is not None]


def parts_averaged(found: Sequence[Partial]) -> Partial:
    """Give every part the same weight."""
    total = torch.stack([part.log_sum for part in found]).logsumexp(dim=0)
    return Partial(torch.stack([part.out for part in found]).mean(dim=0), total)


def copies_not_counted(rows: Tensor, tile: Tile) -> Tensor:
    """Forget how many tokens an entry stands for."""
    return logits(rows, replace(tile, log_weight=None))


def everything_visible(rows: Tensor, tile: Tile) -> Tensor:
    """Attend to empty slots."""
    return logits(rows, replace(tile, visible=None))


def first_block_repeated(query: Tensor, keys: Tensor, values: Tensor, scale: float, **more: Any) -> Tensor:
    """Mask every block as the first one."""
    at = more.pop("query_position")
    block = attend.QUERY_BLOCK
    shifted = at if at.shape[1] <= block else torch.cat([at[:, :block], at[:, : at.shape[1] - block]], dim=1)
    return attend_prompt(query, keys, values, scale, query_position=shifted, **more)


def one_more_in_the_window(position: Tensor, query_position: Tensor, window: int) -> Tensor:
    """Look one entry further back than the window."""
    return visible_to(position, query_position, window + 1 if window else 0)


def newest_left_out(position: Tensor, asked: Sequence[Tensor]) -> list[int]:
    """Stop one entry before the newest that a block sees."""
    return [max(1, count - 1) for count in columns(position, asked)]


MUTANTS = (
    Mutant(
        name="tiles are averaged",
        patches=((attend, "attend_one", tiles_averaged),),
        killed_by=(parts.one_query_over_tiles_equals_dense,),
    ),
    Mutant(
        name="parts are averaged",
        patches=((attend, "merged", parts_averaged),),
        killed_by=(parts.parts_merge_to_the_whole,),
    ),
    Mutant(
        name="nothing seen is no number",
        patches=((attend, "_finite", lambda total: total),),
        killed_by=(parts.parts_merge_to_the_whole,),
    ),
    Mutant(
        name="copies are not counted",
        patches=((attend, "_logits", copies_not_counted),),
        killed_by=(parts.log_weight_counts_copies,),
    ),
    Mutant(
        name="empty slots are attended to",
        patches=((attend, "_logits", everything_visible),),
        killed_by=(
            parts.one_query_over_tiles_equals_dense,
            partial(checks.padded_rows_equal_rows_alone, "baseline", "llama_gqa", by_ratio=False),
            partial(checks.padded_rows_equal_rows_alone, "tova", "gpt2", by_ratio=True),
        ),
    ),
    Mutant(
        name="every block is masked as the first",
        patches=((attend, "attend_prompt", first_block_repeated),),
        killed_by=(partial(parts.prompt_blocks_equal_dense, 0), partial(parts.prompt_blocks_equal_dense, 13)),
    ),
    Mutant(
        name="scores stop before a block's newest entry",
        patches=((column_sums, "_columns", newest_left_out),),
        killed_by=(partial(parts.column_sums_equal_dense, 0),),
    ),
    Mutant(
        name="a window is one too wide",
        patches=((attend, "visible_to", one_more_in_the_window), (column_sums, "visible_to", one_more_in_the_window)),
        killed_by=(
            partial(parts.prompt_blocks_equal_dense, 13),
            partial(parts.column_sums_equal_dense, 13),
            under_mask("baseline", "mistral"),
            partial(checks.baseline_is_the_stock_model, "gemma3"),
        ),
    ),
)
