"""Entries turned, scaled or projected, rounded by plain loops and brought back: what coordinates must equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs.dense import DensePayload
from kvbench.cache.codecs.moments import find
from kvbench.cache.codecs.packed import PackedCodec
from kvbench.cache.codecs.projected import Projected
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.codecs.rotated import Rotated, hadamard
from kvbench.cache.codecs.turboquant import random_rotation
from kvbench.cache.rotary import turn
from kvbench.models.view import view_of
from kvbench.types import ModelView, RunShape
from tests.support.checks import NEW, uniform
from tests.support.codecs import quantiser, rand, read_back, stand_ins
from tests.support.drive import drive, padded
from tests.support.latents import network
from tests.support.measured import folder
from tests.support.models import ids, model
from tests.support.strategies import composed, settings, strategy

NO_ENDS = ("codec.num_sink=0", "codec.window=0")
EXACT_LATENT = "strategy/codec@strategy.codec.latent=dense"
ROUNDED = "strategy/codec@strategy.codec.latent=int4"
SORTED = ("rotatekv", "skvq")  # whose groups that share a scale depend on the order
GROUPS = ("codec.latent.key_quantiser.group=4", "codec.latent.value_quantiser.group=4")
ALL = dict.fromkeys(("palu", "palu_fp16", "eigen_attention"), ("codec.kept=1",))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a layer, by explicit matrices.

    Args:
        into: what groups of heads, end to end, are multiplied by [n, h x D, r].
        back: what coordinates are multiplied by [n, r, h x D].
        bias: subtracted first [G, D].
        rotary: of the rotation that entries lose first.
        how: coordinates are rounded; None where they are not.
    """

    into: Tensor
    back: Tensor
    bias: Tensor | None = None
    rotary: Tensor | None = None
    how: Quantiser | None

    def empty(self, like: Tensor, capacity: int) -> SidePayload:
        """Return room."""
        batch, heads, _, dim = like.shape
        return SidePayload(self, like.new_zeros(batch, heads, capacity, dim))

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of numbers as they are."""
        return heads * capacity * dim * dtype.itemsize

    used_bytes = allocated_bytes

    def there_and_back(self, entries: Tensor, position: Any) -> Tensor:
        """Return what stands in the place of entries [B, G, T, D]."""
        rows = entries.double()
        if self.rotary is not None:
            rows = turn(rows, -position, self.rotary)
        if self.bias is not None:
            rows = rows - self.bias[:, None]
        groups = len(self.into)
        flat = rows.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)  # [B, n, T, h x D]
        coordinates = torch.stack([flat[:, at] @ self.into[at] for at in range(groups)], dim=1)
        if self.how is not None:
            coordinates = stand_ins(coordinates, self.how)
        flat = torch.stack([coordinates[:, at] @ self.back[at] for at in range(groups)], dim=1)
        rows = flat.unflatten(3, (-1, entries.shape[3])).transpose(2, 3).flatten(1, 2)
        if self.bias is not None:
            rows = rows + self.bias[:, None]
        return rows if self.rotary is None else turn(rows, position, self.rotary)


class SidePayload(DensePayload):
    """Numbers that were rounded in their coordinates when they were written."""

    def __init__(self, side: Side, data: Tensor) -> None:
        super().__init__(data)
        self.side = side

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Write what stands in their place."""
        super().write(start, self.side.there_and_back(entries, position).to(entries.dtype))

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Write what stands in the place of single entries."""
        super().scatter(slot, self.side.there_and_back(entry, position).to(entry.dtype))


Sides = Callable[[ModelView, int], tuple[Side, Side]]


@dataclass(frozen=True, kw_only=True)
class PlainCodec:
    """A codec that loses what one of coordinates loses, by explicit matrices and plain loops.

    Args:
        sides: of a layer.
        joins_heads: as the other's.
    """

    sides: Sides
    joins_heads: bool
    joins_slots: bool = False
    is_exact: bool = False
    data_dependent: bool = False
    takes_pieces: bool = False
    writes_each_token_alone: bool = True
    flush_tokens: int = 1

    def of_layer(self, view: ModelView, layer: int) -> PlainLayer:
        """Return both sides of a layer."""
        keys, values = self.sides(view, layer)
        return PlainLayer(key_format=keys, value_format=values)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> None:
        """Return None: nothing is packed."""

    def unsupported(self, view: ModelView) -> None:
        """Return None: every model can."""


@dataclass(frozen=True, kw_only=True)
class PlainLayer:
    """Both sides of a layer."""

    key_format: Side
    value_format: Side
    is_exact: bool = False
    writes_each_token_alone: bool = True
    flush_tokens: int = 1
    num_sink: int = 0
    fixed_bytes: int = 0

    def of_heads(self, heads: slice) -> PlainLayer:
        """Return both sides of some of the heads, where each has matrices of its own."""
        keys, values = (
            replace(s, into=s.into[heads], back=s.back[heads], bias=None if s.bias is None else s.bias[heads])
            for s in (self.key_format, self.value_format)
        )
        return PlainLayer(key_format=keys, value_format=values)


def signs(width: int) -> Tensor:
    """Return the matrix of the signs of the bits that row and column share, orthonormal [width, width]."""
    rows = [[(-1.0) ** (row & column).bit_count() for column in range(width)] for row in range(width)]
    matrix: Tensor = torch.tensor(rows, dtype=torch.float64) / width**0.5
    return matrix


def rotations(rule: Projected, view: ModelView, layer: int) -> tuple[Side, Side]:
    """Return QuaRot's sides: each head times a matrix of signs, those of the bits that row and column share."""
    shape = view.layers[layer]
    matrix = signs(shape.key_dim).expand(shape.kv_heads, -1, -1)
    side = Side(into=matrix, back=matrix.mT, how=quantiser(4))
    return side, side


def scales(rule: Projected, view: ModelView, layer: int) -> tuple[Side, Side]:
    """Return QoQ's sides: keys over the root of the largest magnitude of a channel and of its partner."""
    shape = view.layers[layer]
    found = find(str(folder("moments")), view)
    assert found is not None
    roots = torch.ones(shape.kv_heads, shape.key_dim, dtype=torch.float64)
    half = 0 if shape.rotary is None else len(shape.rotary)
    for head, largest in enumerate(found.largest[layer].tolist()):
        for channel, own in enumerate(largest):
            partner = channel + half if channel < half else channel - half
            roots[head, channel] = max(own, largest[partner] if channel < 2 * half else own) ** 0.5
    nothing = torch.eye(shape.value_dim, dtype=torch.float64).expand(shape.kv_heads, -1, -1)
    values = Side(into=nothing, back=nothing, how=quantiser(4))
    return Side(into=torch.diag_embed(1 / roots), back=torch.diag_embed(roots), how=quantiser(4)), values


def directions(rule: Projected, view: ModelView, layer: int) -> tuple[Side, Side]:
    """Return the sides of Palu, or of Eigen Attention, along the directions that it says itself."""
    shape, made = view.layers[layer], []
    for basis, projection, rotary in zip(
        rule.bases(view, layer),
        (shape.key_projection, shape.value_projection),
        (shape.rotary, None),
        strict=True,
    ):
        assert basis is not None
        assert basis.directions is not None
        assert projection is not None
        flat = basis.directions.flatten(1, 2)
        made.append(Side(into=flat, back=flat.mT, bias=projection.bias, rotary=rotary, how=quantiser(4)))
    return made[0], made[1]


def random_rotations(rule: Projected, view: ModelView, layer: int) -> tuple[Side, Side]:
    """Return TurboQuant's sides: each head times the matrix that it says itself, to levels of normal numbers."""
    shape = view.layers[layer]
    matrix = random_rotation(shape.key_dim, getattr(rule, "seed")).expand(shape.kv_heads, -1, -1)  # noqa: B009
    side = Side(into=matrix, back=matrix.mT, how=quantiser(3, symmetric=True, levels="normal"))
    return side, side


def order_of(moments: Tensor) -> list[int]:
    """Return channels in the order of how far they lie along what grows when moments are multiplied, farthest first."""
    power = moments.double()
    for _ in range(40):
        power = power @ power / power.abs().max()
    main = power[:, int(power.diagonal().argmax())]
    main = main if main.max() > -main.min() else -main
    return sorted(range(len(main)), key=lambda channel: -float(main[channel]))


def of_groups(rule: Projected, moments: Tensor, dim: int) -> list[Tensor]:
    """Return the moments of groups of as many heads as a rule says, of those of all heads of a layer [1, c, c]."""
    (whole,) = moments
    size = min(len(whole), getattr(rule, "heads") * dim)  # noqa: B009
    return [whole[at : at + size, at : at + size].double() for at in range(0, len(whole), size)]


def sorted_channels(rule: Projected, view: ModelView, layer: int) -> tuple[Side, Side]:
    """Return SKVQ's sides: the channels of a group, sorted."""
    shape, made = view.layers[layer], []
    found = find(str(folder("moments")), view)
    assert found is not None
    for moments, dim, projection, rotary in (
        (found.keys[layer], shape.key_dim, shape.key_projection, shape.rotary),
        (found.values[layer], shape.value_dim, shape.value_projection, None),
    ):
        assert projection is not None
        groups = of_groups(rule, moments, dim)
        into = torch.stack([torch.eye(len(each), dtype=torch.float64)[:, order_of(each)] for each in groups])
        how = quantiser(4, group=4)
        made.append(Side(into=into, back=into.mT, bias=projection.bias, rotary=rotary, how=how))
    return made[0], made[1]


def turned_and_sorted(rule: Projected, view: ModelView, layer: int) -> tuple[Side, Side]:
    """Return RotateKV's sides: keys of a group times a matrix of signs, sorted; each head of values times another."""
    shape = view.layers[layer]
    found = find(str(folder("moments")), view)
    assert found is not None
    assert shape.key_projection is not None
    assert shape.value_projection is not None
    how, groups = quantiser(4, group=4), of_groups(rule, found.keys[layer], shape.key_dim)
    turn, values = signs(len(groups[0])), signs(shape.value_dim).expand(shape.kv_heads, -1, -1)
    into = torch.stack([turn[:, order_of(turn.mT @ each @ turn)] for each in groups])
    return (
        Side(into=into, back=into.mT, bias=shape.key_projection.bias, rotary=shape.rotary, how=how),
        Side(into=values, back=values.mT, bias=shape.value_projection.bias, how=how),
    )


PLAIN: dict[str, Callable[[Projected, ModelView, int], tuple[Side, Side]]] = {
    "quarot": rotations,
    "qoq_kv4": scales,
    "palu": directions,
    "eigen_attention": directions,
    "turboquant3": random_rotations,
    "rotatekv": turned_and_sorted,
    "skvq": sorted_channels,
}


# -- oracles --------------------------------------------------------------------------------------------------------


def coordinates_alone_lose_nothing(name: str, model_name: str) -> None:
    """With coordinates as they are logits are the full cache's, in float64, and in bfloat16 as far as that goes."""
    rows = [ids(1 + row, 1, length + NEW)[0] for row, length in enumerate((24, 17))]
    run = RunShape(prompt_lengths=(24, 17), new_tokens=NEW)
    for dtype, most in ((torch.float64, 1e-9), (torch.bfloat16, 0.03)):
        mine = model(model_name, dtype)
        want = drive(mine, strategy("baseline"), padded(rows), run)
        got = drive(mine, strategy(name, *ALL.get(name, ()), EXACT_LATENT), padded(rows), run)
        for row, length in enumerate((24, 17)):
            moved = (got.logits[row, 24 - length :] - want.logits[row, 24 - length :]).abs().max()
            assert moved <= most * want.logits.abs().max()


def coordinates_are_those_of_plain_products(
    name: str, model_name: str, method: str = "baseline", overrides: tuple[str, ...] = ()
) -> None:
    """Logits are those of dense attention to what explicit matrices and plain loops make of every entry."""
    tokens = ids(2, 1, 24 + NEW)
    rounded = () if name == "turboquant3" else (ROUNDED, *(GROUPS if name in SORTED else ()))
    mine = (f"strategy/codec={name}", *rounded, *settings()[name].overrides, *NO_ENDS, *overrides)
    made = strategy(method, *mine, tokens=None if method == "baseline" else 12)
    codec = made.codec
    assert isinstance(codec, Projected)
    assert codec.writes_each_token_alone
    plain = PlainCodec(sides=partial(PLAIN[name], codec), joins_heads=codec.joins_heads)
    got = drive(network(model_name), made, tokens, uniform())
    want = drive(network(model_name), replace(made, codec=plain), tokens, uniform())
    torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=1e-9)
    full = drive(network(model_name), replace(made, codec=composed("baseline").codec), tokens, uniform())
    assert (got.logits - full.logits).abs().max() > 1e-5, "rounding changes nothing: the comparison proves nothing"


def bytes_are_those_of_the_numbers_and_one_rotation() -> None:
    """QuaRot holds what 4 bits take, and one matrix per layer."""
    view, run = view_of(model("llama_gqa")), uniform()
    with_rotation, without = (strategy(name).allocated_bytes(view, run) for name in ("quarot", "quantization_4bit"))
    assert with_rotation - without == 2 * 8 * 8 * 8  # layers, rows, columns, bytes of a number


def a_matrix_spreads_every_channel(size: int) -> None:
    """Rows are orthonormal, and no number is more than 1.42 times as large as where all are alike."""
    made = hadamard(size)
    torch.testing.assert_close(made @ made.mT, torch.eye(size, dtype=torch.float64))
    assert made.abs().max() * size**0.5 < 2**0.5 + 1e-9
    if size & (size - 1) == 0:
        torch.testing.assert_close(made.abs(), torch.full_like(made, size**-0.5))


def a_rotation_spreads_what_stands_out(size: int) -> None:
    """With one channel of 30 times the size, turning makes errors of 4 bits a third, and tails as light as normal."""
    entries = torch.randn(1, 1, 4096, size, generator=torch.Generator().manual_seed(3)).double()
    entries[..., 5] *= 30
    view = view_of(model("llama_gqa", torch.float32))
    shape = replace(view.layers[0], key_dim=size, value_dim=size)
    rule = composed("quarot").codec
    assert isinstance(rule, Rotated)
    basis, _ = rule.bases(replace(view, layers=(shape,)), 0)
    turned = basis.coordinates(entries)
    errors = [
        float((there - given).square().sum() / given.square().sum())
        for there, given in (
            (read_back(entries, quantiser(4)), entries),
            (basis.entries(read_back(turned, quantiser(4))), entries),
        )
    ]
    assert errors[1] < errors[0] / 3
    before, after = (kurtosis(rows) for rows in (entries, turned))
    assert before > 20
    assert after < 3.5


def kurtosis(entries: Tensor) -> float:
    """Return the mean over entries of the fourth moment of their channels over the squared second."""
    centred = entries - entries.mean(-1, keepdim=True)
    return float((centred.pow(4).mean(-1) / centred.square().mean(-1).square()).mean())


def clipped_codes_equal_plain_loops() -> None:
    """The least and the largest code stand for a share of the least and the largest number, and none is beyond."""
    entries = rand(2, 2, 8, 11, seed=7)
    for clip in (0.95, 0.5):
        how = Quantiser(
            bits=4, along="channels", group=0, symmetric=False, levels="integers", clip=clip, scales="float16"
        )
        got = read_back(entries, how)
        for row, number in zip(got.flatten(0, 2), entries.flatten(0, 2), strict=True):
            low = (number.min() * clip).half()
            step = ((number.max() * clip - number.min() * clip) / 15).half().float()
            step = torch.where(step == 0, 1.0, step)
            codes = [min(15.0, max(0.0, round(float((each - low.float()) / step)))) for each in number]
            want = torch.tensor(codes).double() * step.double() + low.double()
            torch.testing.assert_close(row, want, rtol=0, atol=1e-9)
    codec = composed("quarot").codec
    assert isinstance(codec, Rotated)
    assert isinstance(codec.latent, PackedCodec)
    assert codec.latent.key_quantiser == codec.latent.value_quantiser == replace(how, clip=0.95)
