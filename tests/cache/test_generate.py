"""The cache inside transformers' generate, and our own loop."""

from __future__ import annotations

import pytest

from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support import checks, generation
from tests.support.models import model
from tests.support.strategies import METHODS, strategy


@pytest.mark.parametrize("model", ["llama_mha", "llama_gqa", "mistral", "qwen3", "gemma3", "phi3"])
def test_the_baseline_generates_what_the_stock_cache_does(model: str) -> None:
    generation.baseline_generates_what_the_stock_cache_does(model)


@pytest.mark.parametrize("name", METHODS)
def test_transformers_is_told_not_to_compile_and_to_make_no_masks(name: str) -> None:
    view = view_of(model("gemma3"))
    cache = strategy(name, tokens=12).build(view, RunShape(prompt_lengths=(24,), new_tokens=4))
    assert not cache.is_compileable
    assert cache.is_sliding == [False] * len(view.layers)
    assert [cache.get_mask_sizes(3, layer) for layer in range(len(view.layers))] == [(3, 0)] * len(view.layers)


@pytest.mark.parametrize("name", METHODS)
def test_generate_equals_our_own_loop(name: str) -> None:
    generation.generate_equals_our_loop(name, "llama_gqa")


@pytest.mark.parametrize("name", METHODS)
def test_a_padded_batch_generates_what_its_rows_do_alone(name: str) -> None:
    generation.padded_generate_equals_rows_alone(name, "llama_gqa")


@pytest.mark.parametrize("chunk", [0, 1, 7, 24, 100])
@pytest.mark.parametrize("name", METHODS)
def test_our_loop_returns_the_last_logits_of_each_pass(name: str, chunk: int) -> None:
    generation.engine_feeds_what_it_is_given(name, "llama_gqa", chunk)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_pass_is_the_prompt_where_nobody_says_so(name: str) -> None:
    checks.begin_is_optional(name, "llama_gqa")
