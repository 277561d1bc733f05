"""Rows made of random codes, and the numbers they stand for by plain loops."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kvbench.kernels.packed import Form, Kernel, Outliers, Packed, Spans, Turned
from kvbench.kernels.packing import pack

BATCH, HEADS, ROWS = 2, 2, 141  # more rows than a block, which do not fill the next one
ALL = 2**31  # rows


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows of one form.

    Args:
        bits: of a code.
        dim: numbers of a row.
        share: queries of a KV head.
        tokens: rows that share scales, `ALL` for all of them; 1 for none.
        low: whether there are least numbers.
        codebook: whether codes stand for what a table says; otherwise for integers.
        outliers: of a token, over all heads.
        channel: what their channels are kept in.
        rotary: pairs of channels that are rotated.
        positions: whether heads have the same ones.
        expanded: whether all heads and batch rows have the same scales.
        levels: "codes", or what numbers are kept in that are no codes.
        page: rows of a page; 0 where batch rows are apart.
        ragged: whether heads have different numbers of rows, one behind the other.
    """

    bits: int = 4
    dim: int = 64
    share: int = 1
    tokens: int = 1
    low: bool = True
    codebook: bool = False
    outliers: int = 0
    channel: torch.dtype = torch.int16
    rotary: int = 0
    positions: Literal["shared", "by head"] = "shared"
    expanded: bool = False
    levels: Literal["codes", "float16", "bfloat16", "float32"] = "codes"
    page: int = 0
    ragged: bool = False

    @property
    def form(self) -> Form:
        """How the rows are packed."""
        return Form(
            dim=self.dim,
            bits=self.bits,
            tokens=self.tokens,
            channels=self.dim if self.tokens == 1 else 1,
            symmetric=not self.low,
            levels=self.levels if self.levels != "codes" else "codebook" if self.codebook else "integers",
        )


IN_BLOCKS = (  # rows that share scales, as many as are unpacked at once, or a multiple
    Case(bits=1, dim=20, tokens=32, share=3),
    Case(bits=2, dim=24, tokens=96, codebook=True),
)


PAGED = (
    Case(page=16, share=2),
    Case(page=48, bits=8, low=False, dim=20),
    Case(page=16, bits=16, levels="bfloat16", low=False, share=4),
    Case(page=8, bits=32, levels="float32", low=False, dim=20),
)


RAGGED = (
    Case(ragged=True, share=2),
    Case(ragged=True, bits=8, low=False, dim=20, share=3),
    Case(ragged=True, bits=16, levels="bfloat16", low=False, share=4),
    Case(ragged=True, bits=32, levels="float32", low=False),
    Case(ragged=True, bits=16, levels="float16", low=False, dim=20),
)
LENGTHS = ((ROWS, 1), (70, 33))  # rows of each head
ROOM = 3  # behind them, where nothing is


def rows_of(case: Case, kernel: Kernel) -> tuple[Packed, Tensor]:
    """Return rows, and the numbers they stand for in float64 [BATCH, HEADS, ROWS, dim]."""
    packed, numbers = _themselves(case, kernel) if case.levels != "codes" else _coded(case, kernel)
    if case.ragged:
        return _in_spans(packed, numbers)
    return _in_pages(packed, numbers, case.page) if case.page else (packed, numbers)


def _themselves(case: Case, kernel: Kernel) -> tuple[Packed, Tensor]:
    form, random = case.form, torch.Generator().manual_seed(case.dim)
    assert form.numbers is not None
    numbers = torch.randn(BATCH, HEADS, ROWS, case.dim, generator=random).to(form.numbers)
    codes = numbers.view(torch.uint8)
    return Packed(form, codes, codes.new_empty((*codes.shape[:3], 0)).half(), None, kernel), numbers.double()


def _in_pages(packed: Packed, numbers: Tensor, size: int) -> tuple[Packed, Tensor]:
    """Put rows into pages in any order, of which one is missing, and what nobody holds is no number."""
    count = -(-ROWS // size)
    order = torch.randperm(BATCH * count + 3, generator=torch.Generator().manual_seed(size))
    table = order[: BATCH * count].reshape(BATCH, count).int()
    table[1, 1] = -1
    numbers = numbers.clone()
    numbers[1, :, size : 2 * size] = 0

    def spread(rows: Tensor) -> Tensor:
        room = rows.new_empty((len(order), HEADS, size, rows.shape[3]))
        room.view(torch.uint8).fill_(255)
        for batch, page in itertools.product(range(BATCH), range(count)):
            mine = rows[batch, :, page * size : (page + 1) * size]
            if table[batch, page] >= 0:
                room[table[batch, page], :, : mine.shape[1]] = mine
        return room

    low = None if packed.low is None else spread(packed.low)
    return replace(packed, codes=spread(packed.codes), scale=spread(packed.scale), low=low, table=table), numbers


def _in_spans(packed: Packed, numbers: Tensor) -> tuple[Packed, Tensor]:
    """Put the first rows of each head behind those of the one before it; what lies between them is no number."""
    start, first = torch.empty(BATCH, HEADS, dtype=torch.int64), ROOM
    numbers = numbers.clone()
    for batch, head in itertools.product(range(BATCH), range(HEADS)):
        start[batch, head] = first
        first += LENGTHS[batch][head] + ROOM
        numbers[batch, head, LENGTHS[batch][head] :] = 0

    def joined(rows: Tensor) -> Tensor:
        room = rows.new_empty((1, 1, first, rows.shape[3]))
        room.view(torch.uint8).fill_(255)
        for batch, head in itertools.product(range(BATCH), range(HEADS)):
            length, at = LENGTHS[batch][head], int(start[batch, head])
            room[0, 0, at : at + length] = rows[batch, head, :length]
        return room

    low = None if packed.low is None else joined(packed.low)
    spans = Spans(start=start, stop=start + torch.tensor(LENGTHS), most=ROWS)
    return replace(packed, codes=joined(packed.codes), scale=joined(packed.scale), low=low, spans=spans), numbers


def _coded(case: Case, kernel: Kernel) -> tuple[Packed, Tensor]:
    random, form = torch.Generator().manual_seed(case.bits + case.dim), case.form
    codes = torch.randint(0, 2**case.bits, (BATCH, HEADS, ROWS + 5, case.dim), generator=random, dtype=torch.uint8)
    levels = torch.randn(2**case.bits, generator=random) if case.codebook else None
    heads = (1, 1) if case.expanded else (BATCH, HEADS)
    size = (*heads, -(-ROWS // case.tokens), form.scales)
    scale, low = (torch.randn(size, generator=random).half().expand(BATCH, HEADS, -1, -1) for _ in range(2))
    packed = Packed(
        form,
        pack(codes, case.bits)[:, :, 3 : 3 + ROWS],
        scale,
        low if case.low else None,
        kernel,
        levels,
        _outliers(case, random),
        _turned(case, random),
    )
    return packed, _plain(packed, codes[:, :, 3 : 3 + ROWS])


def _outliers(case: Case, random: torch.Generator) -> Outliers | None:
    if case.outliers == 0:
        return None
    channel = torch.rand(BATCH, ROWS, HEADS * case.dim, generator=random).argsort(dim=-1)[..., : case.outliers]
    value = 30 * torch.randn(BATCH, ROWS, case.outliers, generator=random)
    return Outliers(value=value.half(), channel=channel.to(case.channel))


def _turned(case: Case, random: torch.Generator) -> Turned | None:
    if case.rotary == 0:
        return None
    heads = 1 if case.positions == "shared" else HEADS
    position = torch.randint(0, 2**17, (BATCH, heads, ROWS), generator=random, dtype=torch.int32)
    position[:, :, :5] = torch.tensor([-1, 0, 63, 64, 2**17 - 1])  # -1 is a row nobody looks at
    return Turned(position=position, inverse_frequency=1e4 ** -(torch.arange(case.rotary) / case.rotary))


def _plain(packed: Packed, codes: Tensor) -> Tensor:
    """Return what the rows stand for."""
    form = packed.form
    rows, channels = torch.arange(ROWS) // form.tokens, torch.arange(form.dim) // form.channels
    middle = 2 ** (form.bits - 1) - 1 if form.symmetric else 0
    out = codes.double() - middle if packed.levels is None else packed.levels.double()[codes.long()]
    out *= packed.scale.double()[:, :, rows][..., channels]
    if packed.low is not None:
        out += packed.low.double()[:, :, rows][..., channels]
    numbers = out.numpy()
    if packed.outliers is not None:
        value, where = packed.outliers.value, packed.outliers.channel
        for row, at, which in itertools.product(*map(range, value.shape)):
            head, channel = divmod(int(where[row, at, which]), form.dim)
            numbers[row, head, at, channel] = float(value[row, at, which])
    if packed.turned is not None:
        frequency = packed.turned.inverse_frequency.numpy()
        half, position = len(frequency), packed.turned.position.numpy().astype(np.float32)
        angle = (position[..., None] * frequency).astype(np.float64)  # rounded to float32, as models do
        pairs = (numbers[..., :half] + 1j * numbers[..., half : 2 * half]) * np.exp(1j * angle)
        numbers[..., :half], numbers[..., half : 2 * half] = pairs.real, pairs.imag
    return out


def moved(rows: Any, device: str) -> Any:
    """Return rows on another device, with the strides they have."""
    if isinstance(rows, Tensor):
        storage = rows.as_strided((rows.untyped_storage().nbytes() // rows.itemsize,), (1,), 0)
        return storage.to(device).as_strided(rows.shape, rows.stride(), rows.storage_offset())
    if isinstance(rows, Packed | Outliers | Turned | Spans):
        return replace(rows, **{field.name: moved(getattr(rows, field.name), device) for field in fields(rows)})
    return rows


def rows_are_what_they_stand_for(case: Case, kernel: Kernel = "reference", device: str = "cpu") -> None:
    """Numbers, logits and sums of values over rows are those over the numbers that the rows stand for."""
    packed, numbers = rows_of(case, kernel)
    packed = moved(packed, device)
    largest = numbers.abs().amax()
    dense = packed.dense(2, ROWS, torch.float32).cpu()
    assert ((dense - numbers[:, :, 2:]).abs() <= 2e-6 * largest).all()
    random = torch.Generator().manual_seed(1)
    queries = torch.randn(BATCH, HEADS, case.share, case.dim, generator=random)
    out = torch.full((BATCH, HEADS, case.share, ROWS + 8), torch.nan, device=device)[..., 3 : 3 + ROWS]
    packed.logits(queries.to(device), out)
    want = queries.double() @ numbers.transpose(-1, -2)
    size = queries.double().norm(dim=-1)[..., None] * numbers.norm(dim=-1)[:, :, None]
    is_there = ~(numbers == 0).all(dim=-1)[:, :, None]
    assert (((out.cpu() - want).abs() <= 1e-5 * size) | ~is_there).all()
    if case.ragged:
        assert (out.cpu().isneginf() == ~is_there).all()
    if packed.turned is None:
        weights = torch.rand(BATCH, HEADS, case.share, ROWS + 8, generator=random)[..., 4 : 4 + ROWS]
        got, want = packed.weighted(moved(weights, device)).cpu(), weights.double() @ numbers
        assert ((got - want).abs() <= 2e-6 * (weights.double() @ numbers.abs())).all()
