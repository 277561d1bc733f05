"""Entries kept as codes of a table that was fitted to the model, outliers and first tokens as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Room
from kvbench.cache.codecs.codebooks import BITS, KIND, Table, tables
from kvbench.cache.codecs.kernel import ReadByKernel
from kvbench.cache.codecs.nonuniform import nearest, of_each, unit
from kvbench.cache.codecs.outliers import too_many_channels
from kvbench.cache.codecs.sides import LayerSides
from kvbench.cache.rotary import turned_back
from kvbench.kernels.packed import Form, Outliers, Packed, Rows, Turned
from kvbench.kernels.packing import pack, packed_width
from kvbench.types import ModelView

ALL = 2**31  # tokens, that share scales


@dataclass(frozen=True, kw_only=True)
class KVQuant(ReadByKernel):
    """Keys, as they were before rotation, have a scale per channel, known in advance; values one per token.

    Some numbers of each token stay exact, in float16: of keys those furthest outside what their channel usually has,
    of values those furthest from the token's median.

    Source: Hooper et al. (KVQuant), arXiv:2401.18079, sec. 3.
    Deviates: as many outliers for every token (the authors' cap_outliers), of values on whichever side they lie; the
        tables of 2 bits are not normalised afterwards (Q-Norm).

    Args:
        bits: of a code.
        outliers: share of a token's numbers, over all heads, that stay exact; at least one does.
        num_sink: first tokens, which stay exact.
        codebooks: file or folder of codebooks; "" for where `kvbench calibrate codebooks` leaves them.
        kernel: as in ReadByKernel.
    """

    calibration: ClassVar[str] = KIND
    is_exact: ClassVar[bool] = False
    writes_each_token_alone: ClassVar[bool] = True
    joins_heads: ClassVar[bool] = False
    joins_slots: ClassVar[bool] = True
    data_dependent: ClassVar[bool] = False
    takes_pieces: ClassVar[bool] = True
    flush_tokens: ClassVar[int] = 1

    bits: int
    outliers: float
    num_sink: int
    codebooks: str

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        super().__post_init__()
        if self.bits not in BITS:
            raise ValueError(f"strategy.codec.bits must be one of {list(BITS)}; got {self.bits}.")
        if not 0 <= self.outliers <= 0.5 or self.num_sink < 0:
            raise ValueError(
                f"strategy.codec.outliers must be between 0 and 0.5, and strategy.codec.num_sink 0 or more; got "
                f"{self.outliers} and {self.num_sink}."
            )

    def of_layer(self, view: ModelView, layer: int) -> LayerSides:
        """Return the codec of a layer, with its tables, whose bytes include the channels' scales."""
        keys, values = tables(view, self.codebooks, self.bits)[layer]
        return LayerSides(
            key_format=CodebookFormat(rule=self, table=keys, rotary=view.layers[layer].rotary),
            value_format=CodebookFormat(rule=self, table=values, rotary=None),
            writes_each_token_alone=self.writes_each_token_alone,
            flush_tokens=self.flush_tokens,
            num_sink=self.num_sink,
            fixed_bytes=sum(tensor.nbytes for table in (keys, values) for tensor in table.tensors()),
        )

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the kernel cannot be had, or why there are no codebooks, with the command for them; or None."""
        reason = too_many_channels(view, "kvquant")
        if reason is not None:
            return reason
        try:
            tables(view, self.codebooks, self.bits)
        except ValueError as error:
            return str(error)
        return super().unsupported(view)


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookFormat:
    """One side of a layer.

    Args:
        rule: what both sides have in common.
        table: what codes stand for.
        rotary: inverse frequencies, where entries come rotated [rotary_dim / 2]; or None.
    """

    rule: KVQuant
    table: Table
    rotary: Tensor | None

    def outliers(self, channels: int) -> int:
        """Return how many numbers of a token with so many stay exact."""
        return max(1, round(self.rule.outliers * channels))

    def empty(self, like: Tensor, capacity: int) -> CodebookPayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return CodebookPayload(self, like, capacity)

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of all heads, metadata included."""
        exact = min(capacity, self.rule.num_sink)
        scales = 0 if self.table.scale is not None else 2 * torch.float16.itemsize
        outliers = self.outliers(heads * dim) * (torch.float16.itemsize + torch.int16.itemsize)
        token = heads * packed_width(dim, self.rule.bits) + scales + outliers
        return exact * heads * dim * dtype.itemsize + (capacity - exact) * token

    used_bytes = allocated_bytes

    def rows(self, heads: int, dim: int) -> dict[str, tuple[int, int, torch.dtype]]:
        """Return what is kept of a token: by name, of how many sets of heads, how wide, in what."""
        outliers = self.outliers(heads * dim)
        kept = {
            "codes": (heads, packed_width(dim, self.rule.bits), torch.uint8),
            "value": (1, outliers, torch.float16),
            "channel": (1, outliers, torch.int16),
        }
        if self.table.scale is None:
            kept |= {"scale": (1, 1, torch.float16), "low": (1, 1, torch.float16)}
        return kept

    def rooms(self, batch: int, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> list[Room]:
        """Return the storages of what is kept of all tokens but the first."""
        slots = capacity - min(capacity, self.rule.num_sink)
        return [
            Room(batch=batch, entries=slots, bytes=batch * sets * slots * width * kind.itemsize)
            for sets, width, kind in self.rows(heads, dim).values()
        ]


class CodebookPayload:
    """The first entries as they are, and codes of the others.

    Args:
        how: entries are written.
        like: an example of entries [B, G, T, D].
        capacity: slots per row.
    """

    def __init__(self, how: CodebookFormat, like: Tensor, capacity: int) -> None:
        self.how, self.dtype = how, like.dtype
        self.kernel = how.rule.kernel_on(like.device, like.dtype)
        self._allocate(like, capacity)

    def _allocate(self, like: Tensor, capacity: int) -> None:
        (batch, heads, _, dim), how = like.shape, self.how
        sinks = min(capacity, how.rule.num_sink)
        self.first = like.new_zeros((batch, heads, sinks, dim))
        self.packed = {
            name: like.new_zeros((batch, sets, capacity - sinks, width), dtype=dtype)
            for name, (sets, width, dtype) in how.rows(heads, dim).items()
        }

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.first.shape[2] + self.packed["codes"].shape[2]

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""
        sinks, count = self.first.shape[2], entries.shape[2]
        exact = min(max(sinks - start, 0), count)
        if exact > 0:
            self.first.narrow(2, start, exact).copy_(entries[:, :, :exact])
        if exact == count:
            return
        at = position[:, :, exact:] if isinstance(position, Tensor) else position
        for name, rows in self._encoded(entries[:, :, exact:], at).items():
            self.packed[name].narrow(2, start + exact - sinks, count - exact).copy_(rows)

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry [B, G, 1, D] per row at its own slot [B, 1]."""
        sinks, slot = self.first.shape[2], slot[:, :, None, None]
        _put(self.first, slot, entry, slot < sinks)
        for name, rows in self._encoded(entry, position).items():
            _put(self.packed[name], slot - sinks, rows, slot >= sinks)

    def _encoded(self, entries: Tensor, position: Tensor | int | None) -> dict[str, Tensor]:
        """Return what is kept of entries [B, G, T, D], by name."""
        how, table = self.how, self.how.table
        heads = entries.shape[1]
        tokens, made = turned_back(entries, position, how.rotary).transpose(1, 2).flatten(2), {}
        outliers = how.outliers(tokens.shape[2])
        if table.scale is None:
            channel, scale, low = of_each(tokens, outliers)
            made = {"scale": scale[:, None], "low": low[:, None]}
            numbers = unit(tokens, scale, low)
        else:
            assert table.low is not None
            numbers = unit(tokens, table.scale.flatten(), table.low.flatten())
            channel = numbers.abs().topk(outliers, dim=-1).indices
        codes = nearest(numbers, table.levels).unflatten(2, (heads, -1)).transpose(1, 2)
        made["value"], made["channel"] = tokens.gather(2, channel).half()[:, None], channel.short()[:, None]
        return {"codes": pack(codes, how.rule.bits), **made}

    def settle(self, position: Tensor) -> None:
        """Do nothing: every token is written alone."""

    def entries(self, stop: int, position: Tensor) -> Rows:
        """Return what attention reads of slots 0 .. stop."""
        exact = min(stop, self.first.shape[2])
        parts: list[Tensor | Packed] = [self.first.narrow(2, 0, exact)] if exact > 0 else []
        if exact < stop:
            parts.append(self._coded(stop - exact, position[:, :, exact:stop]))
        return Rows(parts, self.dtype)

    def _coded(self, count: int, position: Tensor) -> Packed:
        (batch, heads, _, dim), table, rotary = self.first.shape, self.how.table, self.how.rotary
        rows = {name: packed.narrow(2, 0, count) for name, packed in self.packed.items()}
        is_static = table.scale is not None
        if table.scale is not None and table.low is not None:
            scale, low = (each[None, :, None].expand(batch, -1, -1, -1) for each in (table.scale, table.low))
        else:
            scale, low = (rows[name].expand(-1, heads, -1, -1) for name in ("scale", "low"))
        form = Form(
            dim=dim,
            bits=self.how.rule.bits,
            tokens=ALL if is_static else 1,
            channels=1 if is_static else dim,
            symmetric=False,
            levels="codebook",
        )
        return Packed(
            form,
            rows["codes"],
            scale,
            low,
            self.kernel,
            levels=table.levels,
            outliers=Outliers(value=rows["value"][:, 0], channel=rows["channel"][:, 0]),
            turned=None if rotary is None else Turned(position=position, inverse_frequency=rotary),
        )

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]."""
        assert position is not None
        if stop == 0:
            return self.first[:, :, :0].clone()
        wide = torch.promote_types(self.dtype, torch.float32)
        return self.entries(stop, position).numbers(0, stop, wide).to(self.dtype)

    def appended(self, stop: int) -> list[tuple[Tensor, int]]:
        """Return the storages of all tokens but the first, and how many rows of each are in use."""
        return [(rows, max(0, stop - self.first.shape[2])) for rows in self.packed.values()]

    def moved(self) -> None:
        """Do nothing: storages are read where they are."""

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Move to storage for `capacity` slots; the old storage is freed."""
        first, packed = self.first, self.packed
        self._allocate(first, capacity)
        self.first.narrow(2, 0, first.shape[2]).copy_(first)
        for name, rows in packed.items():
            self.packed[name].narrow(2, 0, rows.shape[2]).copy_(rows)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held, the tables included, which caches of one model share."""
        return (self.first, *self.packed.values(), *self.how.table.tensors())

    def snapshot(self) -> None:
        """Return nothing: entries that come later leave the earlier ones alone."""

    def restore(self, snapshot: object) -> None:
        """Do nothing: slots behind the last entry may hold anything."""


def _put(rows: Tensor, slot: Tensor, new: Tensor, wanted: Tensor) -> None:
    """Store rows [B, h, 1, n] at slot [B, 1, 1, 1] where wanted, without waiting for the device to say where."""
    if rows.shape[2] == 0:
        return
    index = slot.clamp(0, rows.shape[2] - 1).expand_as(new)
    rows.scatter_(2, index, torch.where(wanted, new, rows.gather(2, index)))
