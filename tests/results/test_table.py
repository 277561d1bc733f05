"""What people read: every number where it belongs, nothing claimed that was not shown, at any width."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from kvbench.results.records import Record
from kvbench.results.table import print_table
from tests.mutants import results_table as mutants
from tests.results.factory import MIB, baseline, failed, frame, row, without_quality

Printer = Callable[..., None]
FASTER = row("h2o")
UNSUPPORTED = failed("tova", "unsupported", "a budget of 3 entries is below the 20 protected ones; raise it")

GOLDEN = """
tiny | decode: 1,024 + 64 tokens, batch 1 | float32 on AMD EPYC, 1 thread

strategy    KV  peak  TTFT  TPOT p50   p99  ratio        interval  verdict       ceiling    loss  top-1  recall  passkey  saving
           MiB   MiB    ms        ms    ms                                                  nats      %       %        %
----------------------------------------------------------------------------------------------------------------------------------
baseline  34.0  40.0   182      12.5  14.9      -               -  -                   -  +0.000  100.0    98.4    100.0  none
h2o 25%   9.00  13.0   182      7.70  9.10  0.614  [0.603, 0.627]  1.63x faster    2.18x  +0.083   93.4    70.3     91.0  physical
tova 25%     -     -     -         -     -      -               -  unsupported         -       -      -       -        -  physical

ratio         time of a decode step over the baseline's, below 1 is faster, with its 95% interval
ceiling       the most that the bytes read allow, as a speed-up
KV, loss      all storages of the cache on the device; nats per token above the full cache's loss
unsupported   tova 25%: a budget of 3 entries is below the 20 protected ones; raise it
weights       embedded: a small model trained by kvbench and shipped with it
files         runs/adhoc
"""  # noqa: E501


def shown(table: pd.DataFrame, *, width: int = 160, printer: Printer = print_table, path: Path | None = None) -> str:
    """Return what a console of this width shows, without spaces at the ends of lines."""
    out = io.StringIO()
    printer(table, Console(file=out, width=width), path=path)
    return "\n".join(line.rstrip() for line in out.getvalue().replace("\u2500", "-").split("\n"))


def line_of(text: str, name: str) -> list[str]:
    """Return the words of the table's line that begins with a strategy's name."""
    (line,) = [line for line in text.split("\n") if line.startswith(f"{name} ") and "  " in line]
    return line.split()


ASKED: Record = row(
    "h2o",
    score=0.62,
    score_low=0.58,
    score_high=0.66,
    score_delta=-0.253,
    score_delta_low=-0.3,
    score_delta_high=-0.2,
    score_verdict="worse",
    score_reason="the interval excludes 0",
    asked_samples=1200,
)
GATED: dict[str, object] = {
    "score_delta": None,
    "score_delta_low": None,
    "score_delta_high": None,
    "score_verdict": "at_chance",
    "score_reason": "the full cache scores 1.0%, which guessing may reach (0.5%): nothing can be lost",
}
AWAY: Record = row(
    "offload",
    host_bytes=12 * MIB,
    disk_bytes=3 * MIB,
    up_bytes_per_step=9.0 * MIB,
    disk_read_bytes_per_step=1.0 * MIB,
    down_bytes_per_step=2048.0,
    disk_written_bytes_per_step=512.0,
    recomputed_tokens_per_step=4096.0,
    wait_share=0.25,
    overlap_share=0.9,
    stall_ms_per_step=1.25,
    predicted_ms=7.5,
    measured_over_predicted=1.027,
    prediction="modelled",
    binding_resource="host_memory",
    disk_cold=False,
)


def test_what_lies_elsewhere_has_a_table_of_its_own() -> None:
    text = shown(frame([AWAY, baseline()]))
    first, second = (line.split() for line in text.split("\n") if line.startswith("offload 25% "))
    at = text.split("\n").index(
        next(line for line in text.split("\n") if line.startswith("offload 25% ") and "4,096" in line)
    )
    assert second == ["offload", "25%", "12.0", "10.0", "4,096", "25.0", "1.25", "7.50"]
    assert text.split("\n")[at + 1].split() == ["host_memory", "3.00", "2.50", "90.0", "1.03x"]
    assert "1.63x" in first
    assert "two pools of one memory" in text
    assert "from memory that keeps files (warm)" in text
    assert "link" not in [word for line in text.split("\n") if "brings" in line for word in line.split()]


def test_pages_at_hand_have_a_column_where_there_are_any() -> None:
    assert " hits " not in shown(frame([AWAY, baseline()]))
    text = shown(frame([{**AWAY, "hit_share": 0.97, "wait_share": None}, baseline()]))
    (line,) = [line.split() for line in text.split("\n") if line.startswith("offload 25% ") and "97.0" in line]
    assert line == ["offload", "25%", "12.0", "10.0", "97.0", "90.0", "1.25", "7.50"]
    assert "of the pages a step reads" in text


def test_a_share_that_was_fitted_has_a_column() -> None:
    assert "has room" not in shown(frame([AWAY, baseline()]))
    text = shown(frame([{**AWAY, "host_share": 0.597}, baseline()]))
    (line,) = [line.split() for line in text.split("\n") if line.startswith("offload 25% ") and "4,096" in line]
    assert line[2:4] == ["59.7", "12.0"]
    assert "the least with which the device has room" in text


def test_what_is_not_known_of_what_lies_elsewhere_is_left_out() -> None:
    cold = {**AWAY, "disk_cold": True, "overlap_share": None, "predicted_ms": None, "prediction": "no_rate"}
    cold |= {"measured_over_predicted": None}
    text = shown(frame([{**cold, "binding_resource": None, "modelled_link_ms": 0.42}, baseline()]))
    lines = text.split("\n")
    at = next(at for at, line in enumerate(lines) if line.startswith("offload 25% ") and "4,096" in line)
    assert lines[at].split()[2:] == ["12.0", "10.0", "4,096", "25.0", "1.25"]
    assert lines[at + 1].split() == ["3.00", "2.50", "0.420"]
    assert "read again by every step (cold)" in text
    assert "kvbench hardware model=tiny" in text
    assert "two pools" not in shown(frame([FASTER, baseline()]))


def test_all_that_can_be_said_of_what_lies_elsewhere_fits_a_narrow_console() -> None:
    text = shown(frame([{**AWAY, "hit_share": 0.97, "modelled_link_ms": 0.42}, baseline()]), width=80)
    assert all(title in text for title in ("brings MiB", "again tokens", "link ms", "over", "binding"))
    assert "\u2026" not in text


SERVED: dict[str, object] = {
    "engine": "batcher",
    "workload": "requests",
    "requests": 32,
    "serve_s": 0.847,
    "ttft_p99_ms": 562.0,
    "e2e_p50_ms": 664.0,
    "e2e_p99_ms": 919.0,
    "goodput_per_s": 43.2,
    "fairness": 0.882,
    "max_wait_ms": 458.0,
    "sharing": 3.83,
    "prefill_tokens_computed": 2393,
    "prefill_tokens_reused": 6962,
    "preemptions": 2,
    "page_utilisation": 0.927,
}


def test_requests_have_a_table_of_their_own() -> None:
    served = row("scheduling_prefix", budget_unit=None, budget_amount=None, ceiling=None, same_share=1.0, **SERVED)
    text = shown(frame([served, baseline(**SERVED)]))
    assert "tiny | 32 requests of at most 1,024 + 64 tokens |" in text
    apart = text.partition("total s")[2]
    assert line_of(apart, "scheduling_prefix")[1:] == ["0.847", "182", "664", "458", "2,393", "34.0", "2"]
    assert "their prompts have 3.83 times as many tokens as the tree that they make together" in text
    assert "time of serving all requests over the baseline's" in text
    assert "the most that the bytes read allow" not in text
    assert "kept /s" not in shown(frame([FASTER, baseline()]))
    narrow = shown(frame([served, baseline(**SERVED)]), width=80)
    assert "\u2026" not in narrow


def test_one_reason_of_several_rows_is_said_once() -> None:
    noisy = {"verdict": "inconclusive", "reason": "noisy machine"}
    text = shown(
        frame([row("h2o", **noisy), baseline()], [row("tova", **noisy), baseline()], [row("snapkv"), baseline()])
    )
    assert "inconclusive  h2o 25%, tova 25%: noisy machine" in text
    assert text.count("noisy machine") == 1


def test_a_step_without_a_ratio_is_not_given_the_prefills() -> None:
    unknown = row("tova", ratio=None, ratio_low=None, ratio_high=None, ttft_ratio=1.184)
    text = shown(frame([unknown, baseline()]))
    assert "1.184" not in text
    prefill = row("tova", ratio=None, ratio_low=None, ratio_high=None, ttft_ratio=1.184, decode_p50_ms=None)
    assert "1.184" in shown(frame([prefill, baseline(decode_p50_ms=None)]))


def test_baselines_of_other_times_are_said_to_be() -> None:
    both = [[row("h2o"), baseline(decode_p50_ms=4.0)], [row("tova"), baseline(decode_p50_ms=5.0)]]
    text = shown(frame(*both), width=200)
    assert "each run was timed against its own baseline, whose steps took 4.00 to 5.00 ms" in text
    near = [[row("h2o"), baseline(decode_p50_ms=4.0)], [row("tova"), baseline(decode_p50_ms=4.2)]]
    assert "whose steps took" not in shown(frame(*near), width=200)


def test_who_keeps_what_is_decoded_is_named() -> None:
    runs = [[row("h2o", decode_rule=True), baseline()], [row("snapkv", decode_rule=False), baseline()]]
    assert "budget        snapkv 25%: of the prompt; what is decoded is kept on top of it" in shown(frame(*runs))


def test_reasons_that_differ_in_numbers_are_said_once_from_the_least_to_the_most() -> None:
    wide = "the interval is +-{}% wide, at most 2% is allowed"
    runs = [
        [row(name, verdict="inconclusive", reason=wide.format(percent)), baseline()]
        for name, percent in (("h2o", "8.6"), ("tova", "10.2"), ("snapkv", "3.2"))
    ]
    void = row("knorm", verdict="inconclusive", reason="void: the baseline lay 3.1% from itself")
    text = shown(frame(*runs, [void, baseline()]), width=200)
    assert "h2o 25%, tova 25%, snapkv 25%: the interval is +-3.2% to 10.2% wide, at most 2% is allowed" in text
    assert "knorm 25%: void: the baseline lay 3.1% from itself" in text


def test_a_black_boxs_engine_is_not_its_baselines() -> None:
    def run(attention: str, comparison: str) -> dict[str, object]:
        config = {"engine": {"attention": attention}, "seed": 0, "strategy": {"name": "x"}}
        return baseline(config_json=json.dumps(config), comparison=comparison)

    both = [[FASTER, run("a", "paired")], [row("transformers", comparison="unpaired"), run("b", "unpaired")]]
    assert "they differ in" not in shown(frame(*both))
    assert "they differ in engine.attention" in shown(frame(both[0], [both[1][0], run("b", "paired")]))


def test_each_engine_has_a_table_of_its_own() -> None:
    fast = {"engine": "recorded"}
    stock = row("transformers", comparison="unpaired", engine="stock")
    runs = frame(
        [FASTER, baseline()], [row("tova", **fast), baseline(**fast)], [stock, baseline(comparison="unpaired")]
    )
    first, second = shown(runs).split("tiny |")[1:]
    assert ("h2o 25%" in first, "tova" in first, "transformers" in first) == (True, False, True)
    assert ("h2o 25%" in second, "tova" in second, "transformers" in second) == (False, True, False)
    assert "| recorded" in second
    assert "| recorded" not in first
    assert "they differ in" not in first + second


def test_what_nobody_was_asked_is_no_column() -> None:
    for width in (80, 160):
        text = shown(frame([without_quality(FASTER), without_quality(baseline())]), width=width)
        assert "recall" not in text
        assert "nats" not in text
        assert len([line for line in text.split("\n") if line.startswith("h2o 25% ")]) == 1


def test_rows_of_one_name_are_called_as_their_experiment_calls_them() -> None:
    few, many = (row("kvpr", budget_unit=None, budget_amount=None, overrides=f"+row=kvpr_{x} seed=1") for x in "ab")
    text = shown(frame([few, baseline(overrides="+row=kvpr_a")], [many, baseline(overrides="+row=kvpr_b")]))
    assert [line.split()[0] for line in text.split("\n") if line.startswith(("kvpr", "baseline "))][:3] == [
        "baseline",
        "kvpr_a",
        "kvpr_b",
    ]
    alone = shown(frame([few, baseline(overrides="+row=kvpr_a")]))
    assert "kvpr_a" not in alone


def test_a_table_on_one_line_per_row() -> None:
    both = frame([FASTER, baseline()], [UNSUPPORTED, baseline()])
    assert shown(both, path=Path("runs/adhoc")) == GOLDEN


ROWS: list[Record] = [
    row("random_eviction", verdict="slower", ratio=1.112, regime="overhead_bound"),
    row("attention_sink", kv_allocated_bytes=512),
    FASTER,
    UNSUPPORTED,
    failed("knorm", "out_of_memory", "34.2 GiB were asked for, and there are 24.0 GiB " * 3),
    row("snapkv", verdict="inconclusive", reason="void: the baseline lay 3.1% from itself"),
]


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
@pytest.mark.parametrize("count", range(1, len(ROWS) + 1))
def test_nothing_is_cut_or_wrapped(width: int, count: int) -> None:
    text = shown(frame(*[[one, baseline()] for one in ROWS[:count]]), width=width)
    assert all(len(line) <= width for line in text.split("\n"))
    assert "\u2026" not in text
    for one in ROWS[:count]:
        line = next(line for line in text.split("\n") if line.startswith(f"{one['strategy']} 25%"))
        if one["status"] == "ok":
            assert f"{one['ratio']:.3f}" in line


@pytest.mark.parametrize(("width", "lines"), [(160, 1), (100, 2), (80, 2)])
def test_a_narrow_console_gets_two_lines_to_a_row(width: int, lines: int) -> None:
    text = shown(frame([FASTER, baseline()]), width=width).split("\n")
    first = next(index for index, line in enumerate(text) if line.startswith("h2o 25%"))
    assert ("[0.603, 0.627]" in text[first]) == (lines == 1)
    assert ("[0.603, 0.627]" in text[first + 1]) == (lines == 2)


def check_no_speed_inside_the_processors_cache(printer: Printer) -> None:
    """Where all fits in the cache, the ratio is shown and nothing is claimed, whatever the row says."""
    fast = frame([row("h2o", regime="overhead_bound"), baseline(regime="overhead_bound")])
    words = line_of(shown(fast, printer=printer), "h2o")
    assert "overhead-bound" in words
    assert words[7:10] == ["0.614", "[0.603,", "0.627]"]
    assert "faster" not in words
    assert "its speed allows no verdict" in shown(fast, printer=printer)


def test_no_speed_is_claimed_inside_the_processors_cache() -> None:
    check_no_speed_inside_the_processors_cache(print_table)


def check_random_weights_have_no_quality(printer: Printer) -> None:
    """Random weights leave no columns of quality, or empty ones beside what was asked, and are announced."""
    text = shown(frame([without_quality(FASTER), without_quality(baseline())]), printer=printer)
    assert line_of(text, "h2o")[-2:] == ["2.18x", "physical"]
    assert line_of(text, "baseline")[-2:] == ["-", "none"]
    assert "RANDOM" in text
    text = shown(frame([{**without_quality(FASTER), "weights": "embedded"}, baseline()]), printer=printer)
    assert line_of(text, "h2o")[-5:] == ["-", "-", "-", "-", "physical"]


def test_random_weights_have_no_quality() -> None:
    check_random_weights_have_no_quality(print_table)


def check_the_baseline_is_a_run_that_was(printer: Printer) -> None:
    """The baseline stands on the first line, once, and its numbers are those of one run."""
    runs = [[row(name), baseline(decode_p50_ms=ms)] for name, ms in [("h2o", 12.5), ("snapkv", 12.9), ("tova", 14.9)]]
    lines = shown(frame(*runs), printer=printer).split("\n")
    table = [line for line in lines if line.startswith(("baseline", "h2o", "snapkv", "tova"))]
    assert [line.split()[0] for line in table] == ["baseline", "h2o", "snapkv", "tova"]
    assert table[0].split()[4] == "12.5"


def test_the_baseline_is_a_run_that_was() -> None:
    check_the_baseline_is_a_run_that_was(print_table)


def check_what_differs_stands_apart(printer: Printer) -> None:
    """Other models, lengths, devices and evidence get a table and a heading of their own."""
    others: list[dict[str, object]] = [
        {"model": "gpt2"},
        {"prompt_tokens": 512},
        {"workload": "text"},
        {"device_name": "H200", "device": "cuda"},
        {"evidence": "published"},
        {"weights": "random"},
    ]
    runs = [[row("h2o", **other), baseline(**other)] for other in [{}, *others]]
    text = shown(frame(*runs), printer=printer)
    assert text.count("strategy  ") == len(runs)
    assert [line for line in text.split("\n") if " | " in line] == [
        "tiny | decode: 1,024 + 64 tokens, batch 1 | float32 on AMD EPYC, 1 thread",
        "gpt2 | decode: 1,024 + 64 tokens, batch 1 | float32 on AMD EPYC, 1 thread",
        "tiny | decode: 512 + 64 tokens, batch 1 | float32 on AMD EPYC, 1 thread",
        "tiny | text: 1,024 + 64 tokens, batch 1 | float32 on AMD EPYC, 1 thread",
        "tiny | decode: 1,024 + 64 tokens, batch 1 | float32 on H200",
        "tiny | decode: 1,024 + 64 tokens, batch 1 | float32 on AMD EPYC, 1 thread | published, not measured",
        "tiny | decode: 1,024 + 64 tokens, batch 1 | float32 on AMD EPYC, 1 thread",
    ]


def test_what_differs_stands_apart() -> None:
    check_what_differs_stands_apart(print_table)


def check_networks_are_told_apart(printer: Printer) -> None:
    own: Record = {"budget_unit": None, "budget_amount": None, "fidelity": "trained", "bits_per_byte": 1.25}
    times: Record = {"ttft_ratio": 0.912, "ttft_ratio_low": 0.9, "ttft_ratio_high": 0.925}
    gqa = row("matched", **own, **times, network="tiny-gqa (embedded, gqa)", nll_nats=2.654, weights_bytes=7 * MIB)
    random = without_quality(row("matched", **own, network="tiny-mamba (random, seed-0)", weights_bytes=8 * MIB))
    random |= {"bits_per_byte": None, "weights": "embedded", "fidelity": "structure_only"}
    text = shown(frame([gqa, baseline()], [random, baseline()]), width=80, printer=printer)
    assert "bits/byte" in text
    told = {line.split()[0]: line.split()[1:] for line in text[text.index("bits/byte") :].split("\n") if line.strip()}
    assert told["tiny-gqa"] == ["7.00", "2.654", "1.250", "0.912", "[0.900,", "0.925]"]
    assert told["tiny-mamba"] == ["8.00", "-", "-", "-", "-"]
    assert " ".join(text.split()).count("quality does not exist") == 1
    assert "tiny-gqa (embedded, gqa): losses are of the same tokens" in " ".join(text.split())
    assert "\u2026" not in text
    assert "bits/byte" not in shown(frame([FASTER, baseline()]), printer=printer)


def test_networks_are_told_apart() -> None:
    check_networks_are_told_apart(print_table)


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (mutants.forgets_networks, check_networks_are_told_apart),
        (mutants.compares_all_losses, check_networks_are_told_apart),
        (mutants.claims_speed_anyway, check_no_speed_inside_the_processors_cache),
        (mutants.fills_gaps_with_zero, check_random_weights_have_no_quality),
        (mutants.averages_baselines, check_the_baseline_is_a_run_that_was),
        (mutants.repeats_baselines, check_the_baseline_is_a_run_that_was),
        (mutants.throws_all_together, check_what_differs_stands_apart),
        (mutants.ranks_published_with_measured, check_what_differs_stands_apart),
    ],
)
def test_oracle_catches_a_table_that_says_too_much(mutant: Printer, check: Callable[[Printer], None]) -> None:
    with pytest.raises(AssertionError):
        check(mutant)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"verdict": "slower", "ratio": 1.114}, "1.11x slower"),
        ({"verdict": "no_difference"}, "no difference"),
        ({"verdict": "inconclusive"}, "inconclusive"),
        ({"verdict": "none"}, "-"),
        ({"comparison": "unpaired"}, "unpaired"),
        ({"comparison": "none", "ratio": None, "ratio_low": None, "ratio_high": None}, "-"),
    ],
)
def test_a_verdict_is_what_the_row_says(values: dict[str, object], verdict: str) -> None:
    line = next(x for x in shown(frame([row("h2o", **values), baseline()])).split("\n") if x.startswith("h2o"))
    after = line.split("]")[-1] if "]" in line else line.split("  -  ", 1)[1]
    assert after.strip().startswith(verdict)


def test_a_speed_up_of_prefill_is_shown_where_nothing_is_decoded() -> None:
    nothing = dict.fromkeys(["ratio", "ratio_low", "ratio_high", "decode_p50_ms", "decode_p99_ms"])
    prefill = {"ttft_ratio": 1.031, "ttft_ratio_low": 1.02, "ttft_ratio_high": 1.04, "workload": "prefill"}
    text = shown(frame([row("snapkv", **nothing, **prefill, new_tokens=None), baseline(**nothing, workload="prefill")]))
    assert line_of(text, "snapkv")[7:10] == ["1.031", "[1.020,", "1.040]"]
    assert "ratio         time of the prefill over the baseline's" in text
    assert "prefill: 1,024 tokens" in text


def test_a_run_that_ended_early_stays_with_its_model() -> None:
    unknown = dict.fromkeys(["dtype", "device_name", "num_threads", "weights", "query_aware", "data_dependent"])
    early = failed("tova", "error", "the process died", **unknown)
    text = shown(frame([early], [FASTER, baseline()]))
    assert text.count("strategy  ") == 1
    assert "float32 on AMD EPYC, 1 thread" in text
    assert "error         tova 25%: the process died" in text


def test_where_nothing_went_well_there_is_no_table() -> None:
    text = shown(frame([failed("tova", "error", "the process died", weights=None)]))
    assert [line.split("  ")[0] for line in text.split("\n") if line] == [
        "tiny | decode: 1,024 + 64 tokens, batch 1 | float32 on AMD EPYC, 1 thread",
        "error",
        "weights",
    ]


def test_baselines_that_differ_in_more_than_the_strategy_are_announced() -> None:
    def run(name: str, threads: int) -> Sequence[Record]:
        config = json.dumps({"strategy": {"name": name}, "measure": {"threads": threads}})
        return [row(name, config_json=config), baseline(config_json=config)]

    note = "each run was timed against its own, and they differ in measure.threads; shown is that of r0"
    assert note in shown(frame(run("h2o", 1), run("snapkv", 2)))
    assert "each run was timed" not in shown(frame(run("h2o", 1), run("snapkv", 1)))


def test_runs_that_share_a_name_are_told_apart() -> None:
    text = shown(frame([FASTER, baseline()], [row("h2o", overrides="strategy=h2o strategy/codec=int8"), baseline()]))
    assert "h2o 25% (r0)" in text
    assert "h2o 25% (r1)" in text
    assert "overrides     r1: strategy=h2o strategy/codec=int8" in text


def test_a_baseline_that_was_run_as_a_strategy_is_shown_as_such() -> None:
    own = row("baseline", budget_unit=None, budget_amount=None, ratio=1.001, verdict="no_difference")
    text = shown(frame([own, baseline()], [FASTER, baseline()]))
    assert [line.split("  ")[0] for line in text.split("\n") if line.startswith(("baseline", "h2o"))] == [
        "baseline",
        "baseline again",
        "h2o 25%",
    ]
    alone = shown(frame([row("baseline", budget_unit=None, budget_amount=None, comparison="none")]))
    assert sum(line.startswith("baseline ") for line in alone.split("\n")) == 1


def test_a_budget_is_part_of_the_name() -> None:
    for unit, amount, name in [
        ("tokens", 128, "h2o 128 tok"),
        ("ratio", 0.125, "h2o 12.5%"),
        ("bytes", 2**21, "h2o 2.00 MiB"),
    ]:
        assert name in shown(frame([row("h2o", budget_unit=unit, budget_amount=float(amount))]))


def test_data_that_random_weights_do_not_have_is_pointed_out() -> None:
    text = shown(frame([without_quality(row("ada", data_dependent=True)), without_quality(baseline())]))
    assert "random weights do not ask" in text


def test_pretrained_weights_are_named_with_their_revision() -> None:
    text = shown(frame([row("h2o", weights="pretrained", model_revision="11c5a3d")]))
    assert "weights       pretrained (11c5a3d)" in text


def test_how_much_of_a_prompt_is_left_is_said() -> None:
    some = row("arch_alt_10x", stored_ratio=10.118, runtime_ratio=4.0, fidelity="trained")
    text = shown(frame([some, baseline()]))
    assert "arch_alt_10x 25%: of the prompt 10.1x fewer bytes to store and 4.0x fewer to read\n" in text
    untrained = shown(frame([{**some, "fidelity": "structure_only"}, baseline()]), width=200)
    assert "4.0x fewer to read; its blocks were never trained: quality does not exist" in untrained
    assert "fewer bytes to store" not in shown(frame([FASTER, baseline()]))


def test_scores_stand_in_a_table_of_their_own() -> None:
    full = {**baseline(), "score": 0.873, "score_low": 0.84, "score_high": 0.9, "asked_samples": 1200}
    text = shown(frame([full, ASKED]), width=200)
    _, mine = [line.split() for line in text.split("\n") if line.startswith("h2o 25%")]
    assert mine[2:] == ["62.0", "[58.0,", "66.0]", "-25.3", "[-30.0,", "-20.0]", "worse", "1,200"]
    _, base = [line.split() for line in text.split("\n") if line.startswith("baseline ")]
    assert base[1:] == ["87.3", "[84.0,", "90.0]", "-", "-", "-", "1,200"]
    assert "points above the full cache's score" in text
    assert "score" not in shown(frame([baseline(), row("h2o")]), width=200)


def test_no_difference_is_shown_where_the_full_cache_says_nothing() -> None:
    text = shown(frame([baseline(), {**ASKED, **GATED}]), width=200)
    _, mine = [line.split() for line in text.split("\n") if line.startswith("h2o 25%")]
    assert mine[2:] == ["62.0", "[58.0,", "66.0]", "-", "-", "at", "chance", "1,200"]
    assert "points above" not in text
    assert str(GATED["score_reason"]) in " ".join(text.split())


@pytest.mark.parametrize("width", [70, 160])
def test_what_nobody_was_asked_has_no_column(width: int) -> None:
    rows = [{**record, "recall_key_value": None, "recall_passkey": None} for record in (baseline(), row("h2o"))]
    text = shown(frame(rows), width=width)
    assert "top-1" in text
    assert "recall" not in text
    assert "passkey" not in text


def test_losses_of_other_contexts_than_the_prompt_say_behind_how_many_tokens() -> None:
    config = json.dumps({"quality": {"context_tokens": 512}})
    rows = [{**one, "config_json": config} for one in (baseline(), row("h2o"))]
    said = " ".join(shown(frame(rows)).split())
    assert "nats per token above the full cache's loss, behind 512 tokens" in said
    same = [{**one, "config_json": config, "prompt_tokens": 512} for one in rows]
    assert "loss weights" in " ".join(shown(frame(same)).split())


@pytest.mark.parametrize(("loss", "is_doubted"), [(10.9, True), (10.6, True), (2.6, False)])
def test_weights_that_know_no_more_than_whoever_guesses_are_doubted(loss: float, is_doubted: bool) -> None:
    known = {"weights": "pretrained", "model_revision": "mine", "guess_nats": 10.82, "nll_nats": loss}
    said = shown(frame([{**one, **known} for one in (baseline(), row("h2o"))]))
    (line,) = [line for line in said.split("\n") if line.startswith("weights")]
    doubt = f"; their loss is {loss} nats per token, and guessing has 10.8: were they trained? no quality follows"
    assert line == f"weights       pretrained (mine){doubt if is_doubted else ''}"
