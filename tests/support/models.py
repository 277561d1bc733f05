"""Small random models in float64, query and key weights scaled: unscaled random attention is nearly uniform."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.transform.base import Transform

MAIN = ("llama_mha", "llama_gqa", "gpt2")
OTHERS = ("mistral", "qwen3", "gemma3", "phi3")
NAMES = MAIN + OTHERS

VOCABULARY = 199
HEADS, WIDTH, LAYERS = 4, 8, 2
QUERY_KEY_SCALE = 16.0
VALUE_SCALE = 4.0


@functools.cache
def model(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return the model of that name, the same object every time; `attention` switches what it attends with."""
    before = torch.random.get_rng_state()
    torch.manual_seed(sum(map(ord, name)))
    made: Any = _MAKERS[name]().double().eval().requires_grad_(False)
    _scale(made)
    torch.random.set_rng_state(before)
    if hasattr(made.base_model, "rotary_emb"):
        made.base_model.rotary_emb = ExactRotary(made.base_model.rotary_emb, made.config)
    made.to(dtype=dtype)
    network: PreTrainedModel = made
    return network


class ExactRotary(nn.Module):
    """RoPE in float64: transformers rounds angles to float32, which would hide errors of 1e-7."""

    def __init__(self, original: nn.Module, config: Any) -> None:
        super().__init__()
        for name, _ in original.named_buffers():
            kind = name.removesuffix("inv_freq").removesuffix("_") or None
            if kind is None or not kind.endswith("original"):
                self.register_buffer(name, inverse_frequency(config, kind), persistent=False)

    def forward(self, hidden: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [B, T, rotary_dim]."""
        frequency = getattr(self, "inv_freq" if layer_type is None else f"{layer_type}_inv_freq")
        angle = (position_ids[..., None] * frequency).repeat(1, 1, 2)
        return angle.cos().to(hidden.dtype), angle.sin().to(hidden.dtype)


def inverse_frequency(config: Any, kind: str | None) -> Tensor:
    """Return RoPE's inverse frequencies [rotary_dim / 2] of a kind of layer, straight from its formula."""
    parameters = config.rope_parameters if kind is None else config.rope_parameters[kind]
    rotary_dim = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
    return torch.tensor(
        [parameters["rope_theta"] ** (-2 * i / rotary_dim) for i in range(rotary_dim // 2)], dtype=torch.float64
    )


def ids(seed: int, rows: int, tokens: int) -> Tensor:
    """Return token ids [rows, tokens] that differ within a row; never 0, which stands for padding.

    A token met twice has keys of the same norm in the first layer, and rounding then decides which one leaves.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(VOCABULARY - 1, generator=generator)[:tokens] + 1 for _ in range(rows)])


def model_for(made: CacheStrategy, name: str) -> PreTrainedModel:
    """Return the model of that name as a strategy needs it, the same object every time.

    Networks that change in nothing but their weights stay as they are: here it is the cache that is looked at.
    """
    return _changed(made.transform, name) if made.transform.changes_heads else model(name)


@functools.cache
def _changed(transform: Transform, name: str) -> PreTrainedModel:
    return cast("PreTrainedModel", transform.prepare(model(name)))


@contextlib.contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[PreTrainedModel]:
    """Switch the attention function of a model for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


def _sizes(**more: Any) -> dict[str, Any]:
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HEADS * WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": WIDTH,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return common | more


def _gpt2() -> PreTrainedModel:
    sizes: dict[str, Any] = {"n_embd": HEADS * WIDTH, "n_head": HEADS, "n_layer": LAYERS, "n_positions": 512}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **sizes))


def _gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**_sizes(sliding_window=8, layer_types=kinds, query_pre_attn_scalar=WIDTH))
    )


_MAKERS: Mapping[str, Callable[[], Any]] = {
    "llama_mha": lambda: LlamaForCausalLM(LlamaConfig(**_sizes(num_key_value_heads=HEADS))),
    "llama_gqa": lambda: LlamaForCausalLM(LlamaConfig(**_sizes())),
    "llama_deep": lambda: LlamaForCausalLM(LlamaConfig(**_sizes(num_hidden_layers=2 * LAYERS))),
    "gpt2": _gpt2,
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_sizes(sliding_window=10))),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_sizes())),
    "gemma3": _gemma3,
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_sizes(partial_rotary_factor=0.5))),
}


def _scale(model: PreTrainedModel) -> None:
    """Make attention peaked and what is attended to matter; models that normalise q and k get uneven norms."""
    for name, weight in model.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            weight.add_(torch.rand_like(weight))
        elif "q_proj" in name or "k_proj" in name:
            weight.mul_(QUERY_KEY_SCALE)
        elif "qkv_proj.weight" in name:  # rows: queries, keys, values
            weight[: -2 * WIDTH].mul_(QUERY_KEY_SCALE)
        elif "c_attn.weight" in name:  # columns: queries, keys, values
            weight[:, : 2 * HEADS * WIDTH].mul_(QUERY_KEY_SCALE)
        elif "v_proj" in name or "o_proj" in name or "attn.c_proj" in name:
            weight.mul_(VALUE_SCALE)
