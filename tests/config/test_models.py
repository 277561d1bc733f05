"""Random weights have the true architecture: the number of parameters is the published one."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from omegaconf import OmegaConf

from kvbench.cli.catalogue import catalogue
from kvbench.configuration import check, compose
from kvbench.models.load import config_of
from kvbench.models.spec import ModelSpec
from tests.support import family

PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt2-16k": 124_439_808 + (16_384 - 1_024) * 768,  # the same with more positions
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama8": 2 * 32_000 * 512 + 8 * (4 * 512 * 512 + 3 * 512 * 1_536 + 2 * 512) + 512,
    "mistral-7b": 7_248_023_552,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini": 3_821_079_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "mamba-130m": 129_135_360,
    "mamba-370m": 371_516_416,
    "mamba-790m": 793_204_224,
    "mamba-1.4b": 1_372_178_432,
    "mamba2-130m": 128_989_632,
    "mamba2-370m": 368_346_624,
    "rwkv-4-169m": 169_342_464,
    "rwkv-4-430m": 430_397_440,
    "rwkv-4-1b5": 1_515_106_304,
}
MODELS = list(dict(catalogue())["model"])
SHAPES = {  # layers, query heads, KV heads, positions
    "gpt2-large": (36, 20, 20, 1_024),
    "llama8": (8, 8, 8, 16_384),
    "llama-3.1-8b": (32, 32, 8, 131_072),
    "qwen2.5-7b": (28, 28, 4, 131_072),
    "gemma-3-1b": (26, 4, 1, 32_768),
    "phi-3-mini": (32, 32, 32, 4_096),
}


def spec(name: str) -> ModelSpec:
    return check(compose([f"model={name}"])).model


def parameters(model: ModelSpec) -> int:
    """Return how many numbers a model has, without making any of them."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config_of(model))
    return sum(parameter.numel() for parameter in built.parameters())


def check_parameters(model: ModelSpec, want: int) -> None:
    assert parameters(model) == want


def test_every_model_with_an_architecture_has_a_known_size() -> None:
    embedded = {"tiny", *(f"tiny-{member}" for member in family.shipped())}  # whose sizes are their cards'
    assert set(PARAMETERS) == set(MODELS) - embedded


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    check_parameters(spec(name), PARAMETERS[name])


def test_the_count_catches_an_architecture_without_grouped_heads() -> None:
    true = spec("llama-3.2-1b")
    wrong = replace(true, architecture={**true.architecture, "num_key_value_heads": 32})
    with pytest.raises(AssertionError):
        check_parameters(wrong, PARAMETERS["llama-3.2-1b"])


@pytest.mark.parametrize("name", SHAPES)
def test_heads_layers_and_positions_are_the_published_ones(name: str) -> None:
    config = config_of(spec(name))
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    got = (config.num_hidden_layers, config.num_attention_heads, kv_heads, config.max_position_embeddings)
    assert got == SHAPES[name]


def test_windows_are_where_the_published_models_have_them() -> None:
    gemma, phi, mistral = (config_of(spec(name)) for name in ("gemma-3-1b", "phi-3-mini", "mistral-7b"))
    assert [kind == "full_attention" for kind in gemma.layer_types] == [layer % 6 == 5 for layer in range(26)]
    assert (gemma.sliding_window, phi.sliding_window, mistral.sliding_window) == (512, 2047, None)


def test_every_model_is_called_what_its_file_is_called_and_matched_models_exist() -> None:
    for name in MODELS:
        says = OmegaConf.load(str(files("kvbench.conf") / "model" / f"{name}.yaml"))
        assert says.name == name
        assert set(says.matched.values()) <= {"", *MODELS}
