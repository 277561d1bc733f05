"""Recurrent networks: what they say, and the states that a cache keeps of them."""

from __future__ import annotations

import pytest
import torch

from kvbench.models.view import view_of
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.recurrent import MUTANTS
from tests.support import recurrent
from tests.support.checks import uniform
from tests.support.models import model
from tests.support.strategies import composed

each_network = pytest.mark.parametrize("name", recurrent.NAMES)


@each_network
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_many_tokens_at_once_equal_a_loop_over_time(name: str, tokens: int) -> None:
    recurrent.chunks_equal_a_loop(name, tokens)


def test_large_keys_do_not_overflow() -> None:
    recurrent.large_keys_do_not_overflow()


@each_network
def test_logits_are_those_of_transformers(name: str) -> None:
    recurrent.equals_transformers(name)


@each_network
def test_checkpoints_of_transformers_are_loaded(name: str) -> None:
    recurrent.checkpoints_of_transformers_are_loaded(name)


@each_network
def test_step_by_step_equals_the_full_forward(name: str) -> None:
    recurrent.steps_equal_the_full_forward(name)
    recurrent.steps_equal_the_full_forward(name, chunks=(1, 13, 2, 8), steps=(5, 1, 4, 2))


@each_network
def test_state_bytes_do_not_depend_on_the_context(name: str) -> None:
    recurrent.bytes_are_the_closed_form(name)
    recurrent.bytes_are_the_closed_form(name, torch.bfloat16)


@each_network
def test_restore_goes_back_exactly(name: str) -> None:
    recurrent.restore_is_exact(name)


@each_network
def test_rows_of_a_padded_batch_equal_rows_alone(name: str) -> None:
    recurrent.padded_rows_equal_rows_alone(name)
    recurrent.padded_rows_equal_rows_alone(name, chunks=(4, 9, 11))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("h2o", "use strategy/budget=all"),
        ("duoattention", "use strategy/budget=all"),
        ("kivi2", "use strategy/codec=dense"),
        ("quest", "use strategy/reader=all"),
        ("minicache", "use strategy/layout=separate"),
        ("offload", "use strategy/placement=device"),
        ("gqa", "use strategy/transform=none"),
        ("cla", "use strategy/transform=none"),
        ("matched", "use strategy/transform=none"),
        ("smoothquant", "and strategy/transform=none"),
    ],
)
def test_what_is_about_keys_and_values_is_refused(name: str, want: str) -> None:
    reason = composed(name).unsupported(view_of(recurrent.network("mamba")), uniform())
    assert reason is not None
    assert want in reason


def test_a_cache_of_transformers_is_refused() -> None:
    for name in ("transformers", "vllm", "hf_fp8"):
        reason = composed(name).cannot_change(view_of(recurrent.network("rwkv")))
        assert reason is not None
        assert "use strategy=baseline" in reason
        assert composed(name).cannot_change(view_of(model("llama_gqa"))) is None


@each_network
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"attention_mask": torch.tensor([[0, 1, 1]])},
            r"does not take a mask of padding: build a cache with RunShape",
        ),
        (
            {"cache_params": object()},
            r"does not take \['cache_params'\]: .* decode in a loop",
        ),
    ],
)
def test_what_would_be_passed_over_is_refused(name: str, keywords: dict[str, object], message: str) -> None:
    network, tokens = recurrent.network(name), torch.tensor([[1, 2, 3]])
    assert network(tokens, attention_mask=torch.ones(1, 3)).logits.shape == (1, 3, 199)
    with pytest.raises(ValueError, match=message):
        network(tokens, **keywords)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(recurrent) - {recurrent.few_at_once} - seen_to_fail(MUTANTS)
