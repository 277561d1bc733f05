"""What outliers and corrections must keep, add up to and take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kvbench.cache.codecs.corrected import CorrectedFormat, CorrectedPayload, low_rank
from kvbench.cache.codecs.gear import Gear, SparsePacking
from kvbench.kernels.packed import Kernel, Rows
from kvbench.models.view import view_of
from tests.support import codecs
from tests.support.checks import assert_close, uniform
from tests.support.codecs import NOWHERE, rand
from tests.support.drive import drive
from tests.support.models import ids, model
from tests.support.strategies import composed

HALF = torch.float16.itemsize
PIECES = (
    {"outliers": 0.0, "rank": 0, "block_rank": 0},
    {"outliers": 0.02, "rank": 0, "block_rank": 0},
    {"outliers": 0.02, "rank": 4, "block_rank": 2},
)


def gear(**changes: object) -> Gear:
    """Return the codec in groups of 4 and blocks of 8 tokens, with changes."""
    codec = composed("gear").codec
    assert isinstance(codec, Gear)
    keys, values = replace(codec.key_quantiser, group=4), replace(codec.value_quantiser, group=4)
    small = replace(codec, key_quantiser=keys, value_quantiser=values, residual=8, kernel="reference")
    return replace(small, **changes)  # type: ignore[arg-type]


def sides(codec: Gear) -> tuple[CorrectedFormat, CorrectedFormat]:
    """Return how keys and values are written."""
    return codec.key_format, codec.value_format


def filled(how: CorrectedFormat, entries: Tensor, prompt: int) -> CorrectedPayload:
    """Return storage for entries [B, G, T, D], of which so many came at once."""
    payload = how.empty(entries, entries.shape[2])
    payload.write(0, entries[:, :, :prompt])
    for at in range(prompt, entries.shape[2]):
        payload.write(at, entries[:, :, at : at + 1])
        payload.settle(NOWHERE)
    return payload


def of_many_kinds() -> Iterator[Tensor]:
    """Yield entries [2, 2, 56, 16]: normal ones, with heavy tails, with large channels, alike, of few directions."""
    random = torch.Generator().manual_seed(7)
    normal = torch.randn(2, 2, 56, 16, generator=random, dtype=torch.float64)
    yield normal
    yield normal**5
    yield rand(2, 2, 56, 16, seed=8).double()
    yield torch.full_like(normal, 0.3)
    yield normal[..., :2] @ torch.randn(2, 16, generator=random, dtype=torch.float64) + normal / 20
    yield normal.cumsum(dim=2)
    yield normal * torch.logspace(-4, 2, 16, dtype=torch.float64)


def length(numbers: Tensor) -> float:
    """Return the root of the sum of squares."""
    return float(torch.linalg.vector_norm(numbers.double()))


def loops(entries: Tensor, how: SparsePacking) -> Tensor:
    """Return what stands in the place of entries [B, G, T, D] without corrections, by plain loops."""
    given = entries.float().double()
    out, count = given.clone(), how.count(entries.shape[3])
    batch, heads, tokens, dim = entries.shape
    by_token = how.quantiser.along == "tokens"
    size = how.quantiser.group
    for row, head in itertools.product(range(batch), range(heads)):
        mine, exact = given[row, head], torch.zeros(tokens, dim, dtype=torch.bool)
        lines = mine.t() if by_token else mine
        far = torch.stack([(line - line.mean()).abs() / (line - line.mean()).abs().mean() for line in lines])
        far = far.t() if by_token else far
        for token in range(tokens):
            exact[token, far[token].argsort(descending=True)[:count]] = True
        cells = itertools.product(range(0, tokens, size), range(dim))
        if not by_token:
            cells = ((token, first) for token in range(tokens) for first in range(0, dim, size))  # type: ignore[assignment]
        for token, channel in cells:
            at = (slice(token, token + size), channel) if by_token else (token, slice(channel, channel + size))
            kept = [float(number) for number, is_out in zip(mine[at], exact[at], strict=True) if not is_out]
            stands = iter(codecs.plain(kept, how.quantiser)) if kept else iter(())
            there = [
                float(number.half()) if is_out else next(stands)
                for number, is_out in zip(mine[at], exact[at], strict=True)
            ]
            out[row, head][at] = torch.tensor(there, dtype=torch.float64)
    return out


# -- oracles --------------------------------------------------------------------------------------------------------


def codes_and_outliers_equal_plain_loops() -> None:
    """Those furthest from the mean are as they were, and the others what loops round them to among themselves."""
    for dim, outliers in ((8, 0.02), (11, 0.2), (16, 0.5)):
        for how in sides(gear(outliers=outliers, rank=0, block_rank=0)):
            entries = rand(2, 3, 24, dim, seed=1)
            entries[:, :, 4] = torch.linspace(-1, 2, dim) ** 2
            sparse = how.quantiser
            assert isinstance(sparse, SparsePacking)
            assert_close(filled(how, entries.double(), 24).read(24), loops(entries, sparse))


def each_piece_loses_no_more_than_fewer() -> None:
    """Outliers lose no more than codes alone, and corrections no more than both: prompts and blocks."""
    for bits, entries in itertools.product((2, 4), of_many_kinds()):
        for side, prompt in itertools.product((0, 1), (56, 17)):
            lost = []
            for piece in PIECES:
                codec = gear(**piece)
                quantisers = (codec.key_quantiser, codec.value_quantiser)
                keys, values = (replace(quantiser, bits=bits) for quantiser in quantisers)
                how = sides(replace(codec, key_quantiser=keys, value_quantiser=values))[side]
                lost.append(length(filled(how, entries, prompt).read(56) - entries))
            assert lost[2] <= lost[1] <= lost[0], f"{bits} bits, side {side}, prompt of {prompt}: {lost}"
            if lost[0] > 1e-3 * length(entries):
                assert lost[2] < 0.97 * lost[1] < 0.97 * 0.97 * lost[0]


def at_full_rank_nothing_is_lost() -> None:
    """With as many directions as channels, or as tokens of a block, only float16 is between entries and their own."""
    for entries, prompt in itertools.product(of_many_kinds(), (56, 24)):
        for rank, block_rank in ((16, 8), (99, 99)):
            for how in sides(gear(rank=rank, block_rank=block_rank)):
                plain = replace(how, rank=0, block_rank=0)
                error = filled(plain, entries, prompt).read(56) - entries
                left = filled(how, entries, prompt).read(56) - entries
                assert length(left) <= 2**-10 * (length(error) + 2**-11 * length(entries)) + 1e-6


def corrections_are_nearly_the_best() -> None:
    """No product of so many directions is nearer than the singular ones', and these are little nearer."""
    for numbers in of_many_kinds():
        for rank in (1, 2, 4, 8) if length(numbers - numbers.mean()) > 1e-9 else ():
            left, right = low_rank(numbers, rank)
            assert left.shape == (2, 2, 56, rank)
            assert right.shape == (2, 2, rank, 16)
            rest = torch.linalg.svdvals(numbers)[..., rank:].square().sum(dim=-1).sqrt()
            mine = torch.linalg.matrix_norm(numbers - left @ right)
            assert (mine >= rest * (1 - 1e-9)).all()
            assert (mine <= rest * 1.15).all()


def products_equal_dense_ones(kernel: Kernel = "reference") -> None:
    """Logits and sums over corrected rows are those over the numbers they stand for; no tile is left out."""
    dtype, tolerance = (torch.float32, 1e-5) if kernel == "native" else (torch.float64, 1e-9)
    for tokens, prompt in ((1080, 1048), (680, 16), (24, 24), (24, 3)):
        entries = rand(2, 2, tokens, 16, seed=3).to(dtype)
        for how in sides(gear(rank=4, block_rank=2, kernel=kernel)):
            rows = filled(how, entries, prompt).entries(tokens)
            assert isinstance(rows, Rows)
            numbers = rows.numbers(0, tokens, torch.float64)
            query = rand(2, 2, 3, 16, seed=4).to(dtype)
            weights = torch.rand(2, 2, 3, tokens, generator=torch.Generator().manual_seed(5)).to(dtype)
            size = query.double().abs() @ numbers.abs().mT
            assert ((rows.logits(query).double() - query.double() @ numbers.mT).abs() <= tolerance * (size + 1)).all()
            size = weights.double() @ numbers.abs()
            assert (
                (rows.weighted(weights).double() - weights.double() @ numbers).abs() <= tolerance * (size + 1)
            ).all()
            some = rows.numbers(5, 21, torch.float64)
            assert torch.equal(some, numbers[:, :, 5:21])


def what_is_read_is_codes_and_products() -> None:
    """Entries that come back are what codes and outliers say, and block by block the products of what is kept."""
    for how, prompt in itertools.product(sides(gear()), (3, 17, 24)):
        entries = rand(2, 2, 44, 16, seed=6).double()
        payload = filled(how, entries, prompt)
        want = filled(replace(how, rank=0, block_rank=0), entries, prompt).read(44)
        first = 0
        assert [each.left.shape[4] for each in payload.factors] == [4 if prompt >= 8 else 0, 2]
        for each in payload.factors:
            for block in range(each.left.shape[2]):
                left, right = (t[:, :, block].double() for t in (each.left, each.right))
                want[:, :, first : first + left.shape[2]] += left @ right
                first += left.shape[2]
        assert first == 40
        assert_close(payload.read(44), want)


def blocks_are_written_once() -> None:
    """What is kept of a block never changes, and what grows keeps it; what is taken back is written again."""
    for how, prompt in itertools.product(sides(gear()), (5, 17)):
        entries = rand(2, 2, 60, 16, seed=9).double()
        payload = how.empty(entries, prompt + 3)
        payload.write(0, entries[:, :, :prompt])
        seen: list[Tensor] = []
        back: object = None
        for at in range(prompt, 60):
            if at == payload.capacity:
                payload.grow(at + 9, at)
            if at == 40:
                back = payload.snapshot()
            payload.write(at, entries[:, :, at : at + 1])
            payload.settle(NOWHERE)
            now = payload.read(at + 1)
            assert all(torch.equal(now[:, :, : before.shape[2]], before) for before in seen)
            seen.append(now[:, :, : payload.packed])
        payload.restore(back)
        for at in range(40, 60):
            payload.write(at, entries[:, :, at : at + 1] * 2)
            payload.settle(NOWHERE)
        assert torch.equal(payload.read(60)[:, :, :40], now[:, :, :40])
        assert not torch.equal(payload.read(60)[:, :, 40:], now[:, :, 40:])


def bytes_are_those_of_every_piece() -> None:
    """Codes, scales, outliers and factors are counted to the last, in room and in use, and nothing else is held."""
    for dim, tokens, prompt in itertools.product((16, 80), (3, 8, 33, 60), (1, 7, 8, 31)):
        for index, bare in enumerate(sides(gear())):
            how = bare.after(prompt)
            room = max(tokens, prompt)
            payload = filled(how, rand(2, 3, room, dim, seed=10).half(), prompt)
            packed, first = room // 8 * 8, prompt // 8 * 8
            outliers = 1 if dim == 16 else 2
            scales = packed // 4 * dim if index == 0 else packed * dim // 4
            numbers = 2 * scales + 2 * packed * outliers
            numbers += (4 * (first + dim) if first else 0) + (packed - first) // 8 * 2 * (8 + dim)
            each = packed * dim // 4 + HALF * numbers
            held = sum(t.untyped_storage().nbytes() for t in payload.tensors() if t.numel() > 0)
            assert held == 2 * how.allocated_bytes(3, dim, room, torch.float16) == 6 * (each + 8 * dim * HALF)
            assert how.used_bytes(3, dim, room, torch.float16) == 3 * (each + (room - packed) * dim * HALF)


def bytes_are_those_of_the_paper() -> None:
    """A long prompt takes per number two scales of its group, 4 bytes for each outlier and 2 r / D for factors."""
    codec = composed("gear").codec
    assert isinstance(codec, Gear)
    for how, group in zip(sides(codec), (20, 32), strict=True):
        long, longer = (how.after(n).used_bytes(1, 128, n, torch.float16) for n in (4000, 8000))
        assert longer - long == 4000 * 128 * (2 / 8 + 3 / 128 * 4 + 2 * 4 / 128) + 4000 * 128 * 4 // group
    keys = codec.key_format
    more, less = (keys.after(0).used_bytes(1, 128, n, torch.float16) for n in (40, 20))
    assert more - less == 20 * 128 * (2 / 8 + 3 / 128 * 4) + 128 * 4 + 2 * 2 * (20 + 128)


def a_budget_in_bytes_is_kept() -> None:
    """What a selection keeps, and what comes later, never takes more bytes than it may, and is what was said."""
    view = view_of(model("llama_gqa"))
    for amount, new in itertools.product((20_000, 20_500, 25_000, 31_000), (12, 60, None)):
        run = uniform(120, new)
        limit = ("budget.unit=bytes", f"budget.amount={amount}", "budget.skip_layers=[]")
        made = composed("knorm", "strategy/codec=gear", *limit)
        cache = drive(model("llama_gqa"), made, ids(1, 1, 132), run).cache
        assert cache.allocated_bytes() <= amount
        assert cache.allocated_bytes() == made.allocated_bytes(view, run)
        assert cache.used_bytes() == made.used_bytes(view, run, 132)
