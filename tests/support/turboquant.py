"""What a random rotation and levels for normal numbers must lose, keep and take."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kvbench.cache.codecs.latent import LatentFormat, LatentPayload
from kvbench.cache.codecs.normal import levels
from kvbench.cache.codecs.packed import PackedPayload
from kvbench.cache.codecs.turboquant import TurboQuant, random_rotation
from kvbench.kernels.attend import Tile, attend_one
from kvbench.models.view import view_of
from tests.support.codecs import NOWHERE, Weigher, quantiser, rand, read_back
from tests.support.models import model
from tests.support.strategies import composed

PUBLISHED = {  # Max, "Quantizing for minimum distortion" (1960), table I
    1: (0.7980,),
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
LOST = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}  # of 1, in the same table and the paper's theorem 1
SIZE, SEEDS = 64, 48


def side(bits: int, size: int, *, seed: int = 0) -> LatentFormat:
    """Return how keys of heads of a size are written, in float32."""
    codec = composed(f"turboquant{bits}", "codec.latent.kernel=reference").codec
    assert isinstance(codec, TurboQuant)
    view = view_of(model("llama_gqa", torch.float32))
    shape = replace(view.layers[0], key_dim=size, value_dim=size)
    made = replace(codec, seed=seed).of_layer(replace(view, layers=(shape,)), 0).key_format
    assert isinstance(made, LatentFormat)
    return made


def written(bits: int, entries: Tensor, *, seed: int = 0) -> LatentPayload:
    """Return entries [B, G, T, D] as they are kept."""
    payload = side(bits, entries.shape[3], seed=seed).empty(entries, entries.shape[2])
    payload.write(0, entries)
    return payload


def read(payload: LatentPayload, count: int) -> Tensor:
    """Return what the first entries are read as."""
    return payload.read(count, torch.arange(count, dtype=torch.int32)[None, None])


# -- oracles --------------------------------------------------------------------------------------------------------


def levels_are_those_published(bits: int) -> None:
    """They are those of Max's table to its digits, and lose as much of a normal number, over a fine grid."""
    found = levels(bits)
    above = torch.tensor(PUBLISHED[bits], dtype=torch.float64)
    torch.testing.assert_close(found, torch.cat([-above.flip(0), above]), rtol=0, atol=5.1e-4)
    number = np.linspace(-9, 9, 400_001)
    nearest = np.abs(number[:, None] - found.numpy()).min(axis=1)
    density = np.exp(-(number**2) / 2) / math.sqrt(2 * math.pi)
    assert abs(np.trapezoid(nearest**2 * density, number) / LOST[bits] - 1) < 5e-4


@cache
def lost_by(bits: int, size: int) -> float:
    """Return the share of a vector of random direction that levels lose, by the density of its coordinates."""
    number = np.linspace(-math.sqrt(size), math.sqrt(size), 200_001)
    density = (1 - number**2 / size) ** ((size - 3) / 2)
    nearest = np.abs(number[:, None] - levels(bits).numpy()).min(axis=1)
    return float((nearest**2 * density).sum() / density.sum())


def errors_are_those_of_normal_numbers(bits: int) -> None:
    """Whatever is written loses the same over rotations; one large channel costs scales of tokens far more."""
    plain, large = (torch.randn(1, 1, 256, SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    large[..., 5] *= 30
    single = torch.zeros(1, 1, SIZE, SIZE)
    single[0, 0] = torch.eye(SIZE)
    ends = (torch.arange(SIZE) % 2 * 2 - 1).expand(1, 1, 4, SIZE) * torch.logspace(-3, 3, 4)[:, None]
    for entries in (plain, large, single, ends):
        lost = 0.0
        for seed in range(SEEDS):
            got = read(written(bits, entries, seed=seed), entries.shape[2])
            lost += float(((got - entries).square().sum(-1) / entries.square().sum(-1)).mean()) / SEEDS
        assert abs(lost / lost_by(bits, SIZE) - 1) < 0.06
        assert lost < LOST[bits] * 1.03
    by_token = (read_back(large, quantiser(bits)) - large).square().sum() / large.square().sum()
    assert by_token > 2 * lost_by(bits, SIZE)


def nothing_stays_nothing() -> None:
    """Zeros, and what float16 takes for zero, come back as zeros, among entries that do not."""
    entries = rand(2, 2, 6, 16, seed=3)
    entries[:, :, 2] = 0.0
    entries[:, 1, 4] = 1e-12
    got = read(written(4, entries), 6)
    assert (got[:, :, 2] == 0).all()
    assert (got[:, 1, 4] == 0).all()
    assert got[:, 0, 4].abs().max() > 0.1
    assert got.isfinite().all()


def a_rotation_may_be_any(size: int) -> None:
    """Matrices are orthonormal, the same for a seed, and their numbers as often above zero as below it."""
    made = torch.stack([random_rotation(size, seed) for seed in range(200)])
    torch.testing.assert_close(made @ made.mT, torch.eye(size, dtype=torch.float64).expand(200, -1, -1))
    above = (made > 0).double().mean(dim=0)
    assert ((above - 0.5).abs() < 5 * 0.5 / 200**0.5).all()
    assert torch.equal(random_rotation.__wrapped__(size, 3), made[3])


def bytes_are_those_of_codes_norms_and_one_matrix(bits: int) -> None:
    """Each token and head takes its codes and 2 bytes, and a layer one matrix for keys and values."""
    codec = composed(f"turboquant{bits}").codec
    view = view_of(model("llama_gqa", torch.float32))
    made = codec.of_layer(replace(view, layers=(replace(view.layers[0], key_dim=64, value_dim=64),)), 0)
    assert made.fixed_bytes == 64 * 64 * 4
    for capacity in (1, 9, 40):
        payload = made.key_format.empty(rand(2, 3, 1, 64), capacity)
        stored = sum(t.untyped_storage().nbytes() for t in payload.tensors() if t.numel() > 0)
        want = 2 * 3 * capacity * (64 * bits // 8 + 2)
        assert stored - made.fixed_bytes == want
        for count in (made.key_format.allocated_bytes, made.key_format.used_bytes):
            assert count(2 * 3, 64, capacity, torch.float32) == want


def a_token_is_written_once(bits: int) -> None:
    """Codes and norms never change, whether tokens are added or others are overwritten."""
    entries = rand(1, 2, 30, 16, seed=8)
    payload = side(bits, 16).empty(entries, 30)
    inner = payload.inner
    assert isinstance(inner, PackedPayload)
    payload.write(0, entries[:, :, :20])
    for count in range(20, 30):
        before = [kept[:, :, :count].clone() for kept in inner.kept]
        payload.write(count, entries[:, :, count : count + 1])
        payload.settle(NOWHERE)
        for kept, same in zip(inner.kept, before, strict=True):
            assert torch.equal(kept[:, :, :count], same)
    whole = read(payload, 30)
    payload.scatter(torch.full((1, 1), 7), entries[:, :, :1])
    after = read(payload, 30)
    assert torch.equal(after[:, :, 7], whole[:, :, 0])
    changed = (after != whole).any(dim=-1).any(dim=1)[0]
    assert changed.nonzero().flatten().tolist() == [7]


def a_step_needs_little_room() -> None:
    """What a decode step at 4,096 tokens makes beside the cache is below a tenth of the layer's cache in float16."""
    keys, values = (rand(1, 4, 4096, 64, seed=seed) for seed in (10, 11))
    how, position = side(4, 64), torch.arange(4097, dtype=torch.int32)[None, None]
    stored = [how.empty(keys, 4200) for _ in range(2)]
    for payload, entries in zip(stored, (keys, values), strict=True):
        payload.write(0, entries)
    query, newest = rand(1, 8, 1, 64, seed=12) / 30, rand(1, 4, 1, 64, seed=13)
    with Weigher() as weigher:
        for payload in stored:
            payload.write(4096, newest)
        tile = Tile(stored[0].entries(4097, position), stored[1].entries(4097, position))
        attend_one(query, [tile], 0.1, with_weights=False)
    assert 0 < weigher.most < 0.1 * (2 * keys.numel() * torch.float16.itemsize)
