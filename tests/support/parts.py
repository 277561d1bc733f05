"""Checks of single parts: selectors and lots against naive loops, kernels against dense attention."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kvbench.cache import rotary
from kvbench.cache.views import PromptView
from kvbench.kernels import attend, column_sums
from kvbench.strategies.selection.random import RandomScore
from kvbench.strategies.selection.selector import Protected
from kvbench.types import LayerShape
from tests.support.checks import assert_close
from tests.support.steps import Recorder


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- selection ------------------------------------------------------------------------------------------------------


def keep_equals_sorting() -> None:
    """The kept set is what sorting a row's entries by protection, score and position leaves; ties included."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(40):
        columns, lengths = 11, [11, 7, 3]
        budget = torch.randint(1, 9, (3,), generator=generator).tolist()
        score = torch.randint(0, 6, (3, 2, columns), generator=generator).double()
        selector = Protected(num_sink=trial % 3, num_recent=trial % 4, recent_share=(trial % 5) / 4)
        position = torch.stack([torch.arange(columns) - (columns - n) for n in lengths])[:, None].clamp(min=-1)
        index, has_holes = selector.keep(score, position, budget, lengths)
        counts = [min(b, n) for b, n in zip(budget, lengths, strict=True)]
        assert has_holes == (min(counts) < max(counts))
        for row, (entries, length) in enumerate(zip(budget, lengths, strict=True)):
            recent = max(trial % 4, int((trial % 5) / 4 * entries))
            for head in range(2):
                merit = [
                    (True, 0.0, at) if at < trial % 3 or at >= length - recent else (False, value, at)
                    for at, value in enumerate(score[row, head, columns - length :].tolist())
                ]
                want = sorted(at + columns - length for _, _, at in sorted(merit, reverse=True)[:entries])
                assert index[row, head].tolist() == want + [-1] * (max(counts) - len(want))


def victim_is_the_least_unprotected() -> None:
    """While decoding, the entry that leaves has the least score of those that may; an empty slot is never chosen."""
    generator = torch.Generator().manual_seed(1)
    for trial in range(40):
        slots = torch.stack([torch.randperm(9, generator=generator) for _ in range(4)]).view(2, 2, 9).int()
        score = rand(2, 2, 9, seed=trial)
        has_empty = trial % 2 == 1
        position = torch.where(slots >= 8, -1, slots) if has_empty else slots
        newest = 7 if has_empty else 8
        sink, recent = trial % 3, trial % 4
        out = torch.zeros(2, 2, 1, dtype=torch.int64)
        given = torch.full((2, 1, 1), recent) if has_empty else recent
        Protected(num_sink=sink, num_recent=recent, recent_share=0.0).victims(
            score, position, newest, given, out, has_empty=has_empty
        )
        for row in range(2):
            for head in range(2):
                least = min(
                    (value, slot)
                    for slot, (at, value) in enumerate(zip(position[row, head], score[row, head], strict=True))
                    if sink <= at <= newest - recent and at >= 0
                )
                assert out[row, head, 0].item() == least[1]


def lots_are_fair() -> None:
    """Random scores are uniform, and differ between heads, layers, seeds and positions."""
    key, many = torch.zeros(1, 3, 1, 4), 20_000
    at = torch.arange(many, dtype=torch.int32).view(1, 1, many)

    def lots(seed: int, layer: int) -> Tensor:
        keys = key.expand(1, 3, many, 4)
        shape = LayerShape(query_heads=3, kv_heads=3, key_dim=4, value_dim=4, window=0, rotary=None)
        view = PromptView(
            layer=layer,
            shape=shape,
            query=keys,
            keys=keys,
            values=keys,
            position=at,
            query_position=at[0],
            scale=1.0,
            budget=(many,),
        )
        return RandomScore(seed=seed).prompt(view)[0].double()

    drawn = torch.cat([lots(0, 0), lots(0, 1), lots(1, 0)])
    assert torch.equal(drawn[:3], lots(0, 0))
    assert torch.equal(drawn[0, 7:8], RandomScore(seed=0).entry(key, at[..., 7:8], 0)[0, 0].double())
    share = torch.stack([torch.histc(row, bins=20, min=0, max=1) for row in drawn]) / many
    assert (share - 1 / 20).abs().max() < 5 * (1 / 20 * 19 / 20 / many) ** 0.5  # five standard deviations
    tangled = torch.corrcoef(torch.cat([drawn, drawn[:1].roll(1, dims=1)])) - torch.eye(10)
    assert tangled.abs().max() < 5 * many**-0.5


# -- kernels --------------------------------------------------------------------------------------------------------


def dense(query: Tensor, keys: Tensor, scale: float, visible: Tensor) -> Tensor:
    """Return attention weights [B, H, T, m], every head with keys of its own, what is not visible left out."""
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)
    logits = torch.einsum("bhtd,bhmd->bhtm", query, keys) * scale
    return torch.where(visible, logits, -torch.inf).softmax(dim=-1)


def one_query_over_tiles_equals_dense() -> None:
    """Tiles are merged exactly, whether entries are visible or not, and the weights are those of the whole."""
    query, keys, values = rand(2, 6, 1, 8), rand(2, 3, 20, 8, seed=1), rand(2, 3, 20, 5, seed=2)
    visible = rand(2, 3, 20, seed=3) > -0.5
    weights = dense(query, keys, 0.7, visible.repeat_interleave(2, dim=1)[:, :, None])
    want = weights @ values.repeat_interleave(2, dim=1)
    for cuts in ((0, 20), (0, 9, 20), (0, 1, 13, 20)):
        tiles = [attend.Tile(keys[:, :, a:b], values[:, :, a:b], visible=visible[:, :, a:b]) for a, b in pairwise(cuts)]
        out, parts = attend.attend_one(query, tiles, 0.7, with_weights=True)
        assert parts is not None
        assert_close(out, want)
        assert_close(torch.cat(parts, dim=-1), weights.view(2, 3, 2, 20))


def parts_merge_to_the_whole() -> None:
    """Softmax over any parts, merged, is softmax over all: parts may be empty, and rows see nothing of some of them."""
    query, keys, values = rand(3, 6, 1, 8), rand(3, 3, 20, 8, seed=1), rand(3, 3, 20, 5, seed=2)
    visible = rand(3, 3, 20, seed=3) > -0.5
    visible[0, :, :9], visible[1, :, 9:] = False, False
    weights = dense(8 * query, keys, 0.7, visible.repeat_interleave(2, dim=1)[:, :, None])
    want = weights @ values.repeat_interleave(2, dim=1)
    for cuts in ((0, 20), (0, 9, 20), (0, 0, 20), (0, 20, 20), (0, 1, 9, 9, 13, 20), tuple(range(21))):
        tiles = [attend.Tile(keys[:, :, a:b], values[:, :, a:b], visible=visible[:, :, a:b]) for a, b in pairwise(cuts)]
        found = [attend.attend_part(8 * query, [tile], 0.7) for tile in tiles]
        for got in (attend.merged(found), attend.merged([attend.merged(found[:2]), *found[2:]])):
            torch.testing.assert_close(got.out, want, rtol=0, atol=1e-12)
        together = attend.attend_part(8 * query, tiles, 0.7)
        torch.testing.assert_close(together.out, want, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.log_sum, attend.merged(found).log_sum, rtol=0, atol=1e-12)
    nothing = attend.merged([attend.attend_part(query, [attend.Tile(keys, values, visible=visible & False)], 0.7)] * 2)
    assert nothing.out.eq(0).all()
    assert nothing.log_sum.eq(-torch.inf).all()


def log_weight_counts_copies() -> None:
    """Five copies of an entry are one entry with log 5 on its logit."""
    query, keys, values = rand(1, 4, 1, 8), rand(1, 2, 6, 8, seed=1), rand(1, 2, 6, 8, seed=2)
    copied = [0, 1, 2, 2, 2, 2, 2, 3, 4, 5]
    want, _ = attend.attend_one(query, [attend.Tile(keys[:, :, copied], values[:, :, copied])], 0.5, with_weights=False)
    weight = torch.tensor([1.0, 1, 5, 1, 1, 1]).double().log().expand(1, 2, 6)
    got, _ = attend.attend_one(query, [attend.Tile(keys, values, log_weight=weight)], 0.5, with_weights=False)
    assert_close(got, want)


def prompt_blocks_equal_dense(window: int) -> None:
    """Blocks of queries leave no seam: more queries than a block, ragged rows, a sliding window."""
    tokens, lengths = attend.QUERY_BLOCK + 44, (attend.QUERY_BLOCK + 44, 37)
    query, keys, values = rand(2, 2, tokens, 4), rand(2, 1, tokens, 4, seed=1), rand(2, 1, tokens, 4, seed=2)
    at = _columns(tokens, lengths)
    weights = dense(query, keys, 0.9, _sees(at, window))
    got = attend.attend_prompt(query, keys, values, 0.9, position=at[:, None], query_position=at, window=window)
    want = weights @ values.repeat_interleave(2, dim=1)
    for row, length in enumerate(lengths):
        assert_close(got[row, :, tokens - length :], want[row, :, tokens - length :])
    assert got.isfinite().all(), "padding must not spread"


def column_sums_equal_dense(window: int) -> None:
    """The attention received is the column sum of the dense matrix, the mean over each group, padding left out."""
    tokens, lengths = column_sums.QUERY_BLOCK + 41, (column_sums.QUERY_BLOCK + 41, 29)
    query, keys, at = rand(2, 4, tokens, 4), rand(2, 2, tokens, 4, seed=1), _columns(tokens, lengths)
    weights = torch.where((at >= 0)[:, None, :, None], dense(query, keys, 0.9, _sees(at, window)), 0.0)
    got = column_sums.column_sums(query, keys, 0.9, position=at[:, None], query_position=at, window=window)
    assert_close(got, weights.sum(dim=2).unflatten(1, (2, 2)).mean(dim=2))
    for row, length in enumerate(lengths):
        assert_close(got[row].sum(dim=-1), torch.full((2,), length).double())


def sums_are_not_rounded_to_the_model() -> None:
    """4,096 queries that pay 1/64 to each of 64 entries give each exactly 64; a sum in bfloat16 stalls at 4."""
    query, keys = torch.zeros(1, 1, 4096, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 64, 4, dtype=torch.bfloat16)
    at = torch.arange(64 + 4096, dtype=torch.int32)[None]
    got = column_sums.column_sums(query, keys, 1.0, position=at[:, None, :64], query_position=at[:, 64:], window=0)
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.full((1, 1, 64), 64.0))


def no_square_matrix() -> None:
    """Neither prompt attention nor its scores ever hold queries times entries of a long prompt."""
    tokens = 2048
    query, keys = torch.zeros(1, 1, tokens, 2), torch.zeros(1, 1, tokens, 2)
    at = torch.arange(tokens, dtype=torch.int32)[None]
    with Recorder() as attention:
        attend.attend_prompt(query, keys, keys, 1.0, position=at[:, None], query_position=at, window=0)
    with Recorder() as scores:
        column_sums.column_sums(query, keys, 1.0, position=at[:, None], query_position=at, window=0)
    for recorder in (attention, scores):
        assert 0 < recorder.largest <= tokens * tokens * 4 // 8


def turning_adds_rotations() -> None:
    """A key turned on is the key written later, in float64 to rounding; dimensions past the rotary ones stay."""
    frequency, keys = torch.tensor([1.0, 0.3, 0.01]).double(), rand(2, 2, 5, 8)
    shift = torch.tensor([3, 250])
    got = rotary.turn(keys, shift, frequency)
    pairs = torch.complex(keys[..., :3], keys[..., 3:6])
    angle = (shift[:, None] * frequency)[:, None, None]
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    assert_close(got, torch.cat([turned.real, turned.imag, keys[..., 6:]], dim=-1))
    for some in (keys, keys[..., :6]):
        turning = rotary.Turning(some, frequency)
        for each in (250, 3, 0, -7):
            assert torch.equal(turning.by(each), rotary.turn(some, torch.tensor([each, each]), frequency))


def _columns(tokens: int, lengths: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.arange(tokens) - (tokens - length) for length in lengths]).clamp(min=-1).int()


def _sees(at: Tensor, window: int) -> Tensor:
    """Return who sees what [B, 1, T, m]; padding queries are given the first column, so that they have a softmax."""
    query, entry = at[:, None, :, None], at[:, None, None, :]
    seen = (entry >= 0) & (entry <= query) & ((entry > query - window) if window else True)
    return seen | ((query < 0) & (torch.arange(at.shape[1]) == 0))
