"""What must hold of tables that are fitted to a model: gradients by differences, plain Lloyd, and what they are for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.codecs.codebooks import Table
from kvbench.cache.codecs.kvquant import CodebookFormat, KVQuant
from kvbench.calibration import codebooks as calibration
from kvbench.calibration import watching
from kvbench.calibration.codebooks import OUTLIERS, SKIPPED, Seen, fit, seen
from kvbench.models.load import Loaded, load
from kvbench.models.spec import TINY
from kvbench.models.view import view_of
from tests.models.test_tiny import spec
from tests.support.measured import SOURCE, measured
from tests.support.models import attention, ids, model
from tests.support.strategies import composed


def loaded(network: PreTrainedModel) -> Loaded:
    """Return a model as calibration gets it."""
    return Loaded(model=network, tokenizer=None, view=view_of(network), weights="random", revision="seed-0")


def layers_of(name: str, texts: Tensor) -> list[tuple[Seen, Seen]]:
    """Return what calibration sees of a model."""
    with attention(model(name), watching.ATTENTION) as network:
        return seen(loaded(network), texts.tolist(), 1, lambda share: None)


def projections(name: str, layer: int) -> list[tuple[torch.nn.Module, int]]:
    """Return what makes the keys and the values of a layer, and where in its output they begin."""
    if name == "gpt2":
        made = model(name).get_submodule(f"transformer.h.{layer}.attn.c_attn")
        return [(made, 32), (made, 64)]
    block = model(name).get_submodule(f"model.layers.{layer}.self_attn")
    return [(block.get_submodule(each), 0) for each in ("k_proj", "v_proj")]


def loss_with(name: str, tokens: Tensor, at: tuple[torch.nn.Module, int, int], shift: float) -> tuple[float, Tensor]:
    """Return the loss of the stock model with one number of a projection changed, and what it put out [T, n]."""
    module, token, channel = at
    noted: list[Tensor] = []

    def change(_: object, __: object, out: Tensor) -> Tensor:
        out = out.clone()
        out[0, token, channel] += shift
        noted.append(out[0])
        return out

    handle = module.register_forward_hook(change)
    try:
        with attention(model(name), "sdpa") as network:
            logits = network(tokens, use_cache=False).logits[0, :-1].double()
    finally:
        handle.remove()
    return float(-logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).sum()), noted[0]


def gradients_are_those_of_the_loss(name: str) -> None:
    """Keys and values are what the projections make, before any rotation, and gradients what a change costs."""
    tokens, step = ids(14, 1, 20), 3e-3  # norms compute in float32
    for layer, sides in enumerate(layers_of(name, tokens)):
        for got, (module, first) in zip(sides, projections(name, layer), strict=True):
            width, largest = got.numbers.shape[1], 0.0
            for token, channel in ((SKIPPED, 0), (9, width - 1), (13, width // 2 + 1)):
                (more, out), (less, _) = (
                    loss_with(name, tokens, (module, token, first + channel), shift) for shift in (step, -step)
                )
                gradient = float(got.gradient[token - SKIPPED, channel])
                assert gradient == pytest.approx((more - less) / (2 * step), rel=1e-2, abs=1e-4)
                largest = max(largest, abs(gradient))
            made = out[SKIPPED:, first : first + width].float()
            made[13 - SKIPPED, channel] = got.numbers[13 - SKIPPED, channel]  # the one that was changed last
            torch.testing.assert_close(got.numbers, made, rtol=0, atol=1e-5)
            assert largest > 1e-4


def samples() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers between -1 and 1 of several shapes, and weights."""
    random = torch.Generator().manual_seed(15)
    for power in (1, 2, 5):
        numbers = (2 * torch.rand(300, generator=random) - 1) ** power * (0.9 if power == 2 else 1)
        yield numbers, torch.ones(300)
        yield numbers, torch.rand(300, generator=random) ** 4


def cost(numbers: Tensor, weights: Tensor, levels: Tensor) -> float:
    """Return the squares of what rounding does, by weight."""
    nearest = (numbers.double()[:, None] - levels.double()).abs().amin(dim=1)
    return float((weights.double() * nearest.square()).sum())


def plain_lloyd(numbers: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return where levels end that go to the mean of what is nearest to them, again and again."""
    while True:
        near = np.abs(numbers[:, None] - levels).argmin(axis=1)
        mass = np.bincount(near, weights, len(levels))
        means = np.bincount(near, weights * numbers, len(levels)) / np.maximum(mass, 1e-300)
        new = np.where(mass > 0, means, levels)
        if np.abs(new - levels).max() < 1e-12:
            return new
        levels = new


def a_table_is_plain_lloyd_and_loses_no_more_than_even_steps() -> None:
    """A table is what means of what is nearest make of even steps, or of even shares, whichever costs less."""
    for (numbers, weights), bits in itertools.product(samples(), (2, 3, 4)):
        given, mass, even = numbers.double().numpy(), weights.double().numpy(), np.linspace(-1, 1, 2**bits)
        order = given.argsort()
        shares = mass[order].cumsum() / mass.sum()
        spread = given[order][[int((shares < (which + 0.5) / 2**bits).sum()) for which in range(2**bits)]]
        ends = [torch.from_numpy(plain_lloyd(given, mass, start)) for start in (even, spread)]
        got = fit(numbers, weights, bits)
        assert cost(numbers, weights, got) == pytest.approx(min(cost(numbers, weights, end) for end in ends), rel=1e-6)
        assert any(torch.allclose(got, end, rtol=0, atol=1e-6) for end in ends)
        assert cost(numbers, weights, got) < cost(numbers, weights, torch.from_numpy(even))
        assert bool((got.diff() >= 0).all())


def tables_go_by_what_an_error_costs() -> None:
    """By squares of scaled gradients tables cost less than those that count all numbers alike."""
    found, ratios = measured("codebooks", model("llama_gqa"), samples=8, tokens=150), []
    for layer, (keys, values) in enumerate(layers_of("llama_gqa", calibration_ids(8, 150))):
        lower, upper = (torch.tensor(rows[layer]) for rows in (found.lower, found.upper))
        for side, tables, (scale, low), kept in (
            (keys, found.keys, between(lower, upper), torch.ones_like(keys.numbers, dtype=torch.bool)),
            (values, found.values, between_of_tokens(values.numbers), far(values.numbers)),
        ):
            numbers, costs = (side.numbers - low) / scale, (side.gradient * scale).square()
            inside = (numbers.abs() <= 1) & kept
            for bits, rows in tables.items():
                alike = fit(numbers[inside], torch.ones(int(inside.sum())), int(bits))
                mine = cost(numbers[inside], costs[inside], torch.tensor(rows[layer]))
                ratios.append(mine / cost(numbers[inside], costs[inside], alike))
    assert max(ratios) < 1.1, ratios
    assert np.mean(ratios) < 0.95, ratios


def between(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return half the distance of limits and their middle, as float16 has them."""
    return ((upper - lower) / 2).half().float(), ((upper + lower) / 2).half().float()


def far(numbers: Tensor) -> Tensor:
    """Return which of each token's numbers [N, C] are no outliers."""
    distance = (numbers - numbers.median(dim=1, keepdim=True).values).abs()
    count = max(1, round(OUTLIERS * numbers.shape[1]))
    return distance < distance.sort(dim=1, descending=True).values[:, count - 1 : count]


def between_of_tokens(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return half the range of each token's numbers [N, C], outliers apart, and its middle [N, 1]."""
    kept = far(numbers)
    return between(
        numbers.masked_fill(~kept, torch.inf).amin(dim=1, keepdim=True),
        numbers.masked_fill(~kept, -torch.inf).amax(dim=1, keepdim=True),
    )


def calibration_ids(count: int, tokens: int) -> Tensor:
    """Return the ids that `fitted` reads."""
    return torch.tensor(SOURCE.windows(count, tokens))


def thresholds_are_percentiles() -> None:
    """Limits of a channel lie where half a percent of its keys, before rotation, are below and above."""
    found = measured("codebooks", model("llama_gqa"), samples=8, tokens=150)
    for layer, (keys, _) in enumerate(layers_of("llama_gqa", calibration_ids(8, 150))):
        for channel, numbers in enumerate(keys.numbers.t().tolist()):
            for limit, share in ((found.lower, OUTLIERS / 2), (found.upper, 1 - OUTLIERS / 2)):
                at = share * (len(numbers) - 1)
                below, above = sorted(numbers)[int(at) : int(at) + 2]
                assert limit[layer][channel] == pytest.approx(below + (above - below) * (at - int(at)), rel=2e-4)


@functools.cache
def embedded() -> tuple[Loaded, Tensor]:
    """Return the embedded model and running text [5, 256]."""
    tiny = load(replace(spec(), device="cpu"), seed=0, attention=watching.ATTENTION)
    text = (TINY / "held_out.txt").read_text(encoding="utf-8")[:20_000]
    assert tiny.tokenizer is not None
    return tiny, torch.tensor(tiny.tokenizer(text, add_special_tokens=False).input_ids[: 5 * 256]).view(5, 256)


def keys_before_rotation_lose_less() -> None:
    """On text that nothing was fitted to, a trained model's keys lose less before rotation than after it."""
    tiny, texts = embedded()
    bare = replace(tiny.view, layers=tuple(replace(layer, rotary=None) for layer in tiny.view.layers))
    errors = {}
    for name, view in (("before", tiny.view), ("after", bare)):
        errors[name] = key_error(replace(tiny, view=view), texts)
    assert errors["before"] < 0.8 * errors["after"], errors


def key_error(tiny: Loaded, texts: Tensor) -> float:
    """Return the squares of what 3 bits do to the keys of the last text, by tables fitted to the others."""
    noted: list[Tensor] = []
    fitting = seen(tiny, texts[:-1].tolist(), 1, lambda share: None)
    with torch.no_grad():
        watching.forward(tiny.model, texts[-1:], lambda layer, query, key, *rest: noted.append(key))
    rule, total = composed("kvquant3", "codec.kernel=reference").codec, 0.0
    assert isinstance(rule, KVQuant)
    for (keys, _), key, shape in zip(fitting, noted, tiny.view.layers, strict=True):
        limits = [torch.from_numpy(row) for row in np.quantile(keys.numbers.numpy(), (0.005, 0.995), axis=0)]
        scale, low = (each.half().view(shape.kv_heads, -1) for each in between(limits[0], limits[1]))
        levels = fit(*calibration.of_channels(keys, limits[0], limits[1]), 3).float()
        how = CodebookFormat(rule=rule, table=Table(levels=levels, scale=scale, low=low), rotary=shape.rotary)
        payload, position = how.empty(key, key.shape[2]), torch.arange(key.shape[2])[None, None]
        payload.write(0, key, position)
        total += float((payload.read(key.shape[2], position) - key).square().sum())
    return total
