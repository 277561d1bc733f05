"""What must hold of channels in another order, and of scales in few bits."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.latent import LatentFormat
from kvbench.cache.codecs.packed import PackedCodec
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.codecs.reordered import Reordered
from kvbench.cache.codecs.rotatekv import RotateKV
from tests.support.codecs import quantiser, rand, read_back
from tests.support.strategies import composed


def sorting_brings_like_channels_together() -> None:
    """Where channels have means of their own, 2 bits for 16 of them lose less than a fifth once they are sorted."""
    drawn = torch.Generator().manual_seed(5)
    means = torch.randn(64, generator=drawn) * 3
    entries = (means + torch.randn(1, 2, 2048, 64, generator=drawn) / 4).double()
    flat = entries[0].transpose(0, 1).flatten(1)
    rule = composed("rotatekv", "codec.moments=/nowhere").codec
    assert isinstance(rule, RotateKV)
    basis, lost = rule.of_keys((flat.mT @ flat / len(flat))[None], 2), []
    turned = basis.coordinates(entries)
    for rows in (turned, turned[..., torch.randperm(128, generator=drawn)]):
        error = read_back(rows, quantiser(2, group=16)) - rows
        lost.append(float(error.square().mean() / rows.square().mean()))
    torch.testing.assert_close(basis.entries(turned), entries)
    assert lost[0] < lost[1] / 5


def an_order_there_and_back_changes_nothing() -> None:
    """Entries come back to the bit, each coordinate is a channel, and products and sums are those of entries."""
    drawn = torch.Generator().manual_seed(6)
    place = torch.stack([torch.randperm(24, generator=drawn) for _ in range(2)]).unflatten(1, (3, 8))
    basis, entries = Basis(None, None, None, None, place), torch.randn(2, 6, 5, 8, generator=drawn)
    made = basis.coordinates(entries)
    for head in range(6):
        for channel in range(8):
            at = int(place[head // 3, head % 3, channel])
            assert torch.equal(made[:, head // 3, :, at], entries[:, head, :, channel])
    assert torch.equal(basis.entries(made), entries)
    rows, weights = torch.randn(2, 6, 4, 8, generator=drawn), torch.rand(2, 6, 4, 5, generator=drawn)
    products = (basis.queries(rows) @ made.mT).view(2, 6, 4, 5)
    torch.testing.assert_close(products, rows @ entries.mT)
    sums = basis.sums(weights.view(2, 2, 12, 5) @ made)
    torch.testing.assert_close(sums, weights @ entries)
    assert torch.equal(basis.of_heads(slice(3, 6)).coordinates(entries[:, 3:]), made[:, 1:])


def in_their_own_order_channels_are_plain_codes() -> None:
    """Unsorted, unclipped and with scales of 16 bits, SKVQ's codes are those of groups of a token's channels."""
    codec = composed("skvq", "codec.moments=/nowhere", "codec.latent.kernel=reference").codec
    assert isinstance(codec, Reordered)
    assert isinstance(codec.latent, PackedCodec)
    mine = codec.latent.key_quantiser
    assert mine == codec.latent.value_quantiser == quantiser(2, group=128, clip=0.97, scales="e4m3")
    assert (codec.num_sink, codec.window) == (5, 128)
    entries = torch.randn(1, 4, 30, 64, generator=torch.Generator().manual_seed(7))
    place = torch.arange(256).view(1, 4, 64)
    inner = composed("baseline", "strategy/codec=int2", "codec.kernel=reference").codec
    assert isinstance(inner, PackedCodec)
    payload = LatentFormat(Basis(None, None, None, None, place), inner.key_format).empty(entries, 30)
    payload.write(0, entries)
    got = payload.read(30, torch.arange(30)[None, None])
    flat = entries.transpose(1, 2).flatten(2)[:, None]
    want = read_back(flat, quantiser(2, group=128))[:, 0].unflatten(2, (4, 64)).transpose(1, 2)
    torch.testing.assert_close(got, want.float())


def short_scales_stay_within_their_bound() -> None:
    """Errors are half a step and a sixteenth of what is kept; what is beyond 448 is cut off, and is a number still."""
    entries = rand(2, 2, 64, 16, seed=8)
    entries[..., 1] /= 10
    entries[:, :, 10:20] += 40 * torch.randn(10, generator=torch.Generator().manual_seed(9))[:, None]
    how: Quantiser = quantiser(2, group=4, scales="e4m3")
    _, scale, low = how.encode(entries)
    assert low is not None
    assert scale.dtype == low.dtype == torch.float8_e4m3fn
    step, least = (each.double().repeat_interleave(4, dim=-1) for each in (scale, low))
    error: Tensor = (read_back(entries, how) - entries).abs()
    assert (error <= step / 2 + (3 * step + least.abs()) / 16 + 2**-9).all()
    assert (error > step / 2).any(), "no scale is rounded: the comparison proves nothing"
    assert sum(each.bytes(10) for each in how.kept(16)) == 10 * (16 // 4 + 2 * 4)
    large = torch.linspace(-1e4, 1e4, 64).view(1, 1, 4, 16)
    got = read_back(large, how)
    assert got.isfinite().all()
    assert got.min() == -448
    assert 448 <= got.max() <= 4 * 448
