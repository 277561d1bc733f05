"""A decode step that was recorded once says later what an eager one says, or the strategy says why it cannot."""

from __future__ import annotations

import pytest

from kvbench.engines.cuda_graph import CudaGraph
from kvbench.models.view import view_of
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.replaying import MUTANTS
from tests.support import recurrent
from tests.support import replaying as support
from tests.support.models import model
from tests.support.replaying import FILLS, KEEPS, PROMPT
from tests.support.strategies import every, settings, strategy

SUITE = {  # one of each way to decode
    KEEPS: ("attention_sink", "baseline", "d2o", "keydiff", "kivi2", "quantization_8bit"),
    FILLS: ("h2o",),
}
PACKED = ("strategy/codec=kivi2", "codec.residual=8", "codec.key_quantiser.group=4", "codec.value_quantiser.group=4")
CASES = [
    pytest.param(name, budget, marks=() if name in SUITE[budget] else pytest.mark.shipped)
    for name, setting in sorted(settings().items())
    for budget in SUITE
    if not setting.like
]


@pytest.mark.parametrize(("name", "budget"), CASES)
def test_replays_are_eager_steps(name: str, budget: int) -> None:
    made = strategy(name, tokens=budget)
    reason = support.refusal(made, "llama_gqa")
    if reason is not None:
        assert "records a step once" in reason, reason
        pytest.skip(reason)
    support.replays_are_eager_steps(made, "llama_gqa")


@pytest.mark.parametrize(("name", "model_name"), [("attention_sink", "llama_mha"), ("h2o", "gpt2")])
def test_so_they_are_with_learned_positions_and_rows_of_different_lengths(name: str, model_name: str) -> None:
    support.replays_are_eager_steps(strategy(name, tokens=KEEPS), model_name, (PROMPT, PROMPT - 7))


def test_so_they_are_where_layers_keep_a_window() -> None:
    support.replays_are_eager_steps(strategy("baseline"), "gemma3")


def test_steps_after_which_several_leave_or_are_packed_are_a_kind_of_their_own() -> None:
    support.replays_are_eager_steps(strategy("h2o", *every(4), tokens=KEEPS), "llama_gqa")
    support.replays_are_eager_steps(strategy("snapkv", *PACKED, tokens=KEEPS), "llama_gqa", (PROMPT, 9))


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv"])
def test_so_they_are_where_layers_keep_states(name: str) -> None:
    support.states_are_those_of_eager_steps(recurrent.network(name))


def test_so_they_are_where_a_scorer_forgets_old_steps() -> None:
    support.replays_are_eager_steps(strategy("scissorhands", "scorer.history=5", tokens=KEEPS), "llama_gqa")


def test_several_tokens_at_once_are_read_one_by_one() -> None:
    support.a_pass_over_several_tokens_is_those_steps(strategy("h2o", tokens=KEEPS), "llama_gqa")


@pytest.mark.parametrize(
    ("name", "budget", "part"),
    [
        ("think", KEEPS, "strategy/codec=dense, int8 or kivi4"),
        ("offload", KEEPS, "strategy/placement=device"),
        ("minicache", KEEPS, "strategy/layout=separate"),
        ("quest", KEEPS, "strategy/reader=all"),
        ("infllm", KEEPS, "strategy/evicted=drop"),
        ("no_cache", KEEPS, "choose a model= on one device"),
        ("d2o", FILLS, f"leaves room in a budget of {FILLS} entries"),
    ],
)
def test_steps_that_differ_say_what_to_change(name: str, budget: int, part: str) -> None:
    reason = support.refusal(strategy(name, tokens=budget), "llama_gqa")
    assert reason is not None
    assert "records a step once" in reason
    assert part in reason


def test_a_cache_that_grows_is_refused() -> None:
    assert "says its new_tokens" in str(support.refusal(strategy("baseline"), "llama_gqa", new_tokens=None))


def test_a_cache_that_is_full_takes_no_more() -> None:
    support.more_than_was_said_is_refused(strategy("baseline"), "llama_gqa")


def test_what_is_asked_of_a_cache_is_answered() -> None:
    support.what_is_asked_of_a_cache_is_answered(strategy("kivi2", *PACKED[1:], tokens=KEEPS), "llama_gqa")


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_a_cpu_has_no_graphs() -> None:
    reason = CudaGraph(prefill_chunk=0).unsupported(view_of(model("gpt2")))
    assert "set engine=eager or model.device=cuda" in str(reason)
