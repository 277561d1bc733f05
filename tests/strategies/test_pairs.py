"""MiniCache: two layers that share directions, against dense attention to what these stand for."""

from __future__ import annotations

import pytest
import torch

from kvbench.configuration import ConfigError
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.pairs import MUTANTS
from tests.support import checks, pairs
from tests.support.checks import NEW, PROMPT, uniform
from tests.support.models import MAIN, model
from tests.support.restored import deep_model
from tests.support.strategies import composed, strategy

ORACLES = (
    pairs.equals_attention_to_what_is_restored,
    pairs.direction_lies_between,
    pairs.lengths_are_kept,
    pairs.identical_layers_are_restored,
    pairs.retained_tokens_are_exact,
    pairs.merging_commutes_with_rotation,
    pairs.scaled_tiles_equal_dense,
    pairs.retaining_everything_is_the_baseline,
    pairs.bytes_of_a_pair,
    pairs.bytes_are_the_papers,
    pairs.nothing_is_restored,
    pairs.pairs_are_neighbours,
)


def test_shared_direction_lies_between_both() -> None:
    pairs.direction_lies_between()


def test_lengths_are_kept() -> None:
    pairs.lengths_are_kept()


def test_identical_layers_are_restored() -> None:
    pairs.identical_layers_are_restored()


@pytest.mark.parametrize("lengths", [(41, 41), (41, 23)])
def test_retained_tokens_are_exact(lengths: tuple[int, ...]) -> None:
    pairs.retained_tokens_are_exact(lengths)


def test_merging_commutes_with_rotation() -> None:
    pairs.merging_commutes_with_rotation()


def test_scaled_tiles_equal_dense() -> None:
    pairs.scaled_tiles_equal_dense()


@pytest.mark.parametrize("lengths", [(PROMPT,), (17, PROMPT, 9)])
@pytest.mark.parametrize("name", MAIN)
def test_minicache_equals_dense_attention_to_what_it_restores(name: str, lengths: tuple[int, ...]) -> None:
    pairs.equals_attention_to_what_is_restored(name, lengths=lengths)


@pytest.mark.parametrize(
    "overrides",
    [
        ("layout.granularity=token",),
        ("layout.num_sink=5",),
        ("layout.retained_share=0.0",),
        ("layout.blend=0.0",),
        ("layout.granularity=token", "layout.num_sink=5", "layout.blend=0.3", "layout.retained_share=0.4"),
    ],
)
def test_other_ways_of_merging_are_what_they_say(overrides: tuple[str, ...]) -> None:
    pairs.equals_attention_to_what_is_restored("llama_gqa", lengths=(17, PROMPT), overrides=overrides)


@pytest.mark.parametrize(("start", "lower"), [("0.5", (2,)), ("0.0", (0, 2)), ("0.2", (1, 3))])
def test_pairs_in_a_deeper_model(start: str, lower: tuple[int, ...]) -> None:
    pairs.equals_attention_to_what_is_restored("deep", overrides=(f"layout.start={start}",), lower=lower)


def test_pairs_are_neighbours() -> None:
    pairs.pairs_are_neighbours()


@pytest.mark.parametrize("name", MAIN)
def test_retaining_everything_is_the_baseline(name: str) -> None:
    pairs.retaining_everything_is_the_baseline(name)


@pytest.mark.parametrize("name", MAIN)
def test_bytes_of_a_pair_follow_their_formula(name: str) -> None:
    pairs.bytes_of_a_pair(name)
    pairs.bytes_of_a_pair(name, (17, PROMPT, 9), torch.bfloat16)
    pairs.bytes_of_a_pair(name, (17, PROMPT), torch.float32, "token")


def test_bytes_of_a_pair_are_the_papers() -> None:
    pairs.bytes_are_the_papers()


def test_nothing_is_restored() -> None:
    pairs.nothing_is_restored()


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_several_tokens_a_prompt_in_pieces_and_a_second_sequence_change_nothing(name: str) -> None:
    checks.many_tokens_equal_one_by_one("minicache", name)
    checks.chunks_equal_one_shot("minicache", name)
    checks.second_sequence_is_fresh("minicache", name)
    checks.growing_equals_fixed("minicache", name)
    checks.restore_is_exact("minicache", name)
    checks.restore_is_exact("minicache", name, (17, PROMPT), None)


def test_minicache_says_what_it_saves() -> None:
    made, base = composed("minicache"), composed("baseline")
    assert (made.saving, made.fidelity) == ("physical", "lossy_training_free")
    run = RunShape(prompt_lengths=(512,), new_tokens=1)
    view = view_of(deep_model())
    assert made.allocated_bytes(view, run) < base.allocated_bytes(view, run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("layout.start=1.0",), "a fraction of the depth, at least 0 and below 1; got 1.0"),
        (("layout.start_unit=layers",), "must be a whole number of at least 0; got 0.5"),
        (("layout.start_unit=tokens",), "strategy.layout.start_unit cannot be"),
        (("layout.blend=1.1",), "blend and retained_share between 0 and 1 and num_sink >= 0; got blend=1.1"),
        (("layout.retained_share=-0.1",), "got blend=0.6, retained_share=-0.1"),
        (("layout.num_sink=-1",), "num_sink=-1"),
        (("layout.granularity=layer",), "strategy.layout.granularity cannot be"),
        (("strategy/budget=uniform",), "strategy/layout=paired needs both layers of a pair to hold"),
        (("strategy/reader=pages",), "strategy/layout=paired needs both layers of a pair to hold"),
    ],
)
def test_settings_that_mean_nothing_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed("minicache", *overrides)


def test_units_and_granularities_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy\.layout\.start_unit must be ratio or layers; got 'tokens'"):
        pairs.paired(start_unit="tokens")
    with pytest.raises(ValueError, match=r"strategy\.layout\.granularity must be head or token; got 'layer'"):
        pairs.paired(granularity="layer")


def test_models_that_cannot_be_merged_are_refused() -> None:
    run = uniform()
    made = strategy("minicache")
    with pytest.raises(ValueError, match="layer 0 sees 8 tokens"):
        made.build(view_of(model("gemma3")), run)
    with pytest.raises(ValueError, match="no two of 2 layers are left to merge"):
        strategy("minicache", "layout.start=0.5").build(view_of(model("gpt2")), run)
    assert made.unsupported(view_of(deep_model()), run) is None
    assert made.used_bytes(view_of(deep_model()), run, PROMPT + NEW) > 0


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(MUTANTS) == set()
