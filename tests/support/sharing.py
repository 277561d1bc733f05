"""What must hold for layers that read the keys and values of another."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from kvbench.models.sharing import Handed, SharingAttention
from kvbench.models.view import view_of
from kvbench.strategies.transform.cross_layer import CrossLayer
from kvbench.types import RunShape
from tests.support.checks import NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded, slots_of
from tests.support.models import attention, ids, model
from tests.support.strategies import composed

NAME, FACTOR = "donors", 2
SMALL = ("codec.key_quantiser.group=4", "codec.value_quantiser.group=4", "codec.residual=8")
_MADE: dict[int, tuple[Tensor, Tensor]] = {}


def _reference(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: object, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend with the keys and values of the first layer of each pair, whatever a layer has made itself."""
    _MADE[module.layer_idx] = (key, value)
    keys, values = (
        t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in _MADE[module.layer_idx // FACTOR * FACTOR]
    )
    logits = query @ keys.mT * scaling
    seen = torch.ones(logits.shape[-2:]).tril().bool()
    return (torch.where(seen, logits, -torch.inf).softmax(dim=-1) @ values).transpose(1, 2), None


AttentionInterface.register(NAME, _reference)
AttentionMaskInterface.register(NAME, lambda *arguments, **keywords: None)


@functools.cache
def shared(name: str, factor: int = FACTOR) -> PreTrainedModel:
    """Return a model whose layers share."""
    return cast("PreTrainedModel", composed("cla", f"transform.factor={factor}").prepare(model(name)))


def logits(network: nn.Module, tokens: Tensor, attend: str = "sdpa") -> Tensor:
    """Return the logits of ids with another attention function."""
    with attention(cast("PreTrainedModel", network), attend) as stock:
        out: Tensor = stock(tokens, use_cache=False).logits
    return out


def shared_entries_are_those_of_the_donor(name: str, chunks: Sequence[int] = (), steps: Sequence[int] = ()) -> None:
    """Without a cache, and with ours, logits are those of layers that attend to what their donor has made."""
    tokens = ids(21, 2, PROMPT + NEW)
    want = logits(model(name), tokens, NAME)
    assert (want - logits(model(name), tokens)).abs().max() > 1e-3, "sharing changes nothing: this proves nothing"
    assert_close(logits(shared(name), tokens), want)
    given = drive(shared(name), composed("baseline"), tokens, uniform(rows=2), chunks=chunks, steps=steps)
    assert_close(given.logits, want)


def a_group_of_one_changes_nothing(name: str) -> None:
    """With factor 1 every layer keeps what it had."""
    tokens = ids(22, 2, PROMPT)
    network = shared.__wrapped__(name, 1)
    assert network is not model(name)
    assert torch.equal(logits(network, tokens), logits(model(name), tokens))
    assert all(layer.donor is None for layer in view_of(network).layers)


def bytes_fall_with_the_layers_that_store(name: str) -> None:
    """A pair of layers holds one layer's entries, once, and the projections of the other are gone."""
    tokens, made = ids(23, 1, PROMPT + NEW), composed("baseline")
    sizes = []
    for network in (model(name), shared(name)):
        cache = drive(network, made, tokens, uniform()).cache
        assert cache.allocated_bytes() == made.allocated_bytes(view_of(network), uniform())
        sizes.append((cache.allocated_bytes(), cache.used_bytes(), cache.numbers_held()))
    assert all(full == FACTOR * mine > 0 for full, mine in zip(*sizes, strict=True)), sizes
    first, second = cache.layers
    assert second.donor is first  # type: ignore[attr-defined]
    assert not second.tensors()
    assert second.read_bytes() == first.read_bytes() > 0
    assert slots_of(first).filled == PROMPT + NEW
    gone = {key for key, _ in model(name).named_parameters()} - {key for key, _ in shared(name).named_parameters()}
    assert gone == {f"model.layers.1.self_attn.{part}_proj.weight" for part in "kv"}


def packed_entries_are_read_by_all(name: str) -> None:
    """Entries that are packed by any codec, of rows of any length, say nearly what those of the donor would."""
    lengths = (PROMPT, PROMPT - 7)
    run = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    texts = [ids(24 + row, 1, length + NEW) for row, length in enumerate(lengths)]
    for error, *codec in ((0.05, "strategy/codec=int8"), (0.5, "strategy/codec=kivi4", *SMALL)):
        made = composed("cla", *codec)
        packed = drive(shared(name), made, padded([text[0] for text in texts]), run)
        for row, text in enumerate(texts):
            want = logits(model(name), text, NAME)
            got = packed.logits[row : row + 1, -want.shape[1] :]
            torch.testing.assert_close(got, want, rtol=0, atol=error)
        assert packed.cache.allocated_bytes() == made.allocated_bytes(view_of(shared(name)), run)


def what_is_handed_on_does_not_outlive_the_pass(name: str) -> None:
    """Keys and values of a pass are let go of by the last layer that reads them."""
    network = shared.__wrapped__(name)
    drive(network, composed("baseline"), ids(25, 1, PROMPT + NEW), uniform())
    handed: list[Handed] = [m.handed for m in network.modules() if isinstance(m, SharingAttention)]
    assert handed
    assert all(each.pair is None for each in handed)


def shapes_are_known_before(name: str) -> None:
    """What is said of donors before a model is changed is what is seen in the changed one."""
    made = composed("cla").transform
    assert isinstance(made, CrossLayer)
    got, want = made.shapes(view_of(model(name))), made.view(shared(name), view_of(model(name)))
    assert [layer.donor for layer in got.layers] == [layer.donor for layer in want.layers] == [None, 0]
