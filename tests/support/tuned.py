"""What must hold where layers have bits of their own."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from kvbench.bench import source_of
from kvbench.cache.codecs.bits import BITS, BitErrors, bits_of_layers, shared_out
from kvbench.cache.codecs.packed import PackedPayload
from kvbench.calibrated import fingerprint
from kvbench.calibration import watching
from kvbench.calibration.bits import READING, bit_errors
from kvbench.configuration import check, compose
from kvbench.models.load import Loaded, load
from kvbench.models.view import view_of
from kvbench.runner import job_of
from tests.support.checks import uniform
from tests.support.drive import drive, slots_of
from tests.support.measured import SOURCE, temporary
from tests.support.models import LAYERS, NAMES, attention, ids, model
from tests.support.strategies import composed

NAME = "rounded_by_hand"
FOUND = {"tokens": ((0.2, 0.1, 0.0), (0.9, 0.1, 0.0)), "channels": ((0.9, 0.5, 0.0), (0.2, 0.1, 0.0))}
FOUND["values"] = ((0.3, 0.2, 0.1), (0.3, 0.2, 0.1))


@functools.cache
def folder() -> Path:
    """Return a folder with made-up errors of every model: the second layer's keys by tokens need more bits."""
    path = temporary("bits")
    for name in NAMES:
        weights = fingerprint(view_of(model(name)))
        assert weights is not None
        about: dict[str, Any] = {"model": name, "revision": "", "weights": weights, "seed": 0, "samples": 1}
        made = BitErrors(tokens=160, group=32, errors=FOUND, **about)
        made.write(path / made.file_name("bits"))
    return path


# -- choosing -------------------------------------------------------------------------------------------------------


def sharing_out_is_the_best_there_is() -> None:
    """No other bits with the same mean, or a lower one, have a smaller sum of errors; more bits never cost."""
    rng = random.Random("bits")
    for layers, _ in itertools.product((1, 2, 3), range(4)):
        keys, values = ([sorted((rng.random() for _ in BITS), reverse=True) for _ in range(layers)] for _ in range(2))
        found = []
        for mean in (2, 2.25, 3, 4.5, 8):
            got = shared_out(keys, values, mean)
            assert sum(map(sum, got)) <= 2 * mean * layers
            pairs = itertools.product(itertools.product(BITS, BITS), repeat=layers)
            allowed = [each for each in pairs if sum(map(sum, each)) <= 2 * mean * layers]
            found.append(added(keys, values, got))
            assert abs(found[-1] - min(added(keys, values, each) for each in allowed)) < 1e-12
        assert found == sorted(found, reverse=True)
        assert found[0] > found[-1]


def added(keys: Sequence[Any], values: Sequence[Any], chosen: Sequence[tuple[int, int]]) -> float:
    """Return the sum of the errors of bits."""
    total: float = sum(
        of_keys[BITS.index(key)] + of_values[BITS.index(value)]
        for of_keys, of_values, (key, value) in zip(keys, values, chosen, strict=True)
    )
    return total


def layers_hold_their_own_bits() -> None:
    """Codes of each layer are as wide as the errors of its model ask for, by what its keys share scales along."""
    where, like = f"codec.errors='{folder()}'", "strategy/codec@strategy.codec.like=int4"
    kivi = [f"codec.like.{rest}" for rest in ("key_quantiser.group=4", "value_quantiser.group=4", "residual=8")]
    for overrides, want in (((*kivi,), ((2, 2), (4, 2))), ((like,), ((8, 2), (2, 2)))):
        mean = sum(map(sum, want)) / 4
        made = composed("kvtuner", *overrides, where, f"codec.bits={mean}")
        cache = drive(model("llama_gqa"), made, ids(1, 1, 40), uniform(40, new=0)).cache
        for layer, bits in zip(cache.layers, want, strict=True):
            slots = slots_of(layer)
            for payload, mine in zip((slots.keys, slots.values), bits, strict=True):
                assert isinstance(payload, PackedPayload)
                assert payload.kept[0].shape[3] == mine  # bytes of 8 numbers


# -- measuring ------------------------------------------------------------------------------------------------------


def errors_equal_plain_loops(model_name: str) -> None:
    """The divergence of the last predictions is that of attention written out, with one side of one layer rounded."""
    network = model(model_name)
    got = measured(network)
    (row,) = SOURCE.windows(1, 160)
    tokens = torch.tensor([row])
    want = last_predictions(network, tokens, {})
    for (side, table), layer in itertools.product(got.errors.items(), range(LAYERS)):
        for bits, error in zip(BITS, table[layer], strict=True):
            moved = last_predictions(network, tokens, {(layer, side): bits})
            plain = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(want, moved, strict=True)) / READING
            assert abs(error - plain) <= 1e-3 * plain + 1e-12, (side, layer, bits, error, plain)
        assert table[layer][0] > table[layer][-1] > 0, "nothing was rounded: the comparison proves nothing"


def tuned_bits_lose_less_than_the_same_everywhere() -> None:
    """On the embedded model, with no more bits on average, predictions move less than with the same in every layer."""
    asked = check(compose(["model=tiny", "model.device=cpu"]))
    loaded = load(asked.model, seed=0, attention="sdpa")
    text = torch.tensor(source_of(job_of(asked), loaded).windows(3, 384))[2:]
    want = last_predictions(loaded.model, text, {})

    def moved(chosen: Sequence[tuple[int, int]]) -> float:
        bits = {(at, "tokens"): keys for at, (keys, _) in enumerate(chosen)}
        bits |= {(at, "values"): values for at, (_, values) in enumerate(chosen)}
        got = last_predictions(loaded.model, text, bits)
        return float((want.exp() * (want - got)).sum(dim=-1).mean())

    for mean, alike in ((2.5, ((2, 2), (2, 4))), (3, ((4, 2), (2, 4)))):
        mine = moved(bits_of_layers(loaded.view, "", "tokens", mean))
        others = [moved([pair] * len(loaded.view.layers)) for pair in alike]
        assert mine < min(others), (mean, mine, others)


@functools.cache
def _loaded(network: Any) -> Loaded:
    return Loaded(model=network, tokenizer=None, view=view_of(network), weights="random", revision="seed-0")


def measured(network: Any, **asked: int) -> BitErrors:
    """Return the errors of a model over random ids."""
    with attention(network, watching.ATTENTION):
        return bit_errors(
            "small",
            _loaded(network),
            SOURCE,
            samples=asked.get("samples", 1),
            tokens=asked.get("tokens", 160),
            report=lambda share: None,
        )


def last_predictions(network: Any, tokens: Tensor, bits: Mapping[tuple[int, str], int]) -> Tensor:
    """Return log probabilities [READING, V] after the last tokens, all before them rounded by layer and side."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **keywords: Any) -> Any:
        share = query.shape[1] // key.shape[1]
        packed = query.shape[2] - READING
        exact = [t.repeat_interleave(share, dim=1) for t in (key, value)]
        for (layer, side), rounded_to in bits.items():
            if layer == module.layer_idx and side == "values":
                value = by_groups(value, packed, side, rounded_to)
            elif layer == module.layer_idx:
                key = by_groups(key, packed, side, rounded_to)
        later = [t.repeat_interleave(share, dim=1) for t in (key, value)]
        out = torch.empty_like(query)
        for at in range(query.shape[2]):
            keys, values = exact if at < packed else later
            logits = torch.einsum("bhd,bhmd->bhm", query[:, :, at], keys[:, :, : at + 1]) * keywords["scaling"]
            out[:, :, at] = torch.einsum("bhm,bhmd->bhd", logits.softmax(dim=-1), values[:, :, : at + 1])
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    with attention(network, NAME):
        predictions: Tensor = network(tokens, use_cache=False).logits[0, -READING:].log_softmax(dim=-1)
    return predictions


def by_groups(entries: Tensor, packed: int, side: str, bits: int) -> Tensor:
    """Return entries [B, G, T, D] of which the first ones are rounded in groups of 32."""
    out = entries.clone()
    first = out[:, :, :packed].mT if side == "tokens" else out[:, :, :packed]
    for group in first.split(32, dim=-1):
        low, high = group.amin(-1, keepdim=True), group.amax(-1, keepdim=True)
        step, low = ((high - low) / (2**bits - 1)).half().to(group.dtype), low.half().to(group.dtype)
        group.copy_(((group - low) / step).round().clamp(0, 2**bits - 1) * step + low)
    return out
