"""What signs of random projections must tell, on average and how far off, and what they take."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs.qjl import QJL, SketchPacking
from kvbench.kernels.packed.sketch import Sketch
from kvbench.models.view import view_of
from kvbench.types import ModelView
from tests.support import codecs
from tests.support.checks import assert_close
from tests.support.codecs import rand
from tests.support.models import model
from tests.support.strategies import composed

DRAWS = 800


def rule(**settings: Any) -> QJL:
    """Return how keys are packed, in groups of 8 tokens with one large channel, or otherwise as said."""
    codec = composed("qjl").codec
    assert isinstance(codec, QJL)
    return replace(codec, **{"group": 8, "residual": 8, "num_large": 1, "first_layers": 0, **settings})


def view(dim: int) -> ModelView:
    """Return a view of a model whose keys have so many channels, in float32."""
    made = view_of(model("llama_gqa", torch.float32))
    return replace(made, layers=tuple(replace(shape, key_dim=dim) for shape in made.layers))


def written(keys: Tensor, how: SketchPacking) -> Sketch:
    """Return keys [B, G, T, D] as they are kept."""
    kept = [t for t in how.encode(keys) if t is not None]
    return how.run(kept, keys.shape[3], "reference")


def products(rows: Tensor, run: Sketch) -> Tensor:
    """Return the products of rows [B, G, g, D] with keys [B, G, g, m]."""
    out = torch.full((*rows.shape[:3], run.length + 8), torch.nan, dtype=rows.dtype)[..., 3 : 3 + run.length]
    run.logits(rows, out)
    return out


@cache
def mean_size(dim: int) -> float:
    """Return the mean size of a number of a direction that is the root of dim long, by its density."""
    number = (torch.arange(400_000, dtype=torch.float64) + 0.5) * math.sqrt(dim) / 400_000
    density = (1 - number**2 / dim) ** ((dim - 3) / 2)
    return float((number * density).sum() / density.sum())


def stand_ins(entries: Tensor, how: Any) -> Tensor:
    """Return what stands in the place of entries [B, G, T, D], by plain loops."""
    if not isinstance(how, SketchPacking):
        return codecs.stand_ins(entries, how)
    out, directions = torch.zeros_like(entries, dtype=torch.float64), how.directions.double()
    batch, heads, tokens, dim = entries.shape
    for row, head, start in itertools.product(range(batch), range(heads), range(0, tokens, how.rule.group)):
        group = entries[row, head, start : start + how.rule.group].double()
        sizes = [math.sqrt(sum(number**2 for number in group[:, at].tolist())) for at in range(dim)]
        large = sorted(range(dim), key=lambda at: -sizes[at])[: how.rule.num_large]
        rest = [at for at in range(dim) if at not in large]
        for at, key in enumerate(group):
            for channels, count in ((rest, len(directions)), (large, math.ceil(len(directions) / 2))):
                mine = directions[:count, channels]
                signs = torch.where(mine @ key[channels] > 0, 1.0, -1.0).double()
                length = float(key[channels].norm().half())
                out[row, head, start + at, channels] = signs @ mine * length / count / mean_size(dim)
    return out


# -- oracles --------------------------------------------------------------------------------------------------------


def signs_equal_plain_loops() -> None:
    """Keys stand for what plain loops make of signs and lengths, and their products are those of these keys."""
    for dim, bits, large in ((8, 2, 1), (12, 1, 3), (5, 3, 2)):
        keys, rows = rand(2, 3, 24, dim, seed=1), rand(2, 3, 2, dim, seed=2)
        how = rule(bits=bits, num_large=large).keys(view(dim), 0)
        run = written(keys, how)
        numbers = run.dense(0, 24, torch.float64)
        torch.testing.assert_close(numbers, stand_ins(keys, how), rtol=1e-5, atol=1e-6)
        assert torch.equal(run.dense(5, 19, torch.float64), numbers[:, :, 5:19])
        assert_close(products(rows.double(), run), rows.double() @ numbers.mT)


def products_are_right_on_average(dim: int, bits: int) -> None:
    """Over seeds, the product of a query with a key has the key's as its mean, and theory's standard deviation.

    For n blocks of orthogonal directions with D numbers, c over their mean size, and q along k and across it:
    Var = c^2 / (n D) [(1 - 2 / pi) |k|^2 |q across|^2 + (1 + (D - 1) 2 / pi - D / c^2) (k q)^2].
    """
    key, other = (torch.randn(1, 1, 1, dim, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    query = key + 0.4 * other
    query[..., 0] = 0.0
    keys, here = torch.cat([key, key], dim=2), view(dim)
    keys[..., 0] = 10.0  # the large channel, which this query does not see
    key[..., 0] = 0.0
    found = []
    for seed in range(DRAWS):
        how = rule(seed=seed, bits=bits, group=2, residual=2)
        found.append(products(query, written(keys, how.keys(here, 0)))[..., 0].item())
    got = torch.tensor(found, dtype=torch.float64)
    along = float((key * query).sum())
    across = float(query.square().sum() * key.square().sum()) - along**2
    c = 1 / mean_size(dim)
    share = 1 - 2 / math.pi
    spread = math.sqrt(c**2 / (bits * dim) * (share * across + (1 + (dim - 1) * 2 / math.pi - dim / c**2) * along**2))
    assert abs(got.mean() - along) < 4 * spread / DRAWS**0.5
    assert abs(float(got.std()) / spread - 1) < 0.08
    assert spread < math.sqrt(math.pi / 2 / (bits * dim)) * float(query.norm() * key.norm())  # of normal directions


def large_channels_do_not_drown_the_others() -> None:
    """With two channels of 30 times the size, products of the other channels err far less when these are apart."""
    keys = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(5))
    keys[..., [3, 40]] *= 30
    query = torch.randn(1, 1, 1, 64, generator=torch.Generator().manual_seed(6))
    query[..., [3, 40]] = 0.0
    far = []
    for large in (2, 1):
        run = written(keys, rule(num_large=large, group=32, residual=32).keys(view(64), 0))
        far.append((products(query, run) - query @ keys.mT).square().mean())
    assert far[0] * 5 < far[1]


def layers_have_directions_of_their_own() -> None:
    """Directions are orthogonal in blocks, as long as said, the same for a seed, and more in the first layers."""
    how, here = rule(first_layers=1, bits=2, first_bits=3), view(16)
    first, second = (how.keys(here, layer).directions.double() for layer in (0, 1))
    other = rule(first_layers=1, bits=2, first_bits=3, seed=1).keys(here, 0).directions.double()
    assert (first.shape, second.shape) == ((48, 16), (32, 16))
    for block in (*first.split(16), *second.split(16)):
        torch.testing.assert_close(block @ block.mT, 16 * torch.eye(16).double(), rtol=0, atol=1e-5)
    for one, two in itertools.combinations((first[:16], first[16:32], second[:16], other[:16]), 2):
        assert (one - two).abs().max() > 0.5
    again = replace(how, residual=16).keys(here, 1).directions
    assert torch.equal(again, how.keys(here, 1).directions)


def equals_attention_to_what_the_signs_stand_for(model_name: str, *, prompt: int = 24) -> None:
    """Logits at every step are those of dense attention to keys that plain loops have made."""
    codecs.equals_attention_to_what_the_codes_stand_for("qjl", model_name, prompt=prompt, loops=stand_ins)


def bytes_are_those_of_signs_and_lengths() -> None:
    """A channel takes 3 bits of signs, 6 in the first layers, a key two lengths, and 32 keys 8 channels' numbers."""
    here = view(128)
    codec = composed("qjl", "codec.first_layers=1").codec
    for layer, bits in ((0, 6), (1, 3)):
        made = codec.of_layer(here, layer)
        more, less = (made.key_format.allocated_bytes(1, 128, count, torch.float16) for count in (1280, 0))
        assert more - less == 1280 * (128 * bits // 8 + 2 * 2) + 1280 // 32 * 8
        assert made.fixed_bytes == 128 * bits * 2 // 3 * 128 * 4


def keys_of_many_channels_are_refused() -> None:
    """A channel's number has 8 bits, and not all channels can be large."""
    here, codec = view(300), composed("qjl").codec
    reason = "needs more channels of a key than strategy.codec.num_large=8, and 256 at most; this model has"
    assert codec.unsupported(here) == f"strategy/codec=qjl {reason} 300"
    assert codec.unsupported(view(8)) == f"strategy/codec=qjl {reason} 8"
    assert codec.unsupported(view(256)) is None
