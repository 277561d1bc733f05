"""Small models made without a download, and folders of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvbench.models.spec import ModelSpec

LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def spec(**changes: Any) -> ModelSpec:
    """Return the specification of a small random Llama."""
    base = ModelSpec(
        name="small",
        path="",
        weights="random",
        hub_id="",
        revision="",
        dtype="float32",
        device="cpu",
        device_map="none",
        architecture=LLAMA,
        matched={},
    )
    return replace(base, **changes)


def checkpoint(folder: Path) -> Path:
    """Save a small Llama without a tokenizer and return its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    arguments = dict(LLAMA)
    config = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
