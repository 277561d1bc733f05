"""What must hold where FlexAttention reads pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.kernels.attend import flex
from kvbench.types import RunShape
from tests.support.checks import BUDGET, NEW, PROMPT
from tests.support.drive import drive, padded
from tests.support.models import ids, model
from tests.support.paging import in_disorder, in_pages
from tests.support.strategies import strategy

BATCH, GROUPS, HEADS, COLUMNS, SCALE = 3, 2, 4, 5, 0.3
ERROR = {torch.float32: 4e-6, torch.bfloat16: 0.02}  # of sums of some hundred products, and of rounding what is given
ELSE = 1e4  # what slots hold that nobody wrote


@dataclass(frozen=True, kw_only=True)
class _Case:
    query: Tensor
    keys: Tensor
    values: Tensor
    table: Tensor
    seen: Tensor
    want: Tensor


def _case(dtype: torch.dtype, size: int, sets: int, order: int) -> _Case:
    """Return rows of different lengths in pages in any order, of which some that nobody holds are no numbers.

    The first row has all columns, the second begins and ends within one, the third has a single slot.
    """
    random, slots = torch.Generator().manual_seed(size), COLUMNS * size

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    query, rows = rand(BATCH, HEADS, 1, 8), [rand(BATCH, GROUPS, slots, 8) for _ in range(2)]
    seen = torch.rand(BATCH, sets, slots, generator=random) < 0.8
    for row, held in enumerate((range(slots), range(size // 2 + size, 3 * size + 1), range(1))):
        outside = [slot for slot in range(slots) if slot not in held]
        seen[row, :, outside] = False
        seen[row, :, held[-1]] = True
    pages = torch.randperm(4 * COLUMNS, generator=torch.Generator().manual_seed(order)).tolist()
    rooms = [torch.full((len(pages), GROUPS, size, 8), torch.nan, dtype=dtype) for _ in rows]
    table = torch.full((BATCH, COLUMNS), -1, dtype=torch.int32)
    for row in range(BATCH):
        for column in range(COLUMNS):
            here = slice(column * size, (column + 1) * size)
            if seen[row, :, here].any():
                table[row, column] = pages.pop()
                for room, mine in zip(rooms, rows, strict=True):
                    room[table[row, column]] = mine[row, :, here]
    mask = seen.repeat_interleave(HEADS // sets, dim=1)[:, :, None]
    keys, values = (each.double() for each in rows)
    want = torch.nn.functional.scaled_dot_product_attention(
        query.double(), keys, values, attn_mask=mask, scale=SCALE, enable_gqa=True
    )
    return _Case(query=query, keys=rooms[0], values=rooms[1], table=table, seen=seen, want=want)


def pages_are_attended_to_where_they_lie(dtype: torch.dtype, size: int, sets: int) -> None:
    """Outputs are those of the slots in a row, in whatever order pages lie, and pages of nobody are not read."""
    for order in (1, 2):
        case = _case(dtype, size, sets, order)
        got = flex.attend(case.query, case.keys, case.values, SCALE, table=case.table, seen=case.seen)
        assert (got - case.want).abs().max() <= ERROR[dtype]


def logits_are_those_of_slots_in_a_row(
    size: int, name: str = "baseline", lengths: Sequence[int] = (PROMPT, 17, 3)
) -> None:
    """A whole model says what it says with slots one behind the other, whatever slots hold that nobody wrote."""
    kept = model("llama_gqa", torch.float32)
    text = padded([ids(3 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    want = drive(kept, strategy(name, tokens=BUDGET), text, run).logits
    with in_disorder(size, ELSE):
        made = in_pages(name, size, "layout.kernel=flex")
        assert made.kernel_on(torch.device("cpu"), torch.float32) == "flex"
        got = drive(kept, made, text, run).logits
    for row, length in enumerate(lengths):
        first = max(lengths) - length
        error = (got[row, first:] - want[row, first:]).abs().max()
        assert error <= 1e-5 * want.abs().max(), f"row {row}: {error}"
