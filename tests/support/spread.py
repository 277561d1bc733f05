"""A model whose layers are on two devices, here the processor and torch's device without numbers.

An operation on tensors of both is an error, as it is on two GPUs; what layers on the second one say is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kvbench.cache.doors import ATTENTION
from kvbench.cache.kv_cache import KVCache
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import RunShape
from tests.support.strategies import composed

PLACES = tuple(map(torch.device, ("cpu", "cpu", "meta", "meta")))
FEW = ("budget.amount=12", "budget.unit=tokens")
WINDOW = (*FEW, "scorer.window=4", "selector.num_recent=4")
SERVED: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "attention_sink": FEW,
    "h2o": FEW,
    "snapkv": WINDOW,
    "quantization_8bit": (),
    "turboquant4": (),
}


def served(name: str) -> CacheStrategy:
    """Return a method that layers on several devices can have."""
    return composed(name, *SERVED[name])


@contextmanager
def spread(family: str) -> Iterator[PreTrainedModel]:
    """Hold a model of four layers, the second half of them elsewhere, as accelerate's hooks have it."""
    sizes: dict[str, Any] = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1}
    made: Any
    if family == "llama":
        more: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
        made = LlamaForCausalLM(LlamaConfig(**sizes, **more, num_attention_heads=4, num_key_value_heads=2))
        layers, last = made.model.layers, made.model.norm
    else:
        made = GPT2LMHeadModel(GPT2Config(**sizes, n_embd=32, n_layer=4, n_head=4, tie_word_embeddings=False))
        layers, last = made.transformer.h, made.transformer.ln_f
    for module in (*layers[2:], last, made.lm_head):
        module.to("meta").register_forward_pre_hook(_follow, with_kwargs=True)
    made.eval().requires_grad_(False).set_attn_implementation(ATTENTION)
    with torch.no_grad():
        yield made


def _follow(module: nn.Module, arguments: Any, keywords: Any) -> Any:
    return _moved(arguments), {name: _moved(value) for name, value in keywords.items()}


def _moved(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_moved, value))
    return value.to("meta") if isinstance(value, Tensor) else value


def decoded(made: CacheStrategy, family: str) -> KVCache:
    """Return the cache of a method after a padded prompt and some tokens."""
    with spread(family) as model:
        view = view_of(model)
        assert view.places == PLACES
        run = RunShape(prompt_lengths=(24, 20), new_tokens=3)
        arm = Arm(name="strategy", model=model, view=view, strategy=made, engine=Eager(prefill_chunk=0))
        cache = arm.cache(run)
        ids = torch.randint(5, 99, (2, 27), generator=torch.Generator().manual_seed(0))
        arm.prefill(cache, ids[:, :24])
        for at in range(24, 27):
            arm.step(cache, ids[:, at : at + 1])
    return cache


def entries_are_where_their_layer_is(name: str, family: str) -> None:
    """Everything a layer keeps is on its device, and nothing else is asked of any device."""
    cache = decoded(served(name), family)
    assert [{t.device for t in layer.tensors()} for layer in cache.layers] == [{place} for place in PLACES]


def padding_is_counted_on_each_device() -> None:
    """The closed form has the padding twice, as every device is told of it."""
    with spread("llama") as model:
        view, run = view_of(model), RunShape(prompt_lengths=(24, 20), new_tokens=3)
    made = served("baseline")
    found = sum(t.nbytes for t in made.build(view, run).tensors())
    assert made.allocated_bytes(view, run) == found
