"""What pairs of channels that are kept as radii and angles must lose, keep and take."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvbench.cache.codecs.polarquant import PolarPacking, PolarQuant
from kvbench.cache.rotary import turn
from kvbench.kernels.packed.polar import Polar
from kvbench.models.view import view_of
from tests.support import codecs
from tests.support.checks import assert_close
from tests.support.codecs import rand
from tests.support.models import model
from tests.support.strategies import composed

TURN = 2 * math.pi
BITS = ((4, 4), (5, 3), (2, 2), (1, 2))  # of radius and angle


def packing(radius: int = 4, angle: int = 4, *, half: int, group: int = 8) -> PolarPacking:
    """Return how keys are packed in groups of tokens, if so many channels are rotated with as many others."""
    codec = composed("polarquant").codec
    assert isinstance(codec, PolarQuant)
    rule = replace(codec, radius_bits=radius, angle_bits=angle, group=group, residual=group)
    return PolarPacking(rule=rule, half=half)


def written(keys: Tensor, how: PolarPacking) -> Polar:
    """Return keys [B, G, T, D] as they are kept."""
    return how.run(how.encode(keys), keys.shape[3], "reference")


def partners(dim: int, half: int) -> list[tuple[int, int]]:
    """Return the channels of each pair."""
    rest = dim // 2 - half
    turned = [(at, at + half) for at in range(half)]
    return turned + [(2 * half + at, 2 * half + rest + at) for at in range(rest)]


def arc(angles: list[float]) -> tuple[float, float]:
    """Return where the smallest arc with these angles begins, and how long it is."""
    return min((max((other - first) % TURN for other in angles), first) for first in angles)[::-1]


def middles(numbers: list[float], begin: float, length: float, bits: int) -> list[float]:
    """Return the middles of the steps, as float16 has them, that numbers beyond the first fall into."""
    start, step = float(np.float16(begin)), float(np.float16(length / 2**bits))
    found = []
    for number in numbers:
        code = math.floor((number + begin - start) / (step or 1.0))
        found.append(start + (min(max(code, 0), 2**bits - 1) + 0.5) * step)
    return found


def stand_ins(entries: Tensor, how: Any) -> Tensor:
    """Return what stands in the place of entries [B, G, T, D], by plain loops."""
    if not isinstance(how, PolarPacking):
        return codecs.stand_ins(entries, how)
    out, rule = entries.float().double(), how.rule
    batch, heads, tokens, dim = entries.shape
    for row, head, start in itertools.product(range(batch), range(heads), range(0, tokens, rule.group)):
        group = out[row, head, start : start + rule.group]
        for x, y in partners(dim, how.half):
            length = [math.hypot(a, b) for a, b in group[:, [x, y]].tolist()]
            angle = [math.atan2(b, a) for a, b in group[:, [x, y]].tolist()]
            least, (first, wide) = min(length), arc(angle)
            radius = middles([each - least for each in length], least, max(length) - least, rule.radius_bits)
            turn = middles([(each - first) % TURN for each in angle], first, wide, rule.angle_bits)
            for at, (r, phi) in enumerate(zip(radius, turn, strict=True)):
                group[at, x], group[at, y] = r * math.cos(phi), r * math.sin(phi)
    return out


# -- oracles --------------------------------------------------------------------------------------------------------


def polar_codes_equal_plain_loops() -> None:
    """Codes stand for the numbers that plain loops find, whatever the bits and the channels that are rotated."""
    for (radius, angle), (dim, half) in itertools.product(BITS, ((8, 4), (10, 5), (12, 2))):
        keys, how = rand(2, 3, 24, dim), packing(radius, angle, half=half)
        run = written(keys, how)
        assert_close(run.dense(0, 24, torch.float64), stand_ins(keys, how))
        assert torch.equal(run.dense(5, 19, torch.float64), run.dense(0, 24, torch.float64)[:, :, 5:19])


def polar_errors_are_at_most_half_a_step() -> None:
    """No radius, and no angle, moves further than half a step and what float16 adds, and no key further than both."""
    for radius_bits, angle_bits in BITS:
        keys, how = rand(2, 2, 32, 8, seed=1), packing(radius_bits, angle_bits, half=4, group=16)
        got, most = written(keys, how).dense(0, 32, torch.float64), 0.0
        for row, head, start, (x, y) in itertools.product(range(2), range(2), (0, 16), partners(8, 4)):
            given, made = (t[row, head, start : start + 16][:, [x, y]].double() for t in (keys, got))
            length, radius = given.norm(dim=1), made.norm(dim=1)
            angle, phi = (torch.atan2(t[:, 1], t[:, 0]) for t in (given, made))
            step = (length.max() - length.min()) / 2**radius_bits
            turn = arc(angle.tolist())[1] / 2**angle_bits
            far = (length - radius).abs()
            turned = ((angle - phi + math.pi) % TURN - math.pi).abs()
            assert (far <= step / 2 + length.max() * 2**-10).all()
            assert (turned <= turn / 2 + TURN * 2**-11).all()
            assert ((given - made).norm(dim=1) <= length * turned + far + 1e-9).all()
            most = max(most, float((far / step).max()))
        assert most > 0.4  # there is no other code nearer: steps are as wide as they have to be


def where_angles_begin_does_not_matter() -> None:
    """Keys within a narrow arc lose as little wherever it lies, across 0 and across half a turn too."""
    random = torch.Generator().manual_seed(2)
    angle = torch.rand(64, 4, generator=random, dtype=torch.float64) * 0.5
    for first in torch.arange(0, TURN, TURN / 24).tolist():
        points = torch.stack([(angle + first).cos(), (angle + first).sin()])
        keys = points.transpose(0, 1).flatten(1)[None, None]
        got = written(keys, packing(half=4, group=64)).dense(0, 64, torch.float64)
        assert (got - keys).abs().max() < 0.5 / 16 / 2 + 2**-8
    assert (got - keys).abs().max() > 0.5 / 16 / 4


def looked_up_products_equal_dense_ones(group: int, share: int) -> None:
    """Products of queries with what the table says are those with the numbers that the codes stand for."""
    keys, rows = rand(2, 3, 2 * group, 12, seed=3), rand(2, 3, share, 12, seed=4)
    for (radius, angle), half in itertools.product(BITS, (6, 2)):
        run = written(keys, packing(radius, angle, half=half, group=group))
        out = torch.full((2, 3, share, 2 * group + 8), torch.nan)[..., 3 : 3 + 2 * group]
        run.logits(rows, out)
        numbers = run.dense(0, 2 * group, torch.float64)
        size = rows.double().abs() @ keys.double().abs().mT + rows.double().abs() @ numbers.abs().mT
        assert ((out - rows.double() @ numbers.mT).abs() <= 2e-6 * size).all()


def a_pair_is_what_is_rotated_together() -> None:
    """A key that is rotated on and on keeps the radii of its pairs, and those of channels that are not rotated."""
    for name in ("llama_gqa", "phi3"):
        view, key = view_of(model(name)), rand(1, 1, 1, 8, seed=5)
        codec = composed("polarquant").codec
        assert isinstance(codec, PolarQuant)
        rotary = view.layers[0].rotary
        assert rotary is not None
        assert len(rotary) == (4 if name == "llama_gqa" else 2)
        keys = turn(key.expand(-1, -1, 128, -1), torch.arange(128, dtype=torch.int32)[None, None], rotary)
        least, step, _, turned = written(keys, codec.keys(view, 0)).scales.chunk(4, dim=-1)
        assert (step < 1e-5 * least).all()
        assert turned.max() > 0.1


def equals_attention_to_what_the_polar_codes_stand_for(model_name: str, *, prompt: int = 24) -> None:
    """Logits at every step are those of dense attention to keys that plain loops have rounded."""
    codecs.equals_attention_to_what_the_codes_stand_for("polarquant", model_name, prompt=prompt, loops=stand_ins)


def polar_bytes_are_those_of_the_paper() -> None:
    """Keys of any size take 4 bits a number, and two scales with where they begin for each pair in 128 tokens."""
    made = composed("polarquant").codec.of_layer(view_of(model("llama_gqa")), 0)
    for dim in (64, 128):
        more, less = (made.key_format.allocated_bytes(1, dim, count, torch.float16) for count in (1280, 0))
        assert (more - less) / (1280 * dim) == 0.5 + 4 / 128 == 0.53125


def keys_of_odd_size_are_refused() -> None:
    """A channel without a partner is no point in a plane."""
    view = view_of(model("gpt2"))
    shapes = (view.layers[0], replace(view.layers[1], key_dim=7))
    reason = composed("polarquant").codec.unsupported(replace(view, layers=shapes))
    assert reason == "strategy/codec=polarquant pairs channels, and keys of this model have 7; use kivi4"
    assert composed("polarquant").codec.unsupported(view) is None
