"""Every method, on every kind of model: the generic oracles GO1 to GO11."""

from __future__ import annotations

import pytest

from tests.support import checks, scores, toy
from tests.support.models import NAMES
from tests.support.strategies import EVERY_STEP, LIMITED, METHODS

TWO = ("llama_gqa", "gpt2")  # grouped queries with rotated keys, and neither

each_method = pytest.mark.parametrize("name", METHODS)
each_limited = pytest.mark.parametrize("name", LIMITED)
each_main_model = pytest.mark.parametrize("model", TWO)
two_models = pytest.mark.parametrize("model", TWO)
RANKS_ARE_LEARNED = ("attention_sink", "gpt2")  # the one pair whose positions are no longer the true ones


@pytest.mark.parametrize("model", NAMES)
@each_method
def test_logits_and_kept_positions_equal_dense_attention_under_the_eviction_mask(name: str, model: str) -> None:
    checks.equals_dense_attention_under_its_mask(name, model)


@two_models
@each_method
def test_a_budget_that_fills_while_decoding_equals_its_mask(name: str, model: str) -> None:
    checks.equals_dense_attention_under_its_mask(name, model, prompt=8)


@each_limited
def test_the_smallest_budgets_and_prompts_equal_their_masks(name: str) -> None:
    least = {"random_eviction": 5, "attention_sink": 4, "snapkv": 4}.get(name, 1)
    checks.equals_dense_attention_under_its_mask(name, "llama_gqa", budget=least)
    shortest = 4 if name == "attention_sink" else 1  # rank moves the sinks, which have to be there
    checks.equals_dense_attention_under_its_mask(name, "llama_gqa", prompt=shortest)


@pytest.mark.parametrize("name", [name for name in LIMITED if name != "attention_sink"])
def test_the_other_trigger_equals_its_mask(name: str) -> None:
    flipped = "prefill_end" if name in EVERY_STEP else "every_step"
    checks.equals_dense_attention_under_its_mask(
        name,
        "llama_gqa",
        overrides=(f"strategy/trigger={flipped}",),
        changes=(("every_step", flipped == "every_step"),),
    )


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize(("window", "kernel"), [(1, 1), (3, 5), (6, 7), (12, 3)])
def test_snapkv_equals_its_mask_for_every_window_kernel_and_pooling(window: int, kernel: int, pooling: str) -> None:
    checks.equals_dense_attention_under_its_mask(
        "snapkv",
        "llama_gqa",
        overrides=(f"scorer.window={window}", f"scorer.kernel={kernel}", f"scorer.pooling={pooling}"),
        changes=(("window", window), ("recent", window), ("kernel", kernel), ("pooling", pooling)),
    )


def test_another_seed_draws_other_lots_as_the_reference_says() -> None:
    changes = (("seed", 7),)
    checks.equals_dense_attention_under_its_mask(
        "random_eviction", "llama_gqa", overrides=("scorer.seed=7",), changes=changes
    )


@pytest.mark.parametrize("name", ["h2o", "knorm"])
def test_skipped_layers_keep_everything_under_the_mask(name: str) -> None:
    checks.equals_dense_attention_under_its_mask(
        name, "llama_gqa", overrides=("budget.skip_layers=[0]",), changes=(("skipped", (0,)),)
    )


@pytest.mark.parametrize("name", LIMITED)
def test_sinks_and_recent_entries_of_any_method_equal_their_mask(name: str) -> None:
    recent = 6 if name == "h2o" else 4  # half of twelve is more than four
    checks.equals_dense_attention_under_its_mask(
        name,
        "llama_mha",
        overrides=("selector.num_sink=3", "selector.num_recent=4"),
        changes=(("sinks", 3), ("recent", recent)),
    )


@each_main_model
@each_limited
def test_a_budget_above_the_length_is_the_baseline_bit_for_bit(name: str, model: str) -> None:
    checks.budget_above_length_is_baseline(name, model, by=checks.usual_once)


@pytest.mark.parametrize("model", NAMES)
def test_the_baseline_is_the_stock_model(model: str) -> None:
    checks.baseline_is_the_stock_model(model)


@pytest.mark.parametrize(
    ("name", "model"),
    [(name, model) for name in METHODS for model in TWO if (name, model) != RANKS_ARE_LEARNED],
)
def test_a_model_that_asks_the_cache_gets_true_positions(name: str, model: str) -> None:
    checks.positions_are_true(name, model, by=checks.usual_once)


@pytest.mark.parametrize("budget", [5, 12, 30])
def test_learned_positions_by_rank_are_the_number_of_entries_held(budget: int) -> None:
    checks.learned_positions_are_ranks(budget)


@two_models
@each_method
def test_a_pass_over_many_tokens_equals_one_by_one(name: str, model: str) -> None:
    checks.many_tokens_equal_one_by_one(name, model, by=checks.usual_once)


@pytest.mark.parametrize("model", ["gemma3", "mistral"])
@each_method
def test_sliding_layers_take_many_tokens_and_chunks(name: str, model: str) -> None:
    checks.many_tokens_equal_one_by_one(name, model, by=checks.usual_once)
    checks.chunks_equal_one_shot(name, model, by=checks.usual_once)


@two_models
@each_method
def test_a_chunked_prompt_equals_the_prompt_at_once(name: str, model: str) -> None:
    checks.chunks_equal_one_shot(name, model, by=checks.usual_once)


@pytest.mark.parametrize(
    ("model", "by_ratio", "chunks"),
    [
        ("llama_gqa", False, ()),
        ("llama_gqa", True, (5, 13, 6)),
        ("gpt2", False, ()),
        ("gemma3", True, (5, 13, 6)),
    ],
)
@each_method
def test_rows_of_a_padded_batch_equal_rows_alone(
    name: str, model: str, by_ratio: bool, chunks: tuple[int, ...]
) -> None:
    checks.padded_rows_equal_rows_alone(name, model, by_ratio=by_ratio, chunks=chunks)


@each_method
def test_grouped_queries_equal_repeated_heads_scored_by_the_group_mean(name: str) -> None:
    scores.grouped_heads_equal_repeated_heads(name)


@each_method
def test_a_second_sequence_finds_nothing_of_the_first(name: str) -> None:
    checks.second_sequence_is_fresh(name, "llama_gqa", by=checks.usual_once)


@two_models
@each_limited
def test_protected_entries_are_always_held(name: str, model: str) -> None:
    checks.protected_entries_stay(name, model)


@each_main_model
@pytest.mark.parametrize("name", ["h2o", "tova", "snapkv"])
def test_scores_equal_those_of_eager_attention(name: str, model: str) -> None:
    scores.scores_equal_eager_attention(name, model)


@each_main_model
def test_attention_mass_adds_up_to_the_number_of_queries(model: str) -> None:
    scores.mass_is_conserved(model)


@pytest.mark.parametrize(("name", "overrides", "want"), toy.PROMPT_SETS)
def test_the_worked_example_keeps_its_set(name: str, overrides: tuple[str, ...], want: set[int]) -> None:
    toy.prompt_set_is(want, name, *overrides)


def test_the_worked_example_has_its_scores() -> None:
    toy.mass_is_the_column_sum()
    toy.window_votes_are_pooled()


def test_h2o_accumulates_while_decoding() -> None:
    toy.mass_accumulates_while_decoding()


def test_tova_forgets_earlier_rows_and_may_drop_the_newest() -> None:
    toy.last_query_forgets_earlier_rows()
    toy.newest_may_leave_while_decoding()
    toy.last_query_replaces_while_decoding()


def test_knorm_keeps_small_norms_and_skips_layers() -> None:
    toy.small_norms_stay()
    toy.skipped_layers_keep_everything()
