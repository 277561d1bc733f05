"""What must hold of entries that are kept as coordinates."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.latent import Latent, LatentPayload
from kvbench.cache.codecs.lorc import LowRank, ranks
from kvbench.cache.rotary import turn
from kvbench.kernels.packed import Rows
from kvbench.models.view import view_of
from kvbench.types import LayerShape, Projection, RunShape
from tests.support.checks import NEW, assert_close, uniform
from tests.support.codecs import Weigher, rand
from tests.support.drive import drive, padded, slots_of
from tests.support.models import MAIN, ids, model
from tests.support.parts import rand as normal
from tests.support.strategies import composed, strategy

FULL = ("codec.most=1", "codec.least=1", "strategy/codec@strategy.codec.latent=dense")


@functools.cache
def network(name: str) -> PreTrainedModel:
    """Return a small model whose keys and values have a bias, if they can have one."""
    made = copy.deepcopy(model(name))
    if name == "gpt2":
        with torch.no_grad():
            for parameter, value in made.named_parameters():
                if parameter.endswith("c_attn.bias"):
                    value.normal_(generator=torch.Generator().manual_seed(9))
    return made


def a_full_rank_is_the_baseline(name: str, model_name: str) -> None:
    """With all directions, and coordinates as they are, logits are the full cache's."""
    rows = [ids(1 + row, 1, length + NEW)[0] for row, length in enumerate((24, 17))]
    run = RunShape(prompt_lengths=(24, 17), new_tokens=NEW)
    want = drive(network(model_name), strategy("baseline"), padded(rows), run)
    got = drive(network(model_name), composed(name, *FULL), padded(rows), run)
    for row, length in enumerate((24, 17)):
        first = 24 - length
        torch.testing.assert_close(got.logits[row, first:], want.logits[row, first:], rtol=0, atol=1e-9)


@dataclass(frozen=True, kw_only=True)
class Side:
    """Keys or values of a layer.

    Args:
        got: what is held after a prompt [1, G, T, D].
        given: what came in [1, G, T, D].
        bare: the same before it was rotated, or anything added [T, G * D].
        weight: what made it [G * D, hidden].
        rank: how many directions are kept.
    """

    got: Tensor
    given: Tensor
    bare: Tensor
    weight: Tensor
    rank: int


def sides(model_name: str, share: float) -> Iterator[Side]:
    """Yield both sides of every layer."""
    overrides = (f"codec.most={share}", f"codec.least={share}", FULL[2])
    made, tokens = composed("lorc", *overrides), ids(3, 1, 24)
    got = drive(network(model_name), made, tokens, uniform(new=1)).cache
    full = drive(network(model_name), strategy("baseline"), tokens, uniform(new=1)).cache
    for mine, theirs in zip(got.layers, full.layers, strict=True):
        slots, exact = slots_of(mine), slots_of(theirs)
        shape = mine.plan.shape
        for payload, whole, projection, rotary in (
            (slots.keys, exact.keys, shape.key_projection, shape.rotary),
            (slots.values, exact.values, shape.value_projection, None),
        ):
            assert isinstance(payload, LatentPayload)
            assert projection is not None
            given = whole.read(24)
            bare = given if rotary is None else turn(given, -torch.arange(24)[None, None], rotary)
            bare = bare if projection.bias is None else bare - projection.bias[:, None]
            yield Side(
                got=payload.read(24, slots.position),
                given=given,
                bare=bare[0].transpose(0, 1).flatten(1),
                weight=projection.weight.flatten(0, 1),
                rank=payload.how.basis.rank,
            )


def coordinates_lose_no_more_than_the_next_singular_value(model_name: str) -> None:
    """No entry moves further than the next singular value of its weights times what they were multiplied by."""
    seen = 0
    for side in sides(model_name, 0.5):
        values = torch.linalg.svdvals(side.weight)
        assert side.rank == len(values) // 2
        moved = (side.got - side.given)[0].transpose(0, 1).flatten(1).norm(dim=-1)
        multiplied = (side.bare @ torch.linalg.pinv(side.weight).t()).norm(dim=-1)
        assert (moved <= values[side.rank] * multiplied * (1 + 1e-9)).all()
        assert moved.max() > 1e-6, "nothing was lost: the comparison proves nothing"
        seen += 1
    assert seen == 4


def errors_fall_with_the_rank(model_name: str) -> None:
    """The more directions, the less is lost, down to nothing."""
    shares = (0.5, 1.0) if model_name == "llama_gqa" else (0.25, 0.5, 0.75, 1.0)
    found = [sum(float((s.got - s.given).square().sum()) for s in sides(model_name, share)) for share in shares]
    assert all(more > less for more, less in itertools.pairwise(found)), found
    assert found[-1] < 1e-18 * found[0]


def going_to_the_coordinates_is_restoring(model_name: str) -> None:
    """Products with coordinates, and sums of them, are those of the restored entries."""
    made, tokens = composed("lorc", "codec.least=0.5", FULL[2]), ids(4, 1, 24)
    cache = drive(network(model_name), made, tokens, uniform(new=1)).cache
    rows, weights = rand(1, 4, 1, 8, seed=5).double(), torch.rand(1, 4, 1, 24).double()
    for layer in cache.layers:
        slots = slots_of(layer)
        share = 4 // layer.plan.shape.kv_heads
        q, w = (t.view(1, layer.plan.shape.kv_heads, share, -1) for t in (rows, weights))
        for payload in (slots.keys, slots.values):
            entries = payload.entries(24, slots.position)
            assert isinstance(entries, Rows)
            assert isinstance(entries.parts[0], Latent)
            numbers = payload.read(24, slots.position)
            assert_close(entries.logits(q), q @ numbers.transpose(-1, -2))
            if payload is slots.values:  # rotated keys are never summed
                assert_close(entries.weighted(w), w @ numbers)


def queries_turn_as_keys_do(turned: int) -> None:
    """Products with keys that are rotated only now are those with restored ones, however many channels turn."""
    for heads, joined, sets in ((4, 2, 1), (2, 1, 2)):
        directions, bias = normal(heads // joined, joined, 8, 5, seed=9), normal(heads, 8, seed=10)
        drawn = torch.Generator().manual_seed(13)
        position = torch.stack([torch.randperm(70, generator=drawn) for _ in range(2 * sets)]).view(2, sets, 70)
        frequencies = torch.rand(turned // 2, generator=drawn, dtype=torch.float64)
        rows = Rows([normal(2, heads // joined, 70, 5, seed=11)], torch.float64)
        latent = Latent(rows, Basis(directions, None, bias, frequencies), position)
        queries, got = normal(2, heads, 3, 8, seed=12), torch.empty(2, heads, 3, 70, dtype=torch.float64)
        latent.logits(queries, got)
        assert_close(got, queries @ latent.dense(0, 70, torch.float64).mT)


def ranks_follow_the_paper() -> None:
    """The product of condition numbers from a layer on decides linearly between the most and the least."""
    for name in MAIN:
        view = view_of(model(name))
        assert logs_of(view.layers, 0) > logs_of(view.layers, 1)
        full = view.layers[0].kv_heads * view.layers[0].key_dim
        for most, least in ((1.0, 0.5), (0.75, 0.5), (1.0, 1.0)):
            want = tuple(round(full * share / 8) * 8 for share in (most, least))
            assert ranks(view, most, least) == want
    three = view_of(model("llama_mha"))
    more = [three.layers[0], three.layers[1], three.layers[0]]
    got = ranks(replace(three, layers=tuple(more)), 1.0, 0.25)
    between = 1.0 - (logs_of(more, 0) - logs_of(more, 1)) / (logs_of(more, 0) - logs_of(more, 2)) * 0.75
    assert got == (32, round(32 * between / 8) * 8, 8)


def logs_of(shapes: Sequence[LayerShape], first: int) -> float:
    """Return the log of the product of condition numbers from a layer on."""
    total = 0.0
    for shape in shapes[first:]:
        for made in (shape.key_projection, shape.value_projection):
            assert made is not None
            total += math.log(torch.linalg.cond(made.weight.flatten(0, 1)))
    return total


def a_step_needs_little_room() -> None:
    """What restoring keys needs beside 4,096 of them is below a tenth of the layer's cache in float16."""
    made = composed("lorc", "codec.most=0.5", "codec.least=0.5", "codec.latent.kernel=reference").codec
    assert isinstance(made, LowRank)
    weight = torch.randn(4, 64, 256, generator=torch.Generator().manual_seed(6))
    view = view_of(model("llama_mha"))
    shape = replace(
        view.layers[0],
        query_heads=8,
        kv_heads=4,
        key_dim=64,
        value_dim=64,
        rotary=torch.rand(32),
        key_projection=Projection(weight, None),
        value_projection=Projection(weight, None),
    )
    codec = made.of_layer(replace(view, layers=(shape, shape), dtype=torch.float32), 0)
    keys, position = rand(1, 4, 4096, 64, seed=7), torch.arange(4096, dtype=torch.int32)[None, None]
    payloads = [how.empty(keys, 4096) for how in (codec.key_format, codec.value_format)]
    for payload in payloads:
        payload.write(0, keys, position)
    with Weigher() as weigher:
        read, summed = (payload.entries(4096, position) for payload in payloads)
        assert isinstance(read, Rows)
        assert isinstance(summed, Rows)
        summed.weighted(read.logits(rand(1, 4, 2, 64, seed=8)).softmax(dim=-1))
    assert 0 < weigher.most < 0.1 * (2 * keys.numel() * torch.float16.itemsize)
