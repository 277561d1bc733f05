"""Quest: what is read of what is held, against loops over pages."""

from __future__ import annotations

import pytest
import torch

from kvbench.configuration import ConfigError
from kvbench.models.view import view_of
from kvbench.strategies.reader.pages import ReadPages
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.readers import MUTANTS, SNAPKV
from tests.support import checks, readers
from tests.support.checks import NEW, PROMPT, uniform
from tests.support.models import MAIN, model
from tests.support.strategies import composed, strategy

ORACLES = (
    readers.worked_pages,
    readers.bounds_hold,
    readers.planted_key_is_read,
    readers.equals_loops_over_pages,
    readers.single_entries_are_exact_top_k,
    readers.reading_everything_is_the_baseline,
    readers.a_restored_cache_forgets_what_followed,
    readers.bytes_of_pages,
    readers.a_step_waits_for_nothing,
    readers.pages_are_counted_exactly,
)


def test_worked_pages_are_chosen_by_their_bounds() -> None:
    readers.worked_pages()


def test_bounds_are_never_below_a_logit() -> None:
    readers.bounds_hold()


def test_a_planted_key_is_read() -> None:
    readers.planted_key_is_read()


@pytest.mark.parametrize("size", [1, 3, 4, 16])
@pytest.mark.parametrize("name", MAIN)
def test_quest_equals_plain_loops_over_pages(name: str, size: int) -> None:
    most = max(1, 9 // size)
    readers.equals_loops_over_pages(name, overrides=(f"reader.size={size}",), size=size, most=(most,))


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_skipped_layers_read_everything(name: str) -> None:
    readers.equals_loops_over_pages(name, overrides=("reader.skip_layers=[0]",), skipped=(0,))


@pytest.mark.parametrize("name", MAIN)
def test_padded_rows_read_the_pages_they_read_alone(name: str) -> None:
    readers.equals_loops_over_pages(name, lengths=(17, PROMPT, 10), most=(3, 3, 3))


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_a_share_of_the_prompt_is_each_rows_own(name: str) -> None:
    overrides = ("reader.unit=ratio", "reader.amount=0.5")
    readers.equals_loops_over_pages(name, lengths=(17, PROMPT), overrides=overrides, most=(2, 4), new=8)


@pytest.mark.parametrize("lengths", [(PROMPT,), (PROMPT, 18)])
@pytest.mark.parametrize("name", ["snapkv", "adakv"])
def test_pages_of_survivors_are_read(name: str, lengths: tuple[int, ...]) -> None:
    most = (2,) * len(lengths)
    readers.equals_loops_over_pages("llama_gqa", name=name, overrides=SNAPKV, lengths=lengths, most=most)


@pytest.mark.parametrize("name", MAIN)
def test_pages_of_one_entry_are_exact_top_k(name: str) -> None:
    readers.single_entries_are_exact_top_k(name)


@pytest.mark.parametrize("name", MAIN)
def test_reading_everything_is_the_baseline(name: str) -> None:
    readers.reading_everything_is_the_baseline(name)


@pytest.mark.parametrize("lengths", [(PROMPT, PROMPT), (17, PROMPT)])
def test_a_restored_cache_forgets_what_followed(lengths: tuple[int, ...]) -> None:
    readers.a_restored_cache_forgets_what_followed(lengths)
    checks.restore_is_exact("quest", "llama_gqa", lengths)


@pytest.mark.parametrize("name", MAIN)
def test_bytes_follow_their_formula(name: str) -> None:
    readers.bytes_of_pages(name)
    readers.bytes_of_pages(name, (17, PROMPT), torch.bfloat16)
    readers.bytes_of_pages(
        name, (12, PROMPT), torch.float32, overrides=("reader.unit=ratio", "reader.amount=0.5"), most=(2, 4)
    )


def test_pages_are_counted_exactly() -> None:
    readers.pages_are_counted_exactly()


@pytest.mark.parametrize("lengths", [(PROMPT, PROMPT), (17, PROMPT)])
def test_a_step_waits_for_nothing(lengths: tuple[int, ...]) -> None:
    readers.a_step_waits_for_nothing(lengths)


def test_several_tokens_a_prompt_in_pieces_and_a_second_sequence_change_nothing() -> None:
    checks.many_tokens_equal_one_by_one("quest", "llama_gqa")
    checks.chunks_equal_one_shot("quest", "llama_gqa")
    checks.second_sequence_is_fresh("quest", "gpt2")
    checks.growing_equals_fixed("quest", "llama_gqa")


def test_quest_saves_no_memory_and_says_so() -> None:
    made, base = composed("quest"), composed("baseline")
    view, run = view_of(model("llama_gqa")), uniform()
    assert (made.saving, made.fidelity) == ("none", "lossy_training_free")
    assert (base.saving, base.fidelity) == ("none", "exact")
    assert strategy("quest").allocated_bytes(view, run) > base.allocated_bytes(view, run)


def test_sliding_layers_read_their_window() -> None:
    run = uniform()
    plans = strategy("quest").plans(view_of(model("gemma3")), run)
    assert [plan.paging is None for plan in plans] == [True, False]
    assert [plan.held(run, PROMPT + NEW) for plan in plans] == [(7,), (PROMPT + NEW,)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("reader.amount=0",), "strategy.reader.amount with strategy.reader.unit=ratio is the fraction read"),
        (("reader.amount=1.5",), "got 1.5. For a number of entries set strategy.reader.unit=tokens"),
        (("reader.unit=tokens", "reader.amount=2.5"), "must be a whole number of at least 1; got 2.5"),
        (("reader.unit=bytes",), "strategy.reader.unit cannot be"),
        (("reader.size=0",), "must be at least 1; got size=0, least_pages=3"),
        (("reader.least_pages=0",), "must be at least 1; got size=16, least_pages=0"),
        (("strategy/budget=uniform", "strategy/trigger=every_step"), "the bounds of a page are never narrowed"),
        (
            ("strategy/budget=uniform", "strategy/evicted=summary"),
            "knows nothing of entries that stand for many tokens",
        ),
        (("strategy/budget=uniform", "budget.unit=bytes", "budget.amount=9999"), "unit=bytes does not count"),
    ],
)
def test_settings_that_mean_nothing_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed("quest", *overrides)


def test_units_and_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy\.reader\.unit must be ratio or tokens; got 'bytes'"):
        ReadPages(size=1, amount=1.0, unit="bytes", least_pages=1, skip_layers=())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"strategy\.reader\.skip_layers=\[2\]: the model has layers 0 to 1"):
        strategy("quest", "reader.skip_layers=[2]").plans(view_of(model("gpt2")), uniform())


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(MUTANTS) == set()
