"""What must hold of the moments of the tests' random models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.codecs.moments import ABOUT, find
from kvbench.calibration import watching
from kvbench.models.view import view_of
from tests.support.measured import SOURCE, folder, measured
from tests.support.models import attention, model


def where() -> str:
    """Return the override that names the folder."""
    return f"codec.moments='{folder('moments')}'"


@contextmanager
def asked(network: PreTrainedModel) -> Iterator[list[list[Tensor]]]:
    """Yield what becomes the queries of every pass, layer by layer [T, H, D], before they are rotated."""
    view = view_of(network)
    found: list[list[Tensor]] = [[] for _ in view.layers]
    handles = []
    for layer, (norm, shape) in enumerate(zip(view.norms[::2], view.layers, strict=True)):
        block: Any = network.get_submodule(norm.norm.rpartition(".")[0])
        made = block.attn.c_attn if hasattr(block, "attn") else block.self_attn.q_proj
        size = (shape.query_heads, shape.key_dim)

        def note(*seen: Any, layer: int = layer, size: tuple[int, int] = size) -> None:
            found[layer].append(seen[-1][0][:, : size[0] * size[1]].unflatten(1, size))

        handles.append(made.register_forward_hook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def moments_are_those_of_the_numbers(network: PreTrainedModel) -> None:
    """Moments are means of products of what weights make of hidden states, and gradients those of nudged biases."""
    view, found = view_of(network), measured("moments", network, samples=2, tokens=12)
    inputs: dict[int, list[Tensor]] = {}
    norms = [network.get_submodule(norm.norm) for norm in view.norms[::2]]
    handles = [
        norm.register_forward_hook(lambda *seen, at=at: inputs.setdefault(at, []).append(seen[-1][0]))
        for at, norm in enumerate(norms)
    ]
    texts = [torch.tensor([window]) for window in SOURCE.windows(2, 12)]
    with attention(network, "eager"), asked(network) as queries:
        kept = [network(text, use_cache=True).past_key_values for text in texts]
    for handle in handles:
        handle.remove()
    for layer, shape in enumerate(view.layers):
        rows = torch.cat(inputs[layer])
        for got, made in ((found.keys, shape.key_projection), (found.values, shape.value_projection)):
            assert made is not None
            made_here = rows @ made.weight.flatten(0, 1).mT
            torch.testing.assert_close(got[layer], (made_here.mT @ made_here / 24)[None].float(), rtol=1e-5, atol=1e-6)
        mine = torch.cat(queries[layer]).unflatten(1, (shape.kv_heads, -1))  # [N, G, H / G, D]
        want = torch.einsum("ngsd,ngse->gde", mine, mine) / mine.shape[2] / 24
        torch.testing.assert_close(found.queries[layer], want.float(), rtol=1e-5, atol=1e-6)
        keys = torch.stack([each.layers[layer].keys[0].abs().amax(dim=1) for each in kept]).amax(dim=0)
        torch.testing.assert_close(found.largest[layer], keys.float())


def gradients_are_those_of_nudges(network: PreTrainedModel) -> None:
    """A layer's squared gradients are those of the loss by what is added to its keys or values, channel by channel."""
    found = measured("moments", network, samples=1, tokens=3)
    ids = torch.tensor(SOURCE.windows(1, 3))

    def loss(layer: int, side: int, at: tuple[int, int, int], by: float) -> float:
        def watch(index: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> None:
            if index == layer:
                (key, value)[side][0][at] += by

        logits = watching.forward(network, ids, watch).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="sum"))

    with attention(network, watching.ATTENTION):
        for layer, shape in enumerate(view_of(network).layers):
            for side in (0, 1):
                total = 0.0
                for head in range(shape.kv_heads):
                    for token in range(3):
                        for channel in range(shape.key_dim):
                            at = (head, token, channel)
                            slope = (loss(layer, side, at, 1e-4) - loss(layer, side, at, -1e-4)) / 2e-4
                            total += slope**2
                assert abs(total / 3 / float(found.gradients[layer][side]) - 1) < 1e-3


def moments_are_kept_as_they_are() -> None:
    """What is written is what is read, and what it was measured on."""
    view = view_of(model("llama_mha"))
    made, found = measured("moments", model("llama_mha"), samples=4, tokens=40), find(str(folder("moments")), view)
    assert found is not None
    assert {name: getattr(found, name) for name in ABOUT} == {name: getattr(made, name) for name in ABOUT}
    assert found.tensors().keys() == made.tensors().keys()
    for name, tensor in made.tensors().items():
        torch.testing.assert_close(found.tensors()[name], tensor)
    assert len(found.drawn()) == len(view.layers)
