"""What must hold where two layers share their prompt's directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.pair import Half, Prompt, Shared, share
from kvbench.cache.rotary import turn
from kvbench.kernels.attend import Own, Tile, attend_one
from kvbench.models.view import view_of
from kvbench.strategies.layout.paired import Paired
from kvbench.types import DECODE, RunShape
from tests.support.checks import NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded
from tests.support.models import WIDTH, ids, model
from tests.support.parts import rand
from tests.support.restored import Restoring, by_restoring, deep_model, forward, joined, restored
from tests.support.steps import HOST, Recorder
from tests.support.storage import KV_HEADS, storages_are_exact_and_reported
from tests.support.strategies import strategy


def paired(**changes: Any) -> Paired:
    """Return the layout as its yaml makes it, but for some numbers."""
    settings: dict[str, Any] = {
        "start": 0.5,
        "start_unit": "ratio",
        "blend": 0.6,
        "retained_share": 0.05,
        "num_sink": 0,
        "granularity": "head",
    }
    return Paired(**(settings | changes))


def equals_attention_to_what_is_restored(
    model_name: str, *, lengths: Sequence[int] = (PROMPT,), overrides: Sequence[str] = (), lower: Sequence[int] = (0,)
) -> None:
    """Logits of every row equal those of dense attention to restored keys and values of the row alone."""
    made = strategy("minicache", *overrides)
    assert isinstance(made.layout, Paired)
    network = deep_model() if model_name == "deep" else model(model_name)
    texts = [ids(70 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    got = drive(network, made, padded(texts), RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW))
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        want = by_restoring(network, text[None], length, made.layout, lower)[0]
        assert_close(got.logits[row, max(lengths) - length :], want)
        full = forward(network, text[None], Restoring(prompt=length))[0]
        assert (want - full).abs().max() > 1e-3, "merging changes nothing here: the comparison proves nothing"


# -- the arithmetic ---------------------------------------------------------------------------------------------------


def _angle(a: Tensor, b: Tensor) -> float:
    cosine = torch.dot(a, b).item() / math.hypot(*a.tolist()) / math.hypot(*b.tolist())
    return math.acos(max(-1.0, min(1.0, cosine)))


def shared(
    layout: Paired, lower: Tensor, upper: Tensor, lengths: Sequence[int] | None = None, *, is_value: bool = False
) -> Shared:
    """Return two layers' vectors [B, G, n, D] as they are stored."""
    run = RunShape(prompt_lengths=tuple(lengths or [lower.shape[2]] * len(lower)), new_tokens=1)
    at = torch.stack([torch.arange(lower.shape[2]) - pad for pad in run.padding])[:, None].clamp(min=-1).int()
    return share(layout, run, at, lower, upper, is_value=is_value)


def read(stored: Shared, layer: int) -> Tensor:
    """Return the vectors [B, G, n, D] of one layer, restored."""
    heads, width = stored.directions.shape[1], stored.directions.shape[3]
    out = stored.directions * stored.lengths[layer][..., None]
    at = stored.index.expand(-1, heads, -1)[..., None].expand(-1, -1, -1, width)
    return out.scatter(2, at, stored.own[layer])


def direction_lies_between() -> None:
    """The shared direction is `blend` of the angle away from the lower layer's and the rest from the upper one's."""
    lower, upper = rand(2, 3, 20, 8, seed=1), rand(2, 3, 20, 8, seed=2) * 3
    for blend in (0.6, 0.25, 0.0, 1.0):
        direction, angle = paired(blend=blend).merge(lower, upper)
        for row, head, at in ((r, h, n) for r in range(2) for h in range(3) for n in range(20)):
            a, b, e = lower[row, head, at], upper[row, head, at], direction[row, head, at]
            whole = _angle(a, b)
            assert abs(angle[row, head, at].item() - whole) < 1e-9
            assert abs(math.hypot(*e.tolist()) - 1) < 1e-12
            assert abs(_angle(a, e) - blend * whole) < 1e-7  # an arc cosine near 1
            assert abs(_angle(e, b) - (1 - blend) * whole) < 1e-7
        whole_tokens, _ = paired(blend=blend, granularity="token").merge(lower, upper)
        a, b, e = (joined(t[0])[0, 7] for t in (lower, upper, whole_tokens))
        assert abs(_angle(a, e) - blend * _angle(a, b)) < 1e-7


def lengths_are_kept() -> None:
    """Every vector of both layers is as long as it was, at right angles and nearly opposite too, and finite."""
    lower, upper = rand(1, 2, 40, 6, seed=3), rand(1, 2, 40, 6, seed=4) * 5
    upper[:, :, 0] = -lower[:, :, 0] * 2 + 1e-9 * upper[:, :, 0]
    upper[:, :, 1] = lower[:, :, 1] * (1 + 1e-12)
    upper[:, :, 2] = lower[:, :, 2].flip(-1) * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    for granularity in ("head", "token"):
        stored = shared(paired(retained_share=0.0, granularity=granularity), lower, upper)
        over = (1, 3) if granularity == "token" else (3,)
        for layer, want in enumerate((lower, upper)):
            assert_close(read(stored, layer).norm(dim=over), want.norm(dim=over))


def identical_layers_are_restored() -> None:
    """What both layers agree on is lost in neither, however long their vectors are; zeros stay zeros."""
    lower = rand(2, 2, 30, 8, seed=5)
    lower[:, :, 3] = 0
    upper = lower * torch.linspace(0.1, 7, 30, dtype=torch.float64)[:, None]
    for granularity, other in (("head", upper), ("token", lower)):
        stored = shared(paired(granularity=granularity, retained_share=0.1), lower, other)
        assert_close(read(stored, 0), lower)
        assert_close(read(stored, 1), other)


def retained_tokens_are_exact(lengths: Sequence[int] = (41, 41)) -> None:
    """The most distant tokens of each head and row, and the first ones if so told, are what they were in both layers.

    Of keys and values these are not the same ones.
    """
    tokens = max(lengths)
    for changes in ({}, {"retained_share": 0.2}, {"num_sink": 4}, {"retained_share": 0.2, "granularity": "token"}):
        layout = paired(**changes)
        indices = []
        for seed in (6, 8):
            lower, upper = rand(len(lengths), 2, tokens, 8, seed=seed), rand(len(lengths), 2, tokens, 8, seed=seed + 1)
            stored = shared(layout, lower, upper, lengths)
            indices.append(stored.index)
            for row, length in enumerate(lengths):
                pad = tokens - length
                first, second, kept = restored(lower[row, :, pad:], upper[row, :, pad:], layout)
                assert_close(read(stored, 0)[row, :, pad:], first)
                assert_close(read(stored, 1)[row, :, pad:], second)
                for head, wanted in enumerate(kept):
                    assert torch.equal(read(stored, 1)[row, head, pad:][wanted], upper[row, head, pad:][wanted])
                    assert set(range(layout.num_sink)) <= set(wanted)
        assert not torch.equal(*indices) or layout.num_sink > 2


def merging_commutes_with_rotation() -> None:
    """Keys turned and then merged are keys merged and then turned, and as far apart."""
    frequency = torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64)
    lower, upper = rand(1, 2, 10, 8, seed=10), rand(1, 2, 10, 8, seed=11)
    for granularity in ("head", "token"):
        layout = paired(granularity=granularity)
        direction, angle = layout.merge(lower, upper)
        for shift in (1, 17, 500):
            turned, same = layout.merge(turn(lower, shift, frequency), turn(upper, shift, frequency))
            assert_close(turned, turn(direction, shift, frequency))
            assert_close(same, angle)


def scaled_tiles_equal_dense() -> None:
    """Attention to directions, lengths and rows of their own is attention to the vectors these stand for."""
    query = rand(2, 4, 1, 8, seed=12)
    for sets in (1, 2):
        keys, values = (_stored_tile(seed, sets) for seed in (13, 15))
        (key_tile, dense_keys), (value_tile, dense_values) = keys, values
        value_scale = value_tile[1].scatter(2, value_tile[2].index, 0.0)
        visible = torch.ones(2, 1, 12, dtype=torch.bool)
        visible[0, :, :5] = False
        tile = Tile(
            key_tile[0],
            value_tile[0],
            visible=visible,
            key_scale=key_tile[1],
            value_scale=value_scale,
            own_keys=key_tile[2],
            own_values=value_tile[2],
        )
        more = Tile(rand(2, 2, 3, 8, seed=17), rand(2, 2, 3, 8, seed=18))
        want, _ = attend_one(query, [Tile(dense_keys, dense_values, visible=visible), more], 0.7, with_weights=False)
        got, _ = attend_one(query, [tile, more], 0.7, with_weights=False)
        assert_close(got, want)


def _stored_tile(seed: int, sets: int) -> tuple[tuple[Tensor, Tensor, Own], Tensor]:
    directions, lengths = rand(2, 2, 12, 8, seed=seed), rand(2, sets, 12, seed=seed + 1).abs() * 3
    index = torch.tensor([[6, 9], [1, 11]])[:, None].expand(-1, sets, -1)
    if sets == 2:
        index = torch.stack([index[:, 0], index[:, 0].flip(0).clamp(min=5)], dim=1)
    rows = rand(2, 2, 2, 8, seed=seed + 2)
    dense = directions * lengths[..., None]
    for row in range(2):
        for head in range(2):
            for r in range(2):
                dense[row, head, index[row, head % sets, r]] = rows[row, head, r]
    return (directions, lengths, Own(index, rows)), dense


# -- identities, bytes and steps --------------------------------------------------------------------------------------


def retaining_everything_is_the_baseline(model_name: str) -> None:
    """With a share of one nothing is merged, and padded rows are no exception."""
    lengths = (17, PROMPT)
    tokens = padded([ids(74 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    run = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    base = drive(model(model_name), strategy("baseline"), tokens, run)
    for more in ("layout.retained_share=1.0", "layout.num_sink=24"):
        got = drive(model(model_name), strategy("minicache", more), tokens, run)
        assert_close(got.logits, base.logits)


def bytes_of_a_pair(
    model_name: str,
    lengths: Sequence[int] = (PROMPT, PROMPT),
    dtype: torch.dtype = torch.float64,
    granularity: str = "head",
) -> None:
    """One direction, two lengths and a share of own rows, for keys and for values; new tokens in each layer."""
    made = strategy("minicache", "layout.retained_share=0.2", f"layout.granularity={granularity}")
    run, pads, rows = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW), len(set(lengths)) > 1, len(lengths)
    tokens = padded([ids(76 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    heads, item = KV_HEADS.get(model_name, 2), dtype.itemsize
    sets = 1 if granularity == "token" else heads
    retained = [-(-length // 5) for length in lengths]
    vector, entry = heads * WIDTH * item, 2 * heads * WIDTH * item + 4

    def prompt(columns: int, kept: int, layers: int) -> int:
        shares = vector + layers * sets * item  # a direction, and its lengths
        return columns * (2 * shares + 4) + 2 * kept * (8 * sets + layers * vector)

    want = prompt(rows * max(lengths), rows * max(retained), 2) + 2 * rows * NEW * entry + 4 * rows * pads
    view = view_of(model(model_name, dtype))
    assert made.allocated_bytes(view, run) == want

    def watch(cache: KVCache, seen: int) -> None:
        tail = 2 * rows * (seen - max(lengths)) * entry
        assert cache.allocated_bytes() == want
        used = prompt(sum(lengths), sum(retained), 2) + tail
        assert cache.used_bytes() == used == made.used_bytes(view, run, seen)
        assert cache.read_bytes() == 2 * prompt(sum(lengths), sum(retained), 1) + tail
        held = [[seen - max(lengths) + length] for length in lengths]
        assert [held == layer.tolist() for layer in cache.entries_held()] == [True, True]
        storages_are_exact_and_reported(cache)

    drive(model(model_name, dtype), made, tokens, run, watch=watch)


def bytes_are_the_papers() -> None:
    """Keys and values of a merged pair take (d + 2 + 2 gamma d) / 2 d of what they took."""
    for width, gamma, tokens in ((128, "0.05", 40), (64, "0.25", 8), (16, "0", 5)):
        stored = shared(
            paired(retained_share=float(gamma)), rand(1, 2, tokens, width, seed=19), rand(1, 2, tokens, width, seed=20)
        )
        payload = (stored.directions, *stored.lengths, *stored.own)
        held = sum(t.untyped_storage().nbytes() for t in payload)
        share_held = Fraction(held, 2 * 2 * tokens * width * 8)
        assert share_held == Fraction(width + 2, 2 * width) + Fraction(gamma)


def nothing_is_restored() -> None:
    """A decode step reads nothing on the host, and makes nothing anew that is as large as the shared directions."""
    made, lengths = strategy("minicache"), (PROMPT + 17, PROMPT)
    run = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    tokens = padded([ids(80 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    cache = drive(model("gpt2"), made, tokens[:, : PROMPT + 21], run).cache
    parts: list[Prompt] = []
    for layer in cache.layers:
        ((_, store),) = layer.stores
        assert isinstance(store._reading, Half)
        parts.append(store._reading.prompt)
        key = rand(2, 4, 1, WIDTH)
        with Recorder() as recorder:
            layer.attend(rand(2, 4, 1, WIDTH, seed=1), key, key, 1.0, DECODE)
        assert not set(recorder.names) & set(HOST)
        assert recorder.largest < parts[0].keys.directions.untyped_storage().nbytes()
    assert parts[0] is parts[1], "both layers hold the same prompt, once"


def pairs_are_neighbours() -> None:
    """Layers go together two by two from the start on, a last one without a partner alone."""
    cases = {
        (0.5, "ratio", 32): range(16, 31, 2),
        (0.0, "ratio", 4): (0, 2),
        (0.5, "ratio", 5): (2,),
        (0.5, "ratio", 6): (3,),
        (1.0, "layers", 4): (1,),
        (3.0, "layers", 4): (),
        (0.29, "ratio", 100): range(29, 99, 2),
    }
    for (start, unit, layers), want in cases.items():
        assert list(paired(start=start, start_unit=unit).lower_layers(layers)) == list(want)
    for hundredths in range(101):
        assert paired(retained_share=hundredths / 100).num_retained(100) == hundredths
    assert paired().num_retained(41) == 3
    assert paired(num_sink=4).num_retained(3) == 3
    plans = strategy("minicache", "layout.start=0.5").plans(view_of(deep_model()), uniform())
    assert [None if p.pair is None else p.pair.is_upper for p in plans] == [None, None, False, True, None]
