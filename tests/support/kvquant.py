"""What must hold of entries that are the nearest numbers of a table: plain loops, bounds, and what was calibrated."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kvbench.cache.codecs.codebooks import Table
from kvbench.cache.codecs.kvquant import CodebookFormat, CodebookPayload, KVQuant
from kvbench.kernels.attend import Tile, attend_one
from kvbench.kernels.packed import Kernel, Rows
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support.checks import NEW, uniform
from tests.support.codecs import Weigher
from tests.support.drive import drive, padded, slots_of
from tests.support.measured import folder
from tests.support.models import ids, model
from tests.support.strategies import composed, strategy

ROTARY = torch.tensor([1.0, 0.3, 0.05, 0.01])  # of 11 channels, three of which are not rotated
BATCH, HEADS, DIM, SINKS = 2, 3, 11, 2
CHANNELS = HEADS * DIM


def side(bits: int = 3, *, keys: bool, rotary: Tensor | None = None, seed: int = 0, **changes: Any) -> CodebookFormat:
    """Return one side of a layer, with a table and scales drawn by lot."""
    rule = KVQuant(bits=bits, outliers=0.06, num_sink=SINKS, codebooks="", kernel="reference")
    random = torch.Generator().manual_seed(seed)
    levels = (2 * torch.rand(2**bits, generator=random) - 1).sort().values
    scale, low = (
        torch.rand(HEADS, DIM, generator=random).half() + 0.5,
        torch.randn(HEADS, DIM, generator=random).half(),
    )
    table = Table(levels=levels, scale=scale.half() if keys else None, low=low.half() if keys else None)
    return CodebookFormat(rule=replace(rule, **changes), table=table, rotary=rotary)


def text(tokens: int, seed: int = 1) -> Tensor:
    """Return entries [BATCH, HEADS, tokens, DIM] in float64, some of them large, and all of a token's alike."""
    made = torch.randn(BATCH, HEADS, tokens, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made[:, 1, ::3, 5] *= 20
    made[:, :, 3] = 0.3
    return made


def where(tokens: int) -> Tensor:
    """Return positions [BATCH, 1, tokens]."""
    return torch.arange(tokens, dtype=torch.int32).expand(BATCH, 1, -1)


def rotated(entries: Tensor, sign: int = 1) -> Tensor:
    """Return entries rotated by their positions, by complex numbers."""
    half = len(ROTARY)
    angle = torch.arange(entries.shape[2])[:, None] * ROTARY.double() * sign
    pairs = torch.complex(entries[..., :half], entries[..., half : 2 * half])
    pairs = pairs * torch.polar(torch.ones(()).double(), angle)
    return torch.cat([pairs.real, pairs.imag, entries[..., 2 * half :]], dim=-1)


def filled(how: CodebookFormat, entries: Tensor, prompt: int) -> CodebookPayload:
    """Return a payload after a prompt and the tokens that follow it."""
    tokens = entries.shape[2]
    payload = how.empty(entries, tokens)
    payload.write(0, entries[:, :, :prompt], where(tokens)[:, :, :prompt])
    for at in range(prompt, tokens):
        payload.write(at, entries[:, :, at : at + 1], at)
        payload.settle(where(tokens))
    return payload


def outliers_of(how: CodebookFormat, token: list[float]) -> set[int]:
    """Return which of a token's numbers stay exact, by sorting."""
    if how.table.scale is None:
        middle = sorted(token)[(len(token) - 1) // 2]
        far = [abs(number - middle) for number in token]
    else:
        assert how.table.low is not None
        scale, low = how.table.scale.flatten().tolist(), how.table.low.flatten().tolist()
        far = [abs(number - least) / step for number, least, step in zip(token, low, scale, strict=True)]
    count = max(1, round(how.rule.outliers * len(token)))
    return set(sorted(range(len(token)), key=lambda at: -far[at])[:count])


def scales_of(how: CodebookFormat, token: list[float]) -> tuple[list[float], list[float]]:
    """Return scale and low of each of a token's numbers."""
    if how.table.scale is not None and how.table.low is not None:
        return how.table.scale.flatten().tolist(), how.table.low.flatten().tolist()
    rest = [number for at, number in enumerate(token) if at not in outliers_of(how, token)]
    scale, low = np.float16((max(rest) - min(rest)) / 2), np.float16((max(rest) + min(rest)) / 2)
    return [float(scale)] * len(token), [float(low)] * len(token)


def plain(how: CodebookFormat, entries: Tensor, first: int = SINKS) -> Tensor:
    """Return what stands for entries, by plain loops, the first ones as they are."""
    out, levels = entries.clone(), how.table.levels.tolist()
    for row, at in itertools.product(range(len(entries)), range(first, entries.shape[2])):
        token = entries[row, :, at].flatten().tolist()
        exact, (scale, low) = outliers_of(how, token), scales_of(how, token)
        for channel, number in enumerate(token):
            unit = (number - low[channel]) / (scale[channel] or 1.0)
            level = min(levels, key=lambda each, unit=unit: abs(each - unit))  # type: ignore[misc]
            made = float(np.float16(number)) if channel in exact else level * scale[channel] + low[channel]
            out[row, channel // DIM, at, channel % DIM] = made
    return out


def codes_equal_plain_loops() -> None:
    """What is packed stands for what plain loops make of it, on both sides, in a prompt and after it."""
    for bits, keys in itertools.product((2, 3, 4), (True, False)):
        how, entries = side(bits, keys=keys), text(23)
        want = plain(how, entries)
        for prompt in (23, 9, 1):
            got = filled(how, entries, prompt).read(23, where(23))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def keys_are_kept_as_they_were_before_rotation() -> None:
    """Rotated keys are packed as plain loops pack them unrotated, and come back rotated."""
    bare, how = text(23, seed=2), side(keys=True, rotary=ROTARY)
    payload = filled(how, rotated(bare), 9)
    got = rotated(payload.read(23, where(23)), -1)
    torch.testing.assert_close(got, plain(how, bare), rtol=0, atol=1e-6)


def outliers_and_first_tokens_are_exact() -> None:
    """The first tokens are kept bit for bit, and of every other one the outliers as float16 has them."""
    for keys in (True, False):
        how, entries = side(keys=keys), text(23, seed=3)
        got = filled(how, entries, 9).read(23, where(23))
        assert torch.equal(got[:, :, :SINKS], entries[:, :, :SINKS])
        for row, at in itertools.product(range(BATCH), range(SINKS, 23)):
            token, mine = (t[row, :, at].flatten() for t in (entries, got))
            exact = sorted(outliers_of(how, token.tolist()))
            assert len(exact) == 2
            assert torch.equal(mine[exact], token[exact].half().double())


def others_stay_within_their_bound() -> None:
    """What is no outlier moves by half the widest gap of the table at most, or to its end, times the scale."""
    for bits, keys in itertools.product((2, 3, 4), (True, False)):
        how, entries = side(bits, keys=keys, seed=bits), text(60, seed=4)
        got, levels = filled(how, entries, 60).read(60, where(60)), how.table.levels.double()
        reach = max(float(levels.diff().max()) / 2, 1 + float(levels[0]), 1 - float(levels[-1]))
        seen = 0
        for row, at in itertools.product(range(BATCH), range(SINKS, 60)):
            token, mine = (t[row, :, at].flatten() for t in (entries, got))
            scale, low = (torch.tensor(each, dtype=torch.float64) for each in scales_of(how, token.tolist()))
            rounding = (low.abs() + scale) * 2**-10
            inside = (token - low).abs() <= scale + (0 if keys else rounding)
            inside[list(outliers_of(how, token.tolist()))] = False
            seen += int(inside.sum())
            assert ((mine - token).abs() <= reach * scale + rounding)[inside].all()
            assert keys or inside.sum() == CHANNELS - 2, "a value that is no outlier lies outside"
        assert seen > 0.3 * entries.numel()


def a_token_is_written_once() -> None:
    """What is kept of a token never changes, however many follow."""
    for keys in (True, False):
        how, entries = side(keys=keys), text(20, seed=5)
        payload = how.empty(entries, 20)
        before: dict[str, Tensor] = {}
        for at in range(20):
            payload.write(at, entries[:, :, at : at + 1], at)
            kept = {"first": payload.first, **payload.packed}
            for name, rows in before.items():
                assert torch.equal(kept[name][:, :, : rows.shape[2]], rows)
            before = {
                name: rows[:, :, : min(at + 1, SINKS) if name == "first" else max(0, at + 1 - SINKS)].clone()
                for name, rows in kept.items()
            }


def any_slot_can_be_written() -> None:
    """Entries that go to slots of their own, the first ones included, are what they are anywhere else."""
    for keys in (True, False):
        how, entries, fresh = side(keys=keys), text(12, seed=6), text(6, seed=7)
        payload = filled(how, entries, 12)
        slots = torch.tensor([[0, 5], [7, 1], [11, 2], [5, 7], [1, 0], [3, 3]])
        now = entries.clone()
        for at, slot in enumerate(slots):
            payload.scatter(slot[:, None], fresh[:, :, at : at + 1], torch.full((BATCH, 1, 1), 40 + at))
            now[range(BATCH), :, slot] = fresh[:, :, at]
        torch.testing.assert_close(payload.read(12, where(12)), plain(how, now), rtol=0, atol=1e-9)


def bytes_are_counted_to_the_last() -> None:
    """The closed forms are the bytes held, of any length, before and after it grew."""
    for keys, bits, dtype in itertools.product((True, False), (2, 3, 4), (torch.float64, torch.bfloat16)):
        how, entries = side(bits, keys=keys), text(9).to(dtype)
        for capacity in (1, SINKS, 3, 9):
            payload = how.empty(entries, capacity)
            for room in (capacity, capacity + 5):
                payload.grow(room, 0)
                held = [payload.first, *payload.packed.values()]
                assert payload.capacity == room
                assert all(t.untyped_storage().nbytes() == t.nbytes for t in held if t.numel() > 0)
                assert sum(t.nbytes for t in held) == BATCH * how.allocated_bytes(HEADS, DIM, room, dtype)
                assert {t.data_ptr() for t in held} < {t.data_ptr() for t in payload.tensors()}
    made = strategy("kvquant3").codec.of_layer(view_of(model("llama_gqa")), 1)
    assert made.fixed_bytes == 2 * 8 * 4 + 2 * 2 * (2 * 8)  # two tables of 8 in float32; 16 channels' scale and low


def attention_is_that_on_what_is_read(kernel: Kernel = "reference") -> None:
    """Products with the entries, and sums of them, are those of what is read; so is all attention of a model."""
    dtype, tolerance = (torch.float32, 1e-4) if kernel != "reference" else (torch.float64, 1e-9)
    for rotary, keys in ((None, True), (ROTARY, True), (None, False)):
        how, entries = side(keys=keys, rotary=rotary, kernel=kernel), text(45, seed=8).to(dtype)
        payload = filled(how, entries, 30)
        made, whole = payload.entries(45, where(45)), payload.read(45, where(45)).double()
        assert isinstance(made, Rows)
        assert made.exact == SINKS
        assert made.outlier_entries == pytest.approx((45 - SINKS) * 2 / CHANNELS)
        rows = torch.randn(BATCH, HEADS, 3, DIM, generator=torch.Generator().manual_seed(9), dtype=dtype)
        weights = torch.rand(BATCH, HEADS, 3, 45, generator=torch.Generator().manual_seed(10), dtype=dtype)
        logits = made.logits(rows).double()
        torch.testing.assert_close(logits, rows.double() @ whole.transpose(-1, -2), rtol=0, atol=tolerance)
        if rotary is None:
            got = made.weighted(weights).double()
            torch.testing.assert_close(got, weights.double() @ whole, rtol=0, atol=tolerance)


ENTRIES = CodebookPayload.entries


def as_numbers(self: CodebookPayload, stop: int, position: Tensor) -> Tensor:
    """Return what is read instead of what is packed."""
    return ENTRIES(self, stop, position).numbers(0, stop, torch.float64)


def selection_composes(name: str) -> None:
    """Methods that select hold what they hold without packing, nearly; attention is that on what is read."""
    tokens, run = ids(2, 2, 24 + NEW), RunShape(prompt_lengths=(24, 17), new_tokens=NEW)
    mine = (
        "strategy/codec=kvquant4",
        f"codec.codebooks='{folder('codebooks')}'",
        "codec.num_sink=2",
        "strategy/position=original",
    )
    made = strategy(name, *mine, tokens=12)
    got = drive(model("llama_gqa"), made, tokens, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CodebookPayload, "entries", as_numbers)
        want = drive(model("llama_gqa"), made, tokens, run)
    torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=1e-9)
    dense = drive(model("llama_gqa"), strategy(name, "strategy/position=original", tokens=12), tokens, run)
    full = slots_of(drive(model("llama_gqa"), strategy("baseline"), tokens, run).cache.layers[0])
    assert got.cache.allocated_bytes() < dense.cache.allocated_bytes()
    for region, store in got.cache.layers[0].stores:  # its keys and values do not depend on what is read
        slots = store.slots
        position = slots.position[:, :, : slots.filled, None].long()
        pad = 24 - run.prompt_lengths[region.rows.start]
        for packed, exact in ((slots.keys, full.keys), (slots.values, full.values)):
            entries = exact.read(full.filled)[region.rows, region.heads, pad:]
            there = entries.gather(2, position.clamp(min=0).expand(-1, entries.shape[1], -1, entries.shape[3]))
            moved = (packed.read(slots.filled, slots.position) - there) * (position >= 0)
            assert moved.square().sum() < 0.05 * there.square().sum()


def sinks_that_move_along_compose() -> None:
    """Sinks that are turned at every step are written anew, exact ones and packed ones, as the full ones are."""
    codec = ("strategy/codec=kvquant4", f"codec.codebooks='{folder('codebooks')}'", "codec.num_sink=2")
    made = [strategy("attention_sink", *more, tokens=12) for more in (codec, ())]
    caches = [drive(model("llama_gqa"), each, ids(3, 1, 24 + NEW), uniform()).cache for each in made]
    got, want = (slots_of(cache.layers[0]) for cache in caches)
    mine, theirs = got.keys.read(got.filled, got.position)[:, :, :4], want.keys.read(want.filled)[:, :, :4]
    assert torch.equal(mine[:, :, :2], theirs[:, :, :2])
    assert (mine - theirs).square().sum() < 0.05 * theirs.square().sum()


def rows_begin_with_their_first_tokens() -> None:
    """In a batch of rows of different lengths each has the logits it has alone, its own first tokens exact."""
    made, lengths = strategy("kvquant3"), (24, 17)
    rows = [ids(16 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    got = drive(model("llama_gqa"), made, padded(rows), RunShape(prompt_lengths=lengths, new_tokens=NEW))
    for row, (tokens, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = drive(model("llama_gqa"), made, tokens[None], uniform(length))
        torch.testing.assert_close(got.logits[row, 24 - length :], alone.logits[0], rtol=0, atol=1e-9)


def a_step_needs_little_room(kernel: Kernel = "reference") -> None:
    """What a decode step at 4,096 tokens makes beside the cache is below a tenth of the layer's cache in float16."""
    made = composed("kvquant3", f"codec.kernel={kernel}", "codec.codebooks=/nowhere").codec
    view = view_of(model("llama_mha"))
    shape = replace(view.layers[0], query_heads=8, kv_heads=4, key_dim=64, value_dim=64, rotary=torch.rand(32))
    bare = replace(shape, output=torch.empty(8, 64, 8, device="meta"))  # no weights, and so no file
    layer = made.of_layer(replace(view, layers=(bare,), dtype=torch.float32), 0)
    keys, values = (torch.randn(1, 4, 4200, 64, generator=torch.Generator().manual_seed(seed)) for seed in (11, 12))
    position = torch.arange(4200, dtype=torch.int32)[None, None]
    payloads = [how.empty(keys, 4200) for how in (layer.key_format, layer.value_format)]
    for payload, entries in zip(payloads, (keys, values), strict=True):
        payload.write(0, entries[:, :, :4096], position[:, :, :4096])
    query = torch.randn(1, 8, 1, 64, generator=torch.Generator().manual_seed(13)) / 30
    with Weigher() as weigher:
        for payload, entries in zip(payloads, (keys, values), strict=True):
            payload.write(4096, entries[:, :, 4096:4097], 4096)
        read = [payload.entries(4097, position) for payload in payloads]
        attend_one(query, [Tile(read[0], read[1])], 0.1, with_weights=False)
        del read
    assert 0 < weigher.most < 0.1 * (2 * 4 * 4096 * 64 * torch.float16.itemsize)


def a_model_without_weights_is_counted() -> None:
    """Without weights nothing is looked up, and bytes are what they are with codebooks."""
    view = view_of(model("llama_mha"))
    layers = tuple(replace(each, output=each.output.to("meta")) for each in view.layers if each.output is not None)
    bare = replace(view, layers=layers)
    for name in ("kvquant2", "kvquant3", "kvquant4"):
        made, told = composed(name, "codec.codebooks=/nowhere"), strategy(name, "codec.num_sink=1")
        assert made.allocated_bytes(bare, uniform()) == told.allocated_bytes(view, uniform())
