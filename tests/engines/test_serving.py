"""Requests that are served together: their tokens, what is computed of their prompts, and who is next."""

from __future__ import annotations

import pytest

from kvbench.engines.batcher import Batcher
from kvbench.engines.schedulers import DepthFirst, Grouped, LongestMatch, Waiting
from kvbench.types import RunShape
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.serving import MUTANTS
from tests.support import serving
from tests.support.serving import REUSING, SCHEDULERS

EACH = pytest.mark.parametrize("scheduler", SCHEDULERS)
LITTLE = 64  # tokens in the pool: room for two or three requests


@EACH
@pytest.mark.parametrize("kv_tokens", [serving.PLENTY, LITTLE])
def test_every_request_gets_the_tokens_it_gets_alone(scheduler: str, kv_tokens: int) -> None:
    serving.every_request_gets_the_tokens_it_gets_alone(scheduler, kv_tokens=kv_tokens)


@pytest.mark.parametrize("scheduler", ["fcfs", "prefix"])
@pytest.mark.parametrize(
    ("name", "codec", "size"), [("gpt2", "dense", 1), ("llama_mha", "int8", 4), ("llama_gqa", "fp8", 3)]
)
def test_so_it_does_with_other_models_codecs_and_pages(scheduler: str, name: str, codec: str, size: int) -> None:
    serving.every_request_gets_the_tokens_it_gets_alone(scheduler, name=name, codec=codec, size=size, kv_tokens=LITTLE)


@EACH
def test_two_hundred_requests_come_and_go(scheduler: str) -> None:
    serving.two_hundred_requests_come_and_go(scheduler)


@pytest.mark.parametrize("scheduler", REUSING)
def test_prompts_are_computed_once(scheduler: str) -> None:
    serving.prompts_are_computed_once(scheduler)


@pytest.mark.parametrize("scheduler", REUSING)
def test_the_last_token_of_a_prompt_is_always_read(scheduler: str) -> None:
    serving.the_last_token_of_a_prompt_is_always_read(scheduler)


@EACH
def test_nothing_is_saved_where_nothing_is_shared(scheduler: str) -> None:
    serving.nothing_is_saved_where_nothing_is_shared(scheduler)


def test_without_reuse_all_is_computed() -> None:
    serving.without_reuse_all_is_computed()


@pytest.mark.parametrize("scheduler", ["prefix", "lpm", "dfs", "batchllm"])
def test_order_saves_where_memory_is_short(scheduler: str) -> None:
    serving.order_saves_where_memory_is_short(scheduler)


@EACH
def test_a_conversation_goes_on_from_what_was_said(scheduler: str) -> None:
    serving.a_conversation_goes_on_from_what_was_said(scheduler)


@pytest.mark.parametrize("scheduler", ["fcfs", "prefix", "lpm", "dfs", "batchllm"])
def test_nobody_waits_for_ever(scheduler: str) -> None:
    serving.nobody_waits_for_ever(scheduler)


def test_a_request_that_never_fits_is_refused() -> None:
    run = RunShape(prompt_lengths=(10, 3), new_tokens=6)
    with pytest.raises(ValueError, match=r"may have 16 tokens.*engine.kv_tokens=15 is 3 whole pages of 4; raise it"):
        Batcher(pass_tokens=1, max_running=1, kv_tokens=15).pages(run, 4)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Batcher(pass_tokens=0, max_running=1, kv_tokens=0), "engine.pass_tokens must be at least 1; got 0"),
        (lambda: Batcher(pass_tokens=1, max_running=0, kv_tokens=0), "engine.max_running must be at least 1; got 0"),
        (lambda: Batcher(pass_tokens=1, max_running=1, kv_tokens=-4), "engine.kv_tokens must be at least 0; got -4"),
        (lambda: DepthFirst(ageing_per_s=-1.0), "scheduler.ageing_per_s must not be negative; got -1.0"),
        (
            lambda: LongestMatch(ageing_per_s=0.0, most_ordered=0),
            "scheduler.most_ordered must be at least 1; got 0",
        ),
    ],
)
def test_settings_that_make_no_sense(made: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()  # type: ignore[operator]


def _waiting(*prompts: list[int]) -> list[Waiting]:
    return [Waiting(number=n, tokens=list(p), new_tokens=1, waited_s=0.0) for n, p in enumerate(prompts)]


def test_groups_go_depth_first_from_the_earliest() -> None:
    waiting = _waiting([1, 2, 3], [7], [1, 2, 4], [7, 8], [1, 5], [1, 2])
    assert [one.number for one in Grouped().order(waiting, None)] == [5, 0, 2, 4, 1, 3]


@pytest.mark.parametrize("seed", range(6))
def test_groups_save_most(seed: int) -> None:
    serving.groups_save_most(seed)


def test_pools_have_room_for_all_or_as_much_as_is_said() -> None:
    run = RunShape(prompt_lengths=(10, 3), new_tokens=6)
    assert Batcher(pass_tokens=1, max_running=1, kv_tokens=0).pages(run, 4) == 4 + 1 + 3 + 1
    assert Batcher(pass_tokens=1, max_running=1, kv_tokens=19).pages(run, 4) == 4


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(serving) - seen_to_fail(MUTANTS)
