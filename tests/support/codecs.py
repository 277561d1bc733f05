"""What must hold of packed entries: plain loops that quantise, a codec that only pretends to, and checks by both."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench.cache.codecs import normal
from kvbench.cache.codecs.dense import DensePayload
from kvbench.cache.codecs.kernel import Wanted
from kvbench.cache.codecs.packed import PackedCodec, PackedFormat, PackedPayload
from kvbench.cache.codecs.packed_keys import PackedKeys
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.codecs.sides import LayerSides
from kvbench.cache.layer import CacheLayer
from kvbench.cache.packing_error import squares
from kvbench.kernels.attend import Tile, attend_one
from kvbench.kernels.packed import First, Kernel, Packed, Rows, native, on_gpu, reference
from kvbench.kernels.packing import pack, packed_width, unpack
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import ModelView, RunShape
from tests.support.checks import NEW, assert_close, uniform
from tests.support.drive import drive, slots_of
from tests.support.models import LAYERS, ids, model
from tests.support.packed_rows import moved
from tests.support.strategies import composed, strategy

BITS = (2, 3, 4, 8)
QUANTISED = ("quantization_8bit", "quantization_4bit", "fp8", "flexgen_int4", "kivi2", "kivi4")
NOWHERE = torch.empty(0)  # positions, where nobody asks for them
PROMPTS = (24, 16, 7)  # with groups of 4 and 8 exact tokens: some left over, none, and too few to pack


def quantiser(
    bits: int = 4,
    along: Literal["channels", "tokens"] = "channels",
    group: int = 0,
    *,
    symmetric: bool = False,
    levels: Literal["integers", "e4m3", "float16", "normal"] = "integers",
    clip: float = 1.0,
    scales: Literal["float16", "e4m3"] = "float16",
) -> Quantiser:
    """Return a quantiser."""
    return Quantiser(bits=bits, along=along, group=group, symmetric=symmetric, levels=levels, clip=clip, scales=scales)


QUANTISERS = (
    *(quantiser(bits, symmetric=symmetric) for bits in BITS for symmetric in (False, True)),
    *(quantiser(bits, group=3) for bits in BITS),
    *(quantiser(bits, "tokens", 4, symmetric=symmetric) for bits in BITS for symmetric in (False, True)),
    *(quantiser(bits, group=group, scales="e4m3") for bits in (2, 4) for group in (0, 3)),
    quantiser(2, "tokens", 4, symmetric=True, scales="e4m3"),
    quantiser(8, symmetric=True, levels="e4m3"),
    quantiser(16, symmetric=True, levels="float16"),
    *(quantiser(bits, symmetric=True, levels="normal") for bits in (2, 3, 4)),
)


def rand(*size: int, seed: int = 0) -> Tensor:
    """Return normal numbers of float32, some of them large and some rows all alike."""
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    drawn[..., 1] *= 30
    if size[-2] > 4:
        drawn[..., 4, :] = 0.3
    return drawn


# -- packing --------------------------------------------------------------------------------------------------------


def packing_keeps_every_code() -> None:
    """Every code comes back, from rows of any length, odd ones and slices of others included."""
    for bits, dim in itertools.product((1, *BITS), range(1, 20)):
        codes = (torch.arange(7 * dim) % 2**bits).to(torch.uint8).view(7, dim)
        for given in (codes, codes.t().contiguous().t(), codes.repeat(1, 2)[:, ::2]):
            packed = pack(given, bits)
            assert packed.shape == (7, packed_width(dim, bits))
            assert torch.equal(unpack(packed, bits, dim), given)
    assert [packed_width(64, bits) for bits in (1, 2, 3, 4, 8)] == [8, 16, 24, 32, 64]


# -- rounding -------------------------------------------------------------------------------------------------------


@functools.cache
def e4m3() -> tuple[float, ...]:
    """Return every number that 4 bits of exponent and 3 of mantissa make, from its definition."""
    small = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    large = [
        (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        for exponent, mantissa in itertools.product(range(1, 16), range(8))
        if (exponent, mantissa) != (15, 7)  # stands for no number
    ]
    return (*small, *large)


def plain(numbers: Sequence[float], how: Quantiser) -> list[float]:
    """Return what stands in the place of numbers that share a scale."""
    given = np.array(numbers, dtype=np.float32)
    if how.levels == "float16":
        return [float(np.float16(number)) for number in given]
    if how.levels == "normal":
        norm = float(np.float16(np.sqrt(np.square(given).mean())))
        levels = normal.levels(how.bits).numpy().astype(np.float32)
        parts = given / np.float32(norm or 1.0)
        return [float(levels[np.abs(levels - part).argmin()]) * norm for part in parts]
    if how.symmetric:
        most = 448 if how.levels == "e4m3" else 2 ** (how.bits - 1) - 1
        scale = kept(np.abs(given).max() / np.float32(most), how)
        scale = 1.0 if scale == 0 else scale
        parts = given / np.float32(scale)
        if how.levels == "e4m3":
            return [float(np.sign(part)) * _nearest(min(448.0, abs(float(part)))) * float(scale) for part in parts]
        return [float(np.clip(np.rint(part), -most, most)) * float(scale) for part in parts]
    low = kept(given.min(), how)
    scale = kept((given.max() - given.min()) / np.float32(2**how.bits - 1), how)
    scale = 1.0 if scale == 0 else scale
    codes = np.clip(np.rint((given - np.float32(low)) / np.float32(scale)), 0, 2**how.bits - 1)
    return [float(code) * float(scale) + float(low) for code in codes]


def kept(number: Any, how: Quantiser) -> float:
    """Return what is kept of a scale, or of a least number."""
    if how.scales == "e4m3":
        return float(np.sign(number)) * _nearest(min(448.0, abs(float(number))))
    return float(np.float16(number))


def _nearest(number: float) -> float:
    """Return the nearest of the numbers there are; of two the one whose mantissa is even."""
    order = sorted(range(len(e4m3())), key=lambda at: (abs(e4m3()[at] - number), at % 2))
    return e4m3()[order[0]]


def stand_ins(entries: Tensor, how: Quantiser) -> Tensor:
    """Return what stands in the place of entries [B, G, T, D], by plain loops; T is a multiple of `how.tokens`."""
    out = entries.double().clone()
    batch, heads, tokens, dim = entries.shape
    size = how.group or dim
    for row, head in itertools.product(range(batch), range(heads)):
        if how.along == "channels":
            groups = [(t, slice(c, c + size)) for t in range(tokens) for c in range(0, dim, size)]
        else:
            groups = [(slice(t, t + size), c) for t in range(0, tokens, size) for c in range(dim)]  # type: ignore[misc]
        for at in groups:
            mine = out[row, head][at]
            mine.copy_(torch.tensor(plain(mine.tolist(), how), dtype=torch.float64))
    return out


def read_back(entries: Tensor, how: Quantiser, kernel: Kernel = "reference") -> Tensor:
    """Return entries [B, G, T, D] as they come back from their codes, in float64."""
    codes, scale, low = how.encode(entries)
    packed = Packed(how.form(entries.shape[3]), codes, scale, low, kernel, how.table(codes.device))
    return packed.dense(0, entries.shape[2], torch.float64)


def codes_equal_plain_loops() -> None:
    """Codes stand for the numbers that plain loops round to, for every form of rows."""
    for how, dim in itertools.product(QUANTISERS, (8, 11)):
        entries = rand(2, 3, 12, dim)
        assert_close(read_back(entries, how), stand_ins(entries, how))


def both_kernels_keep_the_same(how: Quantiser, dim: int) -> None:
    """Codes, scales and least numbers are the same to the bit, of small numbers, large ones and none, wherever kept."""
    entries = rand(2, 40, 3, dim, seed=5).transpose(1, 2)
    entries[:, :, 10:20] *= torch.logspace(-9, 6, 10)[:, None]
    entries[:, :, 20:30] *= torch.logspace(-6, 0, dim)
    entries[:, :, 30] = 0.0
    entries[:, :, 31] = 3.5
    slots = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(6)).argsort(dim=-1)[..., :40]
    for at in (7, slots, slots[:, :1]):
        got, want = (_written(how, entries, at, kernel) for kernel in ("native", "reference"))
        assert all(map(torch.equal, got, want))


def _written(how: Quantiser, entries: Tensor, at: int | Tensor, kernel: Kernel) -> list[Tensor]:
    """Return the bytes of all that is kept of entries [B, G, T, D] in a part of room for more of them."""
    batch, heads, _, dim = entries.shape
    kept = [torch.full((batch, heads + 1, 50, k.width), 2).to(k.dtype)[:, :heads] for k in how.kept(dim)]
    how.write(kept, how.run(kept, dim, kernel), at, entries)
    return [each.contiguous().view(torch.uint8) for each in kept]


def rounding_stays_within_its_bound() -> None:
    """No number moves further than half a step, and what rounding the scale and the least number adds."""
    for how in QUANTISERS:
        entries = rand(2, 3, 64, 16, seed=1).double()
        _, scale, low = how.encode(entries)
        shape = how.form(16)
        step, least = (
            torch.zeros(()).double()
            if t is None or t.shape[3] == 0
            else t.double().repeat_interleave(shape.channels, -1)[..., :16].repeat_interleave(shape.tokens, -2)
            for t in (scale, low)
        )
        error = (read_back(entries, how) - entries).abs()
        if how.levels == "float16":
            bound = entries.abs() * 2**-11 + 2**-25
        elif how.levels == "e4m3":
            bound = torch.maximum(entries.abs() * 2**-4, step * 2**-10) + entries.abs() * 2**-11
        elif how.levels == "normal":
            there = normal.levels(how.bits) * step[..., None]
            bound = (entries[..., None] - there).abs().amin(dim=-1) + step * 1e-6
        else:
            share = 2**-4 if how.scales == "e4m3" else 2**-11  # of a number, that keeping it may lose
            bound = step / 2 + (2**how.bits - 1) * step * share + least.abs() * share
        assert (error <= bound * (1 + 1e-6)).all(), f"{how}: {(error - bound).max()} too much"
        assert error.max() > 0
    tokens = torch.randperm(64)
    how, entries = quantiser(4), rand(1, 1, 64, 16)
    assert torch.equal(how.encode(entries[:, :, tokens])[0], how.encode(entries)[0][:, :, tokens])


def later_tokens_do_not_overflow() -> None:
    """Tokens larger than all before them keep their size in 8-bit floating point numbers."""
    entries = rand(1, 2, 32, 16, seed=2)
    entries[:, :, 20:] *= 1.5 * 448
    got = read_back(entries, quantiser(8, symmetric=True, levels="e4m3"))
    assert ((got - entries.double()).abs() <= entries.abs() * 2**-4 + entries.abs().amax(-1, keepdim=True) / 4e5).all()


def keys_with_a_large_channel_want_scales_by_channel() -> None:
    """With one channel of 30 times the size, 2 bits by channel lose far less than 2 bits by token."""
    entries = torch.randn(1, 2, 64, 32, generator=torch.Generator().manual_seed(3)).double()
    entries[..., 5] *= 30
    small = [channel for channel in range(32) if channel != 5]
    by_channel, by_token = (
        (read_back(entries, how) - entries)[..., small].square().mean()
        for how in (quantiser(2, "tokens", 32), quantiser(2))
    )
    assert by_channel * 5 < by_token


# -- attention ------------------------------------------------------------------------------------------------------


def packed_rows(how: Quantiser, dim: int, tokens: int, kernel: Kernel, seed: int = 4) -> Packed:
    """Return rows [2, 3, tokens, dim] of a larger storage, packed."""
    entries = rand(2, 3, tokens + how.tokens, dim, seed=seed)
    codes, scale, low = how.encode(entries)
    some = slice(0, tokens // how.tokens)
    least = None if low is None else low[:, :, some]
    return Packed(how.form(dim), codes[:, :, :tokens], scale[:, :, some], least, kernel, how.table(codes.device))


def products_equal_dense_ones(how: Quantiser, dim: int, share: int, kernel: Kernel, device: str = "cpu") -> None:
    """Logits and sums of values over first rows are those over the numbers that the codes stand for."""
    packed = packed_rows(how, dim, 140, kernel)  # of which 132 are read
    numbers, packed = packed.dense(0, 132, torch.float64), moved(packed, device)
    rows = rand(2, 3, share, dim, seed=5)
    weights = torch.rand(2, 3, share, 140, generator=torch.Generator().manual_seed(6))[..., 4:136]
    out = torch.full((2, 3, share, 140), torch.nan, device=device)[..., 3:135]
    run = {"native": native, "triton": on_gpu, "reference": reference}[kernel]
    run.logits(rows.to(device), packed, out)
    want = rows.double() @ numbers.transpose(-1, -2)
    size = rows.double().abs() @ numbers.abs().transpose(-1, -2)  # what errors of the sums are in proportion to
    assert ((out.cpu() - want).abs() <= 2e-6 * size).all()
    got, want = run.weighted(moved(weights, device), packed).cpu(), weights.double() @ numbers
    assert ((got - want).abs() <= 2e-6 * (weights.double() @ numbers.abs())).all()


def parts_lie_in_order() -> None:
    """Attention to rows of which some are packed, and others exact, is attention to all of them."""
    packed = packed_rows(quantiser(4), 16, 40, "reference")
    first, last = rand(2, 3, 5, 16, seed=7), rand(2, 3, 2, 16, seed=8)
    rows = Rows([packed, first, last], torch.float32)
    whole = torch.cat([packed.dense(0, 40, torch.float32), first, last], dim=2)
    query = rand(2, 6, 1, 16, seed=9) / 30
    got, weights = attend_one(query, [Tile(rows, rows)], 0.3, with_weights=True)
    want, same = attend_one(query, [Tile(whole, whole)], 0.3, with_weights=True)
    torch.testing.assert_close(got, want)
    assert weights is not None
    assert same is not None
    torch.testing.assert_close(weights[0], same[0])


class Weigher(TorchDispatchMode):
    """Notes the most bytes that live at once in tensors made since it began."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, int] = {}
        self.made = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and weigh what it made."""
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for made in out if isinstance(out, list | tuple) else [out]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                self.made += 1
                self.live[self.made] = made.untyped_storage().nbytes()
                weakref.finalize(made, self.live.pop, self.made, None)
                self.most = max(self.most, sum(self.live.values()))
        return out


def a_step_needs_little_room(name: str, kernel: Wanted, tokens: int = 4096) -> None:
    """What a decode step makes beside the cache is below a tenth of the layer's cache in float16."""
    view = view_of(model("llama_gqa", torch.float32))
    shape = replace(view.layers[0], kv_heads=4, key_dim=64, value_dim=64, rotary=torch.rand(32))
    chosen = composed(name).codec
    if isinstance(chosen, PackedCodec):
        chosen = replace(chosen, kernel=kernel)
    codec = chosen.of_layer(replace(view, layers=(shape,)), 0)
    sizes = {"batch": 1, "heads": 4, "tokens": tokens, "dim": 64}
    keys, values = (rand(*sizes.values(), seed=seed) for seed in (10, 11))
    stored = [how.empty(keys, tokens + 100) for how in (codec.key_format, codec.value_format)]
    for payload, entries in zip(stored, (keys, values), strict=True):
        payload.write(0, entries)
    query, newest = rand(1, 8, 1, 64, seed=12) / 30, rand(1, 4, 1, 64, seed=13)
    with Weigher() as weigher:
        for payload in stored:
            payload.write(tokens, newest)
        tile = Tile(stored[0].entries(tokens + 1, NOWHERE), stored[1].entries(tokens + 1, NOWHERE))
        attend_one(query, [tile], 0.1, with_weights=False)
        del tile
        for payload in stored:
            payload.settle(NOWHERE)
    assert 0 < weigher.most < 0.1 * (2 * keys.numel() * torch.float16.itemsize)


# -- the cache ------------------------------------------------------------------------------------------------------


Loops = Callable[[Tensor, Any], Tensor]  # what stands in the place of entries [B, G, T, D] that are packed so


@dataclass(frozen=True, kw_only=True)
class Pretended:
    """One side of a codec that keeps numbers as they are and rounds them by plain loops when they are read.

    Args:
        how: entries would be packed.
        loops: that round them.
    """

    how: PackedFormat
    loops: Loops

    def rounded(self, entries: Tensor) -> Tensor:
        """Return what stands in the place of entries."""
        return self.loops(entries, self.how.quantiser)

    def empty(self, like: Tensor, capacity: int) -> PretendedPayload:
        """Return room."""
        batch, heads, _, dim = like.shape
        return PretendedPayload(self, like.new_zeros(batch, heads, capacity, dim))

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of numbers as they are."""
        return heads * capacity * dim * dtype.itemsize

    used_bytes = allocated_bytes


class PretendedPayload(DensePayload):
    """Numbers as they are, and those among them that count as packed."""

    def __init__(self, side: Pretended, data: Tensor) -> None:
        super().__init__(data)
        self.side, self.length, self.rounded = side, 0, data[:, :, :0].double()

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Write, and take a prompt as settled."""
        if self.side.how.rule.residual == 0:
            super().write(start, self.side.rounded(entries).to(entries.dtype))
            return
        super().write(start, entries)
        self.length = start + entries.shape[2]
        if start == 0:
            self.settle(entries)

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Write single entries."""
        super().scatter(slot, self.side.rounded(entry).to(entry.dtype))

    def settle(self, position: Tensor) -> None:
        """Round what is no longer exact: whole groups of `residual` tokens, or all but the latest ones."""
        residual = self.side.how.rule.residual
        if residual == 0:
            return
        gathers = self.side.how.quantiser.tokens > 1
        done = self.length // residual * residual if gathers else max(0, self.length - residual)
        if done > self.rounded.shape[2]:
            fresh = self.data[:, :, self.rounded.shape[2] : done]
            self.rounded = torch.cat([self.rounded, self.side.rounded(fresh)], dim=2)

    def entries(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return what the codes would stand for, and the exact ones."""
        if self.side.how.rule.residual == 0:
            return self.read(stop)
        return torch.cat([self.rounded.to(self.data.dtype), self.data[:, :, self.rounded.shape[2] : stop]], dim=2)


@dataclass(frozen=True, kw_only=True)
class PretendedCodec:
    """A codec that loses what a packed one loses, by another route.

    Args:
        codec: the packed one.
        loops: that round.
    """

    codec: PackedCodec | PackedKeys
    loops: Loops = stand_ins
    is_exact: bool = False
    joins_heads: bool = False
    joins_slots: bool = False
    data_dependent: bool = False
    takes_pieces: bool = False
    flush_tokens: int = 1

    @property
    def writes_each_token_alone(self) -> bool:
        """As the packed one."""
        return self.codec.writes_each_token_alone

    def of_layer(self, view: ModelView, layer: int) -> LayerSides:
        """Return how a layer is rounded."""
        sides = self.codec.of_layer(view, layer)
        assert isinstance(sides.key_format, PackedFormat)
        assert isinstance(sides.value_format, PackedFormat)
        return LayerSides(
            key_format=Pretended(how=sides.key_format, loops=self.loops),
            value_format=Pretended(how=sides.value_format, loops=self.loops),
            writes_each_token_alone=self.writes_each_token_alone,
            flush_tokens=1,
            num_sink=0,
            fixed_bytes=0,
        )

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> None:
        """Return None: nothing is packed."""

    def unsupported(self, view: ModelView) -> None:
        """Return None: every model can."""


def equals_attention_to_what_the_codes_stand_for(
    name: str, model_name: str, *, prompt: int = 24, loops: Loops = stand_ins
) -> None:
    """Logits at every step are those of dense attention to keys and values that plain loops have rounded."""
    made, tokens = strategy(name), ids(1, 1, prompt + NEW)
    assert isinstance(made.codec, PackedCodec | PackedKeys)
    got = drive(model(model_name), made, tokens, uniform(prompt))
    plainly = replace(made, codec=PretendedCodec(codec=made.codec, loops=loops))
    want = drive(model(model_name), plainly, tokens, uniform(prompt))
    torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=1e-9)
    full = drive(model(model_name), strategy("baseline"), tokens, uniform(prompt))
    assert_close(got.logits[:, :prompt], full.logits[:, :prompt])  # a prompt is read before it is packed
    if prompt > 8:
        assert (got.logits - full.logits).abs().max() > 1e-5, "rounding changes nothing: the comparison proves nothing"


def appended(name: str, tokens: int, prompt: int) -> Iterator[tuple[PackedPayload, PackedFormat, Tensor, int]]:
    """Yield both sides of a cache after a prompt and after each token that follows, and what was written so far."""
    codec = strategy(name).codec.of_layer(view_of(model("llama_gqa")), 0)
    for seed, how in enumerate((codec.key_format, codec.value_format)):
        assert isinstance(how, PackedFormat)
        entries = rand(2, 2, tokens, 8, seed=20 + seed)
        payload = how.empty(entries, tokens)
        payload.write(0, entries[:, :, :prompt])
        yield payload, how, entries, prompt
        for at in range(prompt, tokens):
            payload.write(at, entries[:, :, at : at + 1])
            payload.settle(NOWHERE)
            yield payload, how, entries, at + 1


def a_token_is_packed_once(name: str) -> None:
    """What is kept of packed tokens never changes, however many follow."""
    for prompt in (1, 9, 24):
        seen: dict[int, list[Tensor]] = {}
        most = 0
        for payload, how, _, held in appended(name, 60, prompt):
            packed = how.packed(held)
            if held == prompt:
                seen = {}
            for before in seen.values():
                for room, same in zip(payload.kept, before, strict=True):
                    assert torch.equal(room[:, :, : same.shape[2]], same), "codes or scales changed"
            rows = [packed // each.tokens for each in how.quantiser.kept(8)]
            seen[packed] = [room[:, :, :count].clone() for room, count in zip(payload.kept, rows, strict=True)]
            most = max(most, packed)
        assert most > 40


def the_latest_tokens_are_exact(name: str, residual: int = 8) -> None:
    """KIVI: values of the latest `residual` tokens, and keys of those that do not fill a group yet, bit for bit."""
    for payload, how, entries, held in appended(name, 60, 19):
        exact = min(held, residual if how.quantiser.tokens == 1 else held % residual)
        got = payload.read(held)
        assert torch.equal(got[:, :, held - exact :], entries[:, :, held - exact : held])
        if held - exact > 0:
            assert not torch.equal(got[:, :, held - exact - 1], entries[:, :, held - exact - 1])


def bytes_are_counted_to_the_last(name: str) -> None:
    """What is allocated is what was said, for any length, and what is in use is what codes and exact rows take."""
    for tokens, prompt in itertools.product((1, 3, 8, 9, 33, 60), (1, 7, 8, 16, 31)):
        for payload, how, entries, held in appended(name, max(tokens, prompt), prompt):
            heads = entries.shape[0] * entries.shape[1]
            stored = sum(t.untyped_storage().nbytes() for t in payload.tensors() if t.numel() > 0)
            shared = [t.data_ptr() for t in how.quantiser.tensors()]
            fixed = sum(t.nbytes for t in how.quantiser.tensors())
            assert stored - fixed == how.allocated_bytes(heads, 8, entries.shape[2], entries.dtype)
            used = 0
            for part in payload.entries(held, NOWHERE).parts:
                if isinstance(part, First):
                    given = [t for t in vars(part.run).values() if isinstance(t, Tensor) and t.data_ptr() not in shared]
                    used += sum(t.nbytes for t in given) * part.length // part.run.length
                else:
                    assert isinstance(part, Tensor)
                    used += part.nbytes
            assert used == how.used_bytes(heads, 8, held, entries.dtype)


def errors_are_those_of_plain_loops(name: str) -> None:
    """What packing is said to have done to a prompt is the distance to what plain loops make of it."""
    made, tokens = strategy(name), ids(4, 2, 24)
    assert isinstance(made.codec, PackedCodec)
    assert made.codec.residual == 0
    mine, full = (
        drive(model("llama_gqa"), each, tokens, uniform(new=1, rows=2)).cache for each in (made, full_cache())
    )
    found = squares(mine, full)
    for side, how in (("key", made.codec.key_quantiser), ("value", made.codec.value_quantiser)):
        error = size = 0.0
        for layer in full.layers:
            slots = slots_of(layer)
            entries = (slots.keys if side == "key" else slots.values).read(24)
            error += float((stand_ins(entries, how) - entries).square().sum())
            size += float(entries.square().sum())
        assert 0 < error < size
        assert abs(found[side][0] - error) < 1e-9 * size
        assert abs(found[side][1] - size) < 1e-9 * size


def shares_are_counted() -> None:
    """Exact numbers are the latest values, and keys that fill no group; first tokens and outliers are told apart."""
    for prompt, exact in ((24, 8), (27, 8 + 3), (5, 5 + 5)):
        cache = drive(model("llama_gqa"), strategy("kivi4"), ids(5, 1, prompt), uniform(prompt, new=1)).cache
        assert cache.shares() == {"exact_share": exact / (2 * prompt), "outlier_share": 0, "sink_share": 0}
        assert cache.numbers_held() == 2 * LAYERS * prompt * 2 * 8
    assert full_cache().build(view_of(model("gpt2")), uniform()).shares()["exact_share"] == 0
    cache = drive(model("llama_gqa"), strategy("streaming_kvquant"), ids(6, 1, 24), uniform(new=1)).cache
    sides = [side for layer in cache.layers for side in both(layer)]
    channels = sum(len(each.index) for side in sides for each in getattr(side, "outliers"))  # noqa: B009
    got = cache.shares()
    assert got["sink_share"] == 3 / 24
    assert got["exact_share"] == (24 - 3 - 16) / 24
    assert channels > 0
    assert abs(got["outlier_share"] - channels * 8 / (2 * LAYERS * 24 * 2 * 8)) < 1e-12


def both(layer: CacheLayer) -> tuple[object, object]:
    """Return the keys and the values of a layer."""
    return slots_of(layer).keys, slots_of(layer).values


def full_cache() -> CacheStrategy:
    """Return the full cache."""
    return strategy("baseline")


def selection_composes_with_codecs(codec: str) -> None:
    """SnapKV's entries are packed when the prompt has been read; what leaves while decoding is packed alone."""
    overrides = ("codec.residual=8", "codec.key_quantiser.group=4", "codec.value_quantiser.group=4")
    more = overrides if codec.startswith("kivi") else ()
    tokens, run = ids(2, 2, 24 + NEW), RunShape(prompt_lengths=(24, 17), new_tokens=NEW)
    names = ("snapkv",) if codec.startswith("kivi") else ("snapkv", "h2o", "sliding_window", "attention_sink")
    for name in names:
        made = strategy(name, f"strategy/codec={codec}", *more, tokens=12)
        got = drive(model("llama_gqa"), made, tokens, run)
        assert isinstance(made.codec, PackedCodec)
        want = drive(model("llama_gqa"), replace(made, codec=PretendedCodec(codec=made.codec)), tokens, run)
        torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=1e-9)
        dense = drive(model("llama_gqa"), strategy(name, tokens=12), tokens, run)
        assert got.cache.allocated_bytes() < dense.cache.allocated_bytes()
        assert got.logits.isfinite().all()


def sliding_layers_are_dense_where_tokens_are_packed_together() -> None:
    """A layer whose tokens leave one by one cannot pack them in groups: KIVI leaves it as it is."""
    cache = drive(model("gemma3"), strategy("kivi2"), ids(3, 1, 24 + NEW), uniform()).cache
    kinds = {
        layer.plan.shape.window > 0: type(slots_of(layer).keys).__name__ for layer in cache.layers if layer.plan.shape
    }
    assert len(cache.layers) == LAYERS
    assert kinds.get(True, "DensePayload") == "DensePayload"
    assert kinds.get(False, "PackedPayload") == "PackedPayload"
