"""What must hold of entries that are packed chunk by chunk: plain loops, bounds, and two ways to one end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvbench.cache.codecs.chunks import Streamed, StreamPayload
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.codecs.streaming import StreamFormat, Streaming
from kvbench.kernels.attend import Tile, attend_one
from kvbench.kernels.packed import Kernel, Packed
from tests.support.checks import assert_close
from tests.support.codecs import Weigher, rand

ROTARY = torch.tensor([1.0, 0.3, 0.05])  # of 8 channels, two of which are not rotated
HEADS, DIM, CHUNK, SINKS = 2, 8, 8, 3


def rule(**changes: Any) -> Streaming:
    """Return a codec with small chunks."""
    made = Streaming(
        chunk=CHUNK,
        decay=0.75,
        outlier_above=6.0,
        outlier_growth=2.0,
        num_sink=SINKS,
        key_bits=4,
        key_bits_high=8,
        value_bits=3,
        value_bits_high=8,
        value_groups=-1,
        scale="max",
        kernel="reference",
    )
    return replace(made, **changes)


def side(bits: int = 4, groups: int = -1, rotary: Tensor | None = None, **changes: Any) -> StreamFormat:
    """Return one side of a layer."""
    return StreamFormat(rule=rule(**changes), bits=bits, high=8, groups=groups, rotary=rotary)


def text(tokens: int, seed: int = 0) -> Tensor:
    """Return entries [1, HEADS, tokens, DIM] in float64, of which some channels grow and one is always large."""
    made = torch.randn(1, HEADS, tokens, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made[:, 0, :, 2] *= 8
    made[:, 1, tokens // 2 :, 5] *= 4
    return made.float().double()


def where(tokens: int) -> Tensor:
    """Return positions [1, 1, tokens]."""
    return torch.arange(tokens, dtype=torch.int32)[None, None]


def rotated(entries: Tensor, sign: int = 1) -> Tensor:
    """Return entries rotated by their positions, by complex numbers."""
    half = len(ROTARY)
    angle = torch.arange(entries.shape[2])[:, None] * ROTARY.double() * sign
    pairs = torch.complex(entries[..., :half], entries[..., half : 2 * half]) * torch.polar(
        torch.ones(()).double(), angle
    )
    return torch.cat([pairs.real, pairs.imag, entries[..., 2 * half :]], dim=-1)


def filled(how: StreamFormat, entries: Tensor, prompt: int, position: Tensor | None = None) -> StreamPayload:
    """Return a payload after a prompt and the tokens that follow it."""
    tokens = entries.shape[2]
    position = where(tokens) if position is None else position
    payload = how.empty(entries, tokens)
    payload.write(0, entries[:, :, :prompt], position[:, :, :prompt])
    for at in range(prompt, tokens):
        payload.write(at, entries[:, :, at : at + 1], at)
        payload.settle(position)
    return payload


def plain(how: StreamFormat, entries: Tensor) -> tuple[Tensor, int]:
    """Return what stands for entries [1, HEADS, T, DIM], by plain loops, and how many channels were outliers."""
    rules, out, outliers = how.rule, entries.clone(), 0
    width = 1 if how.groups == -1 else DIM // how.groups
    for head in range(HEADS):
        for channel in range(DIM) if rules.num_sink else ():
            first = out[0, head, : rules.num_sink, channel]
            first.copy_(torch.tensor(rounded(first.tolist(), max(map(abs, first.tolist())), 8)))
        average: dict[int, float] = {}
        for start in range(rules.num_sink, entries.shape[2] - rules.chunk + 1, rules.chunk):
            chunk = entries[0, head, start : start + rules.chunk].tolist()
            for group in range(0, DIM, width):
                largest = max(abs(float(np.float32(row[c]))) for row in chunk for c in range(group, group + width))
                before = average.get(group, largest)
                average[group] = rules.decay * before + (1 - rules.decay) * largest
                outgrows = start > rules.num_sink and 0 < rules.outlier_growth * before < largest
                is_outlier = outgrows or 0 < rules.outlier_above < largest
                for c in range(group, group + width):
                    numbers = [row[c] for row in chunk]
                    if is_outlier:
                        outliers += 1
                        made = rounded(numbers, max(map(abs, numbers)), how.high)
                    else:
                        reach = max(average[group], largest) if rules.scale == "max" else average[group]
                        made = rounded(numbers, reach, how.bits)
                    out[0, head, start : start + rules.chunk, c] = torch.tensor(made, dtype=torch.float64)
    return out, outliers


def rounded(numbers: list[float], reach: float, bits: int) -> list[float]:
    """Return numbers rounded to steps of which so many reach so far."""
    most = 2 ** (bits - 1) - 1
    scale = float(np.float16(reach / most)) or 1.0
    return [float(np.clip(np.rint(np.float32(number) / np.float32(scale)), -most, most)) * scale for number in numbers]


def chunks_equal_plain_loops() -> None:
    """What is packed stands for what plain loops make of it, for every rule, in a prompt and after it."""
    rules: list[dict[str, Any]] = [
        {},
        {"scale": "ema"},
        {"outlier_above": 0.0},
        {"outlier_growth": 0.0, "num_sink": 0},
        {"decay": 0.0, "num_sink": 1},
    ]
    seen = 0
    for changes, (bits, groups) in itertools.product(rules, ((4, -1), (2, 2), (3, 1), (8, 4))):
        how, entries = side(bits, groups, **changes), text(45)
        want, outliers = plain(how, entries)
        for prompt in (45, 20, 11):
            payload = filled(how, entries, prompt)
            torch.testing.assert_close(payload.read(45, where(45)), want, rtol=0, atol=1e-6)
            assert sum(len(each.index) for each in payload.outliers) == outliers
        seen += outliers
    assert seen > 0


def keys_are_packed_as_they_were_before_rotation() -> None:
    """Rotated keys are packed as plain loops pack them unrotated, and come back rotated."""
    bare = text(45, seed=1)
    want, _ = plain(side(), bare)
    payload = filled(side(rotary=ROTARY), rotated(bare), 20)
    got = rotated(payload.read(45, where(45)), -1)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def numbers_stay_within_their_bounds() -> None:
    """With the larger of both scales nothing is clipped; first tokens and outliers keep 8 bits of their own size."""
    entries = text(SINKS + 5 * CHUNK, seed=2)
    how = side()
    payload = filled(how, entries, entries.shape[2])
    moved = (payload.read(entries.shape[2], where(entries.shape[2])) - entries).abs()
    fine = 1 / (2 * 127) * (1 + 2**-9)
    first = entries[:, :, :SINKS].abs().amax(dim=2, keepdim=True)
    assert (moved[:, :, :SINKS] <= first * fine).all()
    for at, each in enumerate(payload.outliers):
        chunk = slice(SINKS + at * CHUNK, SINKS + (at + 1) * CHUNK)
        limit = payload.scale[:, :, at].double() / 2 * (1 + 2**-9)
        flat = limit.flatten()
        flat[each.index.long()] = entries[:, :, chunk].abs().amax(dim=2).flatten()[each.index.long()] * fine
        assert (moved[:, :, chunk] <= flat.view_as(limit)[:, :, None]).all()
    assert any(len(each.index) > 0 for each in payload.outliers)


def one_chunk_is_the_largest_by_channel() -> None:
    """A chunk as long as the prompt, without limits, is symmetric rounding by channel."""
    entries = text(24, seed=3)
    how = side(chunk=24, num_sink=0, outlier_above=0.0, outlier_growth=0.0)
    plainly = Quantiser(bits=4, along="tokens", group=24, symmetric=True, levels="integers", clip=1.0, scales="float16")
    codes, scale, _ = plainly.encode(entries)
    want = Packed(plainly.form(DIM), codes, scale, None, "reference").dense(0, 24, torch.float64)
    assert_close(filled(how, entries, 24).read(24, where(24)), want)


def what_does_not_change_has_no_outliers() -> None:
    """Where every chunk is the same the average stays what it is, and nothing outgrows it."""
    entries = text(SINKS + CHUNK, seed=4)
    entries = torch.cat([entries, *[entries[:, :, SINKS:]] * 4], dim=2)
    how = side(outlier_above=0.0)
    payload = filled(how, entries, entries.shape[2])
    largest = entries[:, :, SINKS : SINKS + CHUNK].abs().amax(dim=2)
    torch.testing.assert_close(payload.average.double(), largest, rtol=1e-6, atol=0)
    assert payload.chunks == 5
    assert all(len(each.index) == 0 for each in payload.outliers)


def bytes_count_the_outliers_there_are() -> None:
    """The closed forms, less what outliers that are none would take, are the bytes held and used."""
    for tokens, prompt in itertools.product((2, 11, 19, 45), (2, 11, 30)):
        entries = text(max(tokens, prompt), seed=5)
        how = side()
        payload = filled(how, entries, prompt)
        length = entries.shape[2]
        held = sum(t.untyped_storage().nbytes() for t in payload.tensors() if t.numel() > 0)
        most = how.allocated_bytes(HEADS, DIM, length, torch.float64)
        room = how.chunks(length) * HEADS * DIM - sum(len(each.index) for each in payload.outliers)
        assert held == most - how.outlier_bytes(room)
        sinks, packed = min(SINKS, prompt), payload.packed
        parts = [payload.first_codes[:, :, :sinks], payload.first_scale, payload.average]
        parts += [payload.codes[:, :, : packed - sinks], payload.scale[:, :, : payload.chunks]]
        parts += [payload.exact[:, :, : length - packed]]
        parts += [t for each in payload.outliers for t in (each.index, each.rows.codes, each.rows.scale)]
        used = sum(t.numel() * t.element_size() for t in parts)
        if prompt >= SINKS:
            assert used == how.used_bytes(HEADS, DIM, length, torch.float64) - payload.unused_bytes()


def attention_reads_what_is_held(kernel: Kernel = "reference") -> None:
    """Products with the entries, and sums of them, are those of what they stand for."""
    dtype, tolerance = (torch.float32, 1e-4) if kernel != "reference" else (torch.float64, 1e-6)
    entries = torch.cat([text(45, seed=6), text(45, seed=9)]).to(dtype)
    entries[:, 0, :, 7] *= 8  # is not rotated
    by_head = torch.randint(0, 2**17, (2, HEADS, 45), generator=torch.Generator().manual_seed(10), dtype=torch.int32)
    rows = torch.randn(2, HEADS, 3, DIM, generator=torch.Generator().manual_seed(7), dtype=dtype)
    weights = torch.rand(2, HEADS, 3, 45, generator=torch.Generator().manual_seed(8), dtype=dtype)
    for rotary, position in ((None, where(45)), (ROTARY, where(45).expand(2, -1, -1)), (ROTARY, by_head)):
        payload = filled(side(rotary=rotary, kernel=kernel), entries, 30, position)
        made = payload.entries(45, position)
        assert isinstance(made, Streamed)
        whole = payload.read(45, position).double()
        want = rows.double() @ whole.transpose(-1, -2)
        torch.testing.assert_close(made.logits(rows).double(), want, rtol=0, atol=tolerance)
        if rotary is None:
            want = weights.double() @ whole
            torch.testing.assert_close(made.weighted(weights).double(), want, rtol=0, atol=tolerance)


def a_step_needs_little_room(kernel: Kernel, rotary: int) -> None:
    """What a step that packs nothing makes beside 4,096 tokens is below a tenth of the layer's cache in float16."""
    frequency = 1e4 ** -(torch.arange(rotary) / rotary) if rotary else None
    rules = rule(chunk=256, num_sink=8, kernel=kernel)
    keys, values = rand(2, 1, 4, 4096, 64, seed=11)
    key_side, value_side = (replace(side(rotary=each), rule=rules) for each in (frequency, None))
    stored = [filled(key_side, keys, 4096), filled(value_side, values, 4096)]
    assert all(len(each.index) > 3 for payload in stored for each in payload.outliers)
    query, newest = rand(1, 8, 1, 64, seed=12) / 30, rand(1, 4, 1, 64, seed=13)
    with Weigher() as weigher:
        for payload in stored:
            payload.write(4096, newest, 4096)
        tiles = [Tile(stored[0].entries(4097, where(4097)), stored[1].entries(4097, where(4097)))]
        attend_one(query, tiles, 0.1, with_weights=False)
    assert 0 < weigher.most < 0.1 * (2 * keys.numel() * torch.float16.itemsize)
