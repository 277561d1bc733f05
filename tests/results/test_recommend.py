"""What is recommended was measured, keeps to the limits, and says what nobody knows."""

from __future__ import annotations

import json
from functools import cache
from io import StringIO
from math import inf, nan
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from kvbench.results.advice import print_recommendation, sentence
from kvbench.results.candidates import Wanted
from kvbench.results.cells import Row
from kvbench.results.recommend import recommend
from tests.mutants import results_recommend as mutants
from tests.mutants.results_recommend import Advise
from tests.results.factory import MIB, baseline, failed, frame, row, without_quality

KNOWN = {"weights_bytes": 10 * MIB, "nll_delta_low": 0.0, "ratio_low": 0.5}


def measured(name: str, **values: object) -> list[dict[str, object]]:
    """Return a run that takes 10 MiB of weights and 20 at its peak, loses 0.01 nats and takes half the time."""
    numbers = {
        "peak_bytes": 20 * MIB,
        "nll_delta_nats": 0.005,
        "nll_delta_high": 0.01,
        "ratio": 0.55,
        "ratio_high": 0.6,
    }
    config = json.dumps({"strategy": {"of": name}, "engine": {}, "quality": {"context_tokens": 512}})
    return [row(name, **{"config_json": config, **KNOWN, **numbers, **values})]


def wanted(**values: Any) -> Wanted:
    limits: dict[str, Any] = {"memory": 40.0 * MIB, "loss": 0.02, "context": 1024, "batch": 1, "slowdown": 1.1}
    return Wanted(**{**limits, "query_aware": False, "prefer": "speed", **values})


def tokens_in_kib(row: Row, context: int, batch: int) -> int | str:
    """A closed form: 9 KiB to a token."""
    return context * batch * 9 * 2**10


def names(candidates: Any) -> list[str]:
    return [one.name.split()[0] for one in candidates]


@cache
def at_the_limits() -> pd.DataFrame:
    """Return a run at every limit, and others of which one number is too much, or does not count."""
    runs = (
        measured("fits", peak_bytes=30 * MIB, nll_delta_high=0.02, ratio_high=1.1),
        measured("large", peak_bytes=30 * MIB + 1),
        measured("lossy", nll_delta_high=0.0201),
        measured("slow", ratio_high=1.11),
        measured("tiny_times", regime="overhead_bound"),
        measured("random", weights="random"),
        measured("aware", query_aware=True),
        measured("told", evidence="published"),
        measured("other_network", network="other embedded 123"),
        measured("served", requests=32),
        measured("unasked", nll_delta_nats=None, nll_delta_high=None),
        measured("unweighed", peak_bytes=None),
        [failed("broken", "out_of_memory", "no room")],
    )
    return frame([row for run in runs for row in run])


def check_only_what_counts_is_recommended(advise: Advise) -> None:
    """One run is at every limit and fits; of each of the others one number is too much, or does not count."""
    found = advise(at_the_limits(), wanted(), tokens_in_kib)
    assert names(found.fitting) == ["fits"]
    assert {one.name.split()[0]: one.beyond for one in found.others} == {
        "large": ("memory",), "lossy": ("loss",), "slow": ("time",), "tiny_times": ("time: nothing shown",)
    }  # fmt: skip
    reasons = {name.split()[0]: reason for reason, left in found.left_out.items() for name in left}
    assert reasons == {
        "random": "random weights: nothing is known of the loss",
        "aware": "query-aware: --query-aware counts these",
        "told": "published, not measured",
        "other_network": "ran on another network than the model's own",
        "served": "served requests, whose bytes are those of a pool",
        "unasked": "its loss was not measured beside the full cache's",
        "unweighed": "its memory was not measured",
        "broken": "out of memory: no room",
    }


def test_only_what_counts_is_recommended() -> None:
    check_only_what_counts_is_recommended(recommend)


@pytest.mark.parametrize("mutant", mutants.MUTANTS)
def test_oracle_catches_who_counts_otherwise(mutant: Advise) -> None:
    with pytest.raises(AssertionError):
        check_only_what_counts_is_recommended(mutant)


@cache
def short_runs() -> pd.DataFrame:
    """Return runs of at most 1,024 tokens, two of a closed form that says nothing."""
    grows = {"kv_allocated_bytes": 9 * MIB}
    short = {"prompt_tokens": 256, "peak_bytes": 5 * MIB, "kv_allocated_bytes": 9 * MIB // 4}
    runs = (
        measured("h2o", **grows, prompt_tokens=256, nll_delta_high=0.001),
        measured("h2o", **grows, nll_delta_high=0.01),
        measured("snapkv", **short),
        measured("depends", **grows, data_dependent=True),
        measured("wrong", kv_allocated_bytes=8 * MIB),
    )
    return frame([row for run in runs for row in run])


def check_a_length_that_was_not_measured(advise: Advise) -> None:
    """By hand: 10 MiB of weights, 9 KiB to each of 4,096 tokens, and (20 - 9) MiB of a peak times 4: 90 MiB."""
    found = advise(short_runs(), wanted(context=4096, memory=1e12), tokens_in_kib)
    assert {one.name: round(one.needed_bytes / MIB) for one in found.fitting} == {"h2o 25%": 90, "snapkv 25%": 90}
    assert {one.name: (one.loss, one.row["prompt_tokens"]) for one in found.fitting} == {
        "h2o 25%": (0.01, 1024), "snapkv 25%": (0.01, 256)
    }  # fmt: skip
    assert all(one.is_modelled for one in found.fitting)
    reasons = {name: reason.partition(", and ")[2] for reason, left in found.left_out.items() for name in left}
    assert reasons == {
        "depends 25%": "its bytes have no closed form: they depend on the data",
        "wrong 25%": "its closed form, which knows no weights, does not say the bytes that were",
    }


def test_a_length_that_was_not_measured() -> None:
    check_a_length_that_was_not_measured(recommend)


@pytest.mark.parametrize("mutant", mutants.FORMS)
def test_oracle_catches_other_bytes_at_other_lengths(mutant: Advise) -> None:
    with pytest.raises(AssertionError):
        check_a_length_that_was_not_measured(mutant)


def test_a_closed_form_that_refuses_says_why() -> None:
    found = recommend(frame(measured("h2o")), wanted(context=4096), lambda *_: "too long")
    assert found.left_out == {"not measured at 4,096 tokens, batch 1: too long": ["h2o 25%"]}


def test_the_best_is_what_is_preferred() -> None:
    rows = frame(
        measured("fast", ratio=0.5, peak_bytes=29 * MIB),
        measured("small", peak_bytes=12 * MIB, verdict="no_difference"),
        measured("exact", nll_delta_high=0.001, verdict="no_difference"),
        [baseline(**KNOWN)],
    )
    limits = {"memory": 100.0 * MIB}
    order = {p: names(recommend(rows, wanted(prefer=p, **limits), tokens_in_kib).fitting) for p in ("speed", "memory")}
    assert order == {
        "speed": ["fast", "small", "exact", "baseline"],
        "memory": ["small", "exact", "fast", "baseline"],
    }
    assert names(recommend(rows, wanted(prefer="loss", **limits), tokens_in_kib).fitting)[:2] == ["baseline", "exact"]


def test_the_worst_of_a_strategys_runs_counts_and_its_settings_tell_it_from_others() -> None:
    other = json.dumps({"strategy": {"of": "h2o", "codec": "kivi2"}, "engine": {}})
    rows = frame(
        measured("h2o", peak_bytes=21 * MIB),
        measured("h2o", peak_bytes=25 * MIB, nll_delta_high=0.015),
        measured("h2o", config_json=other),
        measured("baseline", saving="none", fidelity="exact"),
        [baseline(**KNOWN)],
    )
    found = recommend(rows, wanted(memory=100.0 * MIB), tokens_in_kib).fitting
    assert sorted((one.name, one.needed_bytes // MIB, one.loss) for one in found) == [
        ("baseline 25%", 50, 0.0), ("h2o 25% (r0)", 35, 0.015), ("h2o 25% (r2)", 30, 0.01)
    ]  # fmt: skip


def test_what_speaks_against_a_strategy_is_said() -> None:
    rows = frame(
        measured("h2o", score_verdict="worse", score_delta=-0.125, score_reason="", nll_nats=2.7),
        measured("random_eviction", nll_nats=2.7),
        measured(
            "snapkv",
            score_verdict="at_chance",
            score_reason="the full cache guesses",
            recall_key_value=0.9,
            recall_passkey=0.99,
        ),
    )
    found = recommend(rows, wanted(), tokens_in_kib)
    said = {one.name: one.remarks for one in found.fitting}
    assert said["snapkv 25%"] == ("its score on decode of 1,024 tokens says nothing: the full cache guesses",)
    assert said["h2o 25%"][0] == "its score on decode of 1,024 tokens is 12.5 points below the full cache's"
    assert said["h2o 25%"][1].startswith("it does not beat random_eviction in loss")
    elsewhere = frame(measured("h2o", nll_nats=2.7), measured("random_eviction", nll_nats=2.7, workload="text"))
    found = recommend(elsewhere, wanted(), tokens_in_kib)
    assert [one.remarks for one in found.fitting] == [(), ()]


def test_one_model_on_one_machine() -> None:
    rows = frame(measured("h2o"), measured("h2o", model="gpt2", device_name="H100"))
    with pytest.raises(ValueError, match=r"differ in model \(gpt2 / tiny\), device_name \(AMD EPYC / H100\): choose"):
        recommend(rows, wanted(), tokens_in_kib)
    assert names(recommend(rows, wanted(), tokens_in_kib, model="tiny").fitting) == ["h2o"]
    with pytest.raises(ValueError, match="--model: no row is of llama; there are rows of gpt2, tiny"):
        recommend(rows, wanted(), tokens_in_kib, model="llama")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": nan}, "--max-loss must be nats per token from 0, such as 0.02; got nan"),
        ({"loss": -0.1}, "--max-loss must be nats per token from 0"),
        ({"slowdown": nan}, "--max-slowdown must be a ratio above 0, such as 1.1; got nan"),
        ({"prefer": "looks"}, "--prefer must be one of speed, memory, loss; got 'looks'"),
    ],
)
def test_limits_that_nothing_can_be_held_against_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wanted(**values)


def test_the_page_says_why_and_what_was_not_measured() -> None:
    rows = frame(
        measured("h2o", overrides="strategy=h2o seed=3"),
        measured("snapkv", nll_delta_high=None, budget_unit="tokens"),
        measured("large", peak_bytes=900 * MIB),
        [failed("broken", "error", "it fell")],
    )
    limits = wanted(context=4096, memory=1000.0 * MIB)
    found = recommend(rows, limits, tokens_in_kib)
    out = StringIO()
    print_recommendation(found, limits, Console(file=out, width=200), unmeasured=["quest", "tova"])
    said = " ".join(out.getvalue().split())
    for part in (
        "recommended h2o 25%: it needs 90.0 MiB of 1000 MiB (modelled from 1,024 tokens, batch 1), loses at most "
        "0.0100 nats per token (contexts of 1,024 tokens), of the 2 that keep to the limits it has the fastest step",
        "as measured python run.py strategy=h2o seed=3",
        "1 h2o 25% 90.0 MiB 36.0 MiB modelled <= +0.0100 1,024 0.550 [0.500, 0.600] -",
        "- large 25% 3.53 GiB 36.0 MiB modelled",
        "was measured behind at most 1,024 tokens, not 4,096: it is not extrapolated",
        "without an interval, which workload=perplexity gives: snapkv 0.25 tok",
        "a budget in tokens or bytes keeps a smaller share of a longer prompt: snapkv 0.25 tok",
        "the rest of the peak at 1,024 tokens, batch 1 grown with the tokens",
        "was timed at 1,024 tokens; it is not extrapolated",
        "broken 25%: error: it fell",
        "2 strategies have no row here: quest, tova",
    ):
        assert part in said, part


def test_nothing_that_fits_is_said_too() -> None:
    none = wanted(memory=1.0, slowdown=inf)
    assert sentence(recommend(frame(measured("h2o")), none, tokens_in_kib), none) == (
        "none of the 1 that were measured keeps to the limits"
    )
    random = recommend(frame([without_quality(measured("h2o")[0])]), none, tokens_in_kib)
    assert sentence(random, none) == "nothing counts, see below"


def test_where_no_step_was_shown_to_differ_none_is_the_fastest() -> None:
    limits = wanted(slowdown=inf)
    found = recommend(
        frame(*(measured(name, regime="overhead_bound", peak_bytes=most * MIB) for name, most in (("a", 9), ("b", 8)))),
        limits,
        tokens_in_kib,
    )
    assert sentence(found, limits).endswith(
        "of the 2 that keep to the limits it takes the least memory, and no step was shown to be faster or slower than "
        "the full cache's"
    )
    out = StringIO()
    print_recommendation(found, limits, Console(file=out, width=80), unmeasured=[f"method_{n}" for n in range(100)])
    said = out.getvalue()
    heading = next(line for line in said.split("\n") if line.strip().startswith("strategy"))
    assert heading.split() == ["strategy", "needs", "of", "it", "KV", "known", "loss", "behind"], (
        "nothing else is known"
    )
    assert "100 strategies have no row here, see kvbench list strategy" in said
    assert "method_7" not in said


def test_names_are_whole_on_a_narrow_console() -> None:
    rows = frame(measured("streaming_kvquant"), measured("expected_attention", nll_delta_high=0.5))
    limits, out = wanted(), StringIO()
    print_recommendation(recommend(rows, limits, tokens_in_kib), limits, Console(file=out, width=80))
    table = out.getvalue().partition("needs        ")[0]
    assert {"streaming_kvquant", "expected_attention", "+0.0100", "+0.5000", "0.550"} <= set(table.split())
    assert "\u2026" not in table, "a number is cut"
