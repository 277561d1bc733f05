"""Variants of transformers' own engine: their tokens, their bytes, what they compile, what they are refused with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch._dynamo.utils import counters

from kvbench.engines import continuous
from kvbench.engines.stock import Stock
from kvbench.models.load import Loaded
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.mutants import variants as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.support import variants
from tests.support.black_boxes import box
from tests.support.models import NAMES, model
from tests.support.variants import NEW, PROMPT, ROWS, of_variant

UNCOMPILED = ("dynamic", "static", "continuous")
each_variant = pytest.mark.parametrize("variant", UNCOMPILED)


IN_TURN = [  # of three variants the suite puts one to each model; `make shipped` the others as well
    pytest.param(variant, name, marks=() if (at + number) % len(UNCOMPILED) == 0 else pytest.mark.shipped)
    for number, name in enumerate(NAMES)
    for at, variant in enumerate(UNCOMPILED)
]


@pytest.mark.parametrize(("variant", "name"), IN_TURN)
def test_every_variant_generates_what_the_logits_say(variant: str, name: str) -> None:
    variants.the_tokens_are_those_of_generate(variant, name)


@each_variant
def test_a_row_is_as_long_as_was_asked_whatever_comes(variant: str) -> None:
    variants.no_token_ends_a_row_or_is_kept_from_coming(variant)


@each_variant
def test_nothing_is_read_twice_and_nothing_is_left_from_before(variant: str) -> None:
    variants.every_round_reads_all_rows_at_once_from_the_start(variant)


@pytest.mark.parametrize(
    "oracle",
    [variants.a_step_ends_with_its_last_row, variants.tokens_are_equal_up_to_the_first_that_differs_in_any_row],
)
def test_what_is_worked_out_by_hand_is_what_is_said(oracle: Check) -> None:
    oracle()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert oracles_in(variants) == seen_to_fail(mutants.MUTANTS)


@pytest.mark.shipped
def test_decoding_is_compiled_once_and_says_the_same() -> None:
    run = RunShape(prompt_lengths=(24, 24), new_tokens=6)
    expected = of_variant("static", run=run)
    counters.clear()
    made = of_variant("compiled", times=3, run=run)
    assert torch.equal(made.tokens, expected.tokens)
    assert made.cache_bytes == expected.cache_bytes
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_prompt_longer_than_a_pass_is_cut_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = of_variant("continuous").tokens
    monkeypatch.setattr(continuous, "MOST_TOKENS", 100)
    assert torch.equal(of_variant("continuous").tokens, expected)


def test_bytes_are_those_of_a_hand_count() -> None:
    one = 2 * 2 * 2 * 8 * 4  # of a token: layers x (keys, values) x heads x width x bytes
    made = {variant: of_variant(variant, times=1) for variant in UNCOMPILED}
    held = ROWS * (PROMPT + NEW - 1) * one  # the last new token is never written
    counters_of_layers = 2 * 8
    pages = (ROWS * 2 + 2) * 256  # of 256 tokens, two for each row, and two that belong to none
    assert {variant: (one.cache_bytes, one.used_bytes) for variant, one in made.items()} == {
        "dynamic": (held, held),
        "static": (held + counters_of_layers, held + counters_of_layers),
        "continuous": (pages * one, None),
    }
    assert all(len(one.step_ns) == NEW and min(one.step_ns) > 0 for one in made.values())


def test_a_static_cache_is_refused_where_layers_share_keys() -> None:
    network: Any = model("llama_gqa")
    view = view_of(network)
    sharing = replace(view, layers=(view.layers[0], replace(view.layers[1], donor=0)))
    loaded = Loaded(model=network, tokenizer=None, view=view, weights="random", revision="")
    for variant in get_args(get_type_hints(Stock)["variant"]):
        engine = Stock(variant=variant, attention="sdpa")
        assert engine.unsupported(loaded) is None
        said = engine.unsupported(replace(loaded, view=sharing))
        assert (said is not None) == (variant in ("static", "compiled"))
        assert said is None or said.endswith("set engine.variant=dynamic")


@pytest.mark.parametrize("name", ["hf_quanto", "hf_fp8", "hf_offloaded_static"])
@pytest.mark.parametrize("variant", ["static", "compiled", "continuous"])
def test_a_named_cache_is_refused_beside_a_variants_own(name: str, variant: str) -> None:
    Stock(variant="dynamic", attention="sdpa").check(box(name))
    engine = Stock(variant=variant, attention="sdpa")  # type: ignore[arg-type]
    engine.check(box("transformers"))
    with pytest.raises(ValueError, match=rf"engine\.variant={variant} has a cache .* set engine\.variant=dynamic or"):
        engine.check(box(name))
