"""Attention on packed entries: a row is unpacked where it is used, and a dense copy of a cache never exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kvbench.kernels.packed.native import Given

Kernel = Literal["native", "triton", "reference", "flex"]
NUMBERS = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How rows of numbers are packed.

    A number is what its code stands for times a scale, plus the least one.

    Args:
        dim: numbers of a row.
        bits: of a code.
        tokens: neighbouring rows whose numbers of one channel share a scale; 1 where each row has its own scales, and
            as many as there can be where all share them.
        channels: neighbouring numbers of a row that share a scale; 1 where each channel has its own.
        symmetric: whether there is no least number; integers are then as often below 0 as above it.
        levels: what codes stand for: "integers", "e4m3", floating point numbers of 8 bits, "codebook", what a table
            says, or "float16", "bfloat16", "float32" and "float64", the numbers themselves, unscaled.
    """

    dim: int
    bits: int
    tokens: int
    channels: int
    symmetric: bool
    levels: Literal["integers", "e4m3", "codebook", "float16", "bfloat16", "float32", "float64"]

    @property
    def scales(self) -> int:
        """Scales of a row, or of so many rows as share them."""
        return 0 if self.numbers is not None else -(-self.dim // self.channels)

    @property
    def numbers(self) -> torch.dtype | None:
        """What the numbers themselves are kept in; None where there are codes."""
        return NUMBERS.get(self.levels)


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """Numbers that stand in the place of what codes say, as many for every token.

    Args:
        value: float16 [B, m, k].
        channel: which of the token's numbers, head * dim + channel, int16 or int32 [B, m, k].
    """

    value: Tensor
    channel: Tensor


@dataclass(frozen=True, kw_only=True)
class Turned:
    """What rows are rotated by where they are read: they are packed as they were before.

    Args:
        position: of each row, int32 [B, 1 or G, m].
        inverse_frequency: of rotate-half RoPE [rotary_dim / 2]; channels past the rotary ones are left alone.
    """

    position: Tensor
    inverse_frequency: Tensor


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Where the rows of each head lie, if heads have different numbers of them, one behind the other.

    A head's logits past its last row are -inf.

    Args:
        start: of a head's rows, int64 [B, G].
        stop: behind the last of them, int64 [B, G].
        most: rows a head can have.
    """

    start: Tensor
    stop: Tensor
    most: int

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return where the rows first .. last of each head lie, and which of them there are [B, G, last - first]."""
        row = self.start[..., None] + torch.arange(first, last, device=self.start.device)
        stop = self.stop[..., None]
        return row.minimum(stop - 1).clamp(min=0), row < stop


class Run(Protocol):
    """A run of entries that are not kept as numbers; not all of them need to be read."""

    @property
    def length(self) -> int:
        """Rows of each head."""

    @property
    def groups(self) -> int:
        """KV heads."""

    @property
    def outlier_rows(self) -> float:
        """As many rows of each head as outliers would fill."""

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return rows start .. stop as numbers [B, G, stop - start, D]."""

    def logits(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of rows [B, G, g, D], float32 or wider, with the first m into out [B, G, g, m]."""

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the first m rows by weights [B, G, g, m], as [B, G, g, D]."""


@dataclass(frozen=True)
class Packed:
    """A run of packed rows of numbers.

    Scales that heads or batch rows share are expanded, not copied.

    Args:
        form: how they are packed.
        codes: uint8 [B, G, m, w]; with a table [pages, G, P, w], one behind the other.
        scale: float16 or e4m3 [B, G, M, n], one row for `form.tokens` rows of codes.
        low: the least numbers, as the scales; None where the form is symmetric.
        kernel: what reads them; "flex" reads keys and values at once, and says neither logits nor sums.
        levels: what the codes of a codebook stand for, float32 [2^bits].
        outliers: what replaces numbers of the rows, before they are rotated.
        turned: how rows, which are keys then, are rotated.
        table: pages that the rows of each batch row lie in, int32 [B, n], negative where there is none, of which
            nothing is read: its logits mean nothing, and it adds nothing to a sum.
        spans: where the rows of each head lie, if they lie one behind the other in codes [1, 1, n, w].
    """

    form: Form
    codes: Tensor
    scale: Tensor
    low: Tensor | None
    kernel: Kernel
    levels: Tensor | None = None
    outliers: Outliers | None = None
    turned: Turned | None = None
    table: Tensor | None = None
    spans: Spans | None = None

    @property
    def length(self) -> int:
        """Rows of each head."""
        if self.spans is not None:
            return self.spans.most
        return self.codes.shape[2] * (1 if self.table is None else self.table.shape[1])

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.codes.shape[1] if self.spans is None else self.spans.start.shape[1]

    @property
    def outlier_rows(self) -> float:
        """As many rows of each head as outliers would fill."""
        if self.outliers is None:
            return 0.0
        return self.outliers.value[0].numel() / (self.codes.shape[1] * self.form.dim)

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return rows start .. stop as numbers [B, G, stop - start, D]."""
        from kvbench.kernels.packed import reference

        return reference.dense(self, start, stop, dtype)

    def logits(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of rows [B, G, g, D], float32 or wider, with the first m into out [B, G, g, m]."""
        self._kernel.logits(rows, self, out)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the first m rows by weights [B, G, g, m], as [B, G, g, D]."""
        assert self.turned is None, "values are not rotated"
        summed: Tensor = self._kernel.weighted(weights, self)
        return summed

    @cached_property
    def given(self) -> Given:
        """The rows as the native kernel is given them, made once for a storage."""
        from kvbench.kernels.packed.native import Given

        return Given(self)

    @property
    def _kernel(self) -> ModuleType:
        assert self.kernel != "flex", "it says no logits"
        if self.kernel == "native":
            from kvbench.kernels.packed import native

            return native
        if self.kernel == "triton":
            from kvbench.kernels.packed import on_gpu

            return on_gpu
        from kvbench.kernels.packed import reference

        return reference


@dataclass(frozen=True)
class First:
    """The first rows of a run.

    Args:
        run: at least as long.
        length: rows of each head.
    """

    run: Run
    length: int

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.run.groups

    @property
    def outlier_rows(self) -> float:
        """As many rows of each head as outliers would fill."""
        return self.run.outlier_rows * self.length / self.run.length

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return rows start .. stop as numbers [B, G, stop - start, D]."""
        return self.run.dense(start, stop, dtype)

    def logits(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of rows [B, G, g, D], float32 or wider, with the first m into out [B, G, g, m]."""
        self.run.logits(rows, out)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the first m rows by weights [B, G, g, m], as [B, G, g, D]."""
        return self.run.weighted(weights)


@dataclass(frozen=True)
class Rows:
    """Keys or values of which some are not kept as numbers, in the order of their slots.

    Args:
        parts: runs of entries, as they are [B, G, m, D] or not.
        dtype: of the model.
    """

    parts: Sequence[Tensor | Run]
    dtype: torch.dtype

    sink_entries: ClassVar[int] = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each part."""
        return tuple(part.shape[2] if isinstance(part, Tensor) else part.length for part in self.parts)

    @property
    def exact(self) -> int:
        """Entries that are as the model made them."""
        return sum(part.shape[2] for part in self.parts if isinstance(part, Tensor))

    @property
    def outlier_entries(self) -> float:
        """As many entries as outliers would fill."""
        return sum(part.outlier_rows for part in self.parts if not isinstance(part, Tensor))

    @property
    def groups(self) -> int:
        """KV heads."""
        first = self.parts[0]
        return first.shape[1] if isinstance(first, Tensor) else first.groups

    def numbers(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return entries start .. stop as numbers [B, G, stop - start, D]."""
        found: list[Tensor] = []
        first = 0
        for part, length in zip(self.parts, self.lengths, strict=True):
            low, high = max(start - first, 0), min(stop - first, length)
            first += length
            if low >= high:
                continue
            found.append(part[:, :, low:high].to(dtype) if isinstance(part, Tensor) else part.dense(low, high, dtype))
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32 or wider."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        out = rows.new_empty((*rows.shape[:3], sum(self.lengths)), dtype=wide)
        wide_rows = _as(rows, wide)
        for part, here in zip(self.parts, self._split(out), strict=True):
            if isinstance(part, Tensor):
                here.copy_(torch.matmul(_as(rows, part.dtype), part.transpose(-1, -2)))
            else:
                part.logits(wide_rows, here)
        return out

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]."""
        first, *others = (
            torch.matmul(_as(mine, part.dtype), part) if isinstance(part, Tensor) else part.weighted(mine)
            for part, mine in zip(self.parts, self._split(weights), strict=True)
        )
        return _as(sum(others, first), self.dtype)

    def _split(self, numbers: Tensor) -> Sequence[Tensor]:
        """Return what numbers [B, G, g, m] say of each part."""
        return (numbers,) if len(self.parts) == 1 else numbers.split(self.lengths, dim=3)


def _as(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in a type: asking for the one they have takes torch some microseconds."""
    return numbers if numbers.dtype == dtype else numbers.to(dtype)


def pages_of(entries: object) -> tuple[Tensor, Tensor] | None:
    """Return pages [n, G, P, D] and the table that finds those of each row, where FlexAttention reads them, or None."""
    first = entries.parts[0] if isinstance(entries, Rows) else None
    run = first.run if isinstance(first, First) else None
    if not isinstance(run, Packed) or run.kernel != "flex":
        return None
    assert run.form.numbers is not None
    assert run.table is not None
    return run.codes.view(run.form.numbers), run.table


def why_not(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a kernel cannot read entries of a model with this dtype on this device, or None."""
    if kernel == "reference":
        return None
    if kernel == "triton":
        from kvbench.kernels.packed import on_gpu

        return on_gpu.why_not(device, dtype)
    if kernel == "flex":
        from kvbench.kernels.attend import flex

        return flex.why_not(device, dtype)
    from kvbench.kernels.packed import native

    return native.why_not(device, dtype)


def steps(of: Tensor) -> tuple[int, int]:
    """Return how far it is from one batch row, and from one head, to the next; rows lie one behind the other."""
    batch, head, row, _ = of.stride()
    assert row == of.shape[3] or of.shape[2] == 1 or of.shape[3] == 0
    return batch, head
