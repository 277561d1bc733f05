"""Pictures of something else."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from kvbench.plots import (
    attention_lost,
    by_category,
    bytes_held,
    compared,
    decode_latency,
    first_tokens,
    held_positions,
    held_text,
    memory_against_context,
    named_by_page,
    needle_map,
    overview,
    page_utilisation,
    quality_against_memory,
    step_times,
    throughput,
    time_ratios,
    trade_off,
    where_bytes_lie,
)
from kvbench.plots.rows import method_rows


def with_first_steps(steps: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Count the first step of a block."""
    return decode_latency(steps.assign(index_in_block=steps["index_in_block"] + 1), ax)


def with_disturbed_blocks(steps: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Count blocks that other processes disturbed."""
    return decode_latency(steps.assign(is_clean=True), ax)


def with_the_second_baseline(steps: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Count the baseline twice."""
    return decode_latency(steps.assign(arm=steps["arm"].replace("baseline_again", "baseline")), ax)


def in_seconds(steps: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw seconds on an axis of milliseconds."""
    return decode_latency(steps.assign(wall_ns=steps["wall_ns"] // 1000), ax)


def in_megabytes(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Take a million bytes for a MiB."""
    return memory_against_context(
        runs.assign(kv_allocated_bytes=(runs["kv_allocated_bytes"] * 2**20 // 10**6).astype("Int64")), ax
    )


def front_of_the_last(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Call everything best that is better than the next smaller one."""
    table = quality_against_memory(runs, ax)
    return table.assign(is_on_front=table["quality"].diff().fillna(-1.0) < 0)


def front_with_ties(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Call best what is as good as something smaller."""
    table = quality_against_memory(runs, ax)
    return table.assign(is_on_front=table["quality"] <= table["quality"].cummin())


def front_upside_down(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Take the largest loss for the best."""
    negated = quality_against_memory(runs.assign(nll_delta_nats=-runs["nll_delta_nats"]), ax)
    return negated.assign(quality=-negated["quality"])


def counts_entries(held: pd.DataFrame, ax: Axes, *, rows: str) -> pd.DataFrame:
    """Count an entry as often as it is listed."""
    renamed = held.assign(head=held.groupby(["step", "layer", "head", "position"]).cumcount() * 100 + held["head"])
    return held_positions(renamed, ax)


def forgets_layers(held: pd.DataFrame, ax: Axes, *, rows: str) -> pd.DataFrame:
    """Call a position held when any layer holds it."""
    return held_positions(held.assign(layer=0), ax)


def lost_by_step(lost: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Take layers for steps."""
    return attention_lost(lost.rename(columns={"step": "layer", "layer": "step"}), ax)


def lost_upside_down(lost: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the last layer on top."""
    return attention_lost(lost.assign(layer=-lost["layer"]), ax)


def text_at_the_start(held: pd.DataFrame, pieces: Sequence[str], ax: Axes, *, prompt_tokens: int) -> pd.DataFrame:
    """Show what was held when the prompt had been read."""
    return held_text(held[held["step"] == 0], pieces, ax, prompt_tokens=prompt_tokens)


def text_a_token_further(held: pd.DataFrame, pieces: Sequence[str], ax: Axes, *, prompt_tokens: int) -> pd.DataFrame:
    """Colour the token behind the one that is held."""
    return held_text(held.assign(position=held["position"] + 1), pieces, ax, prompt_tokens=prompt_tokens)


def text_of_any_head(held: pd.DataFrame, pieces: Sequence[str], ax: Axes, *, prompt_tokens: int) -> pd.DataFrame:
    """Call a token held when one head of each layer holds it."""
    return held_text(held.assign(head=0), pieces, ax, prompt_tokens=prompt_tokens)


def both_arms_named(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Name the baseline by pages as well."""
    return named_by_page(frame.assign(arm="strategy"), runs).assign(arm=frame["arm"])


def waste_drawn(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the share that holds nothing."""
    return page_utilisation(runs.assign(page_utilisation=1 - runs["page_utilisation"]), ax)


def upside_down(samples: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the deepest needles first."""
    table = needle_map(samples, ax)
    ax.invert_yaxis()
    return table


def best_of_each(samples: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the best score of each cell."""
    return needle_map(samples.sort_values("score").drop_duplicates(["depth", "context_tokens"], keep="last"), ax)


def turned_over(samples: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the mistakes."""
    return needle_map(samples.assign(score=1 - samples["score"]), ax)


def one_baseline(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs that all have the last one's baseline."""
    last = runs.loc[runs["arm"] == "baseline", "decode_p50_ms"].iloc[-1]
    return runs.assign(decode_p50_ms=runs["decode_p50_ms"].mask(runs["arm"] == "baseline", last))


def beside_any_baseline(runs: pd.DataFrame) -> pd.DataFrame:
    """Put the same baseline beside every method."""
    return method_rows(one_baseline(runs))


def kinds_in_parts(runs: pd.DataFrame) -> pd.DataFrame:
    """Leave methods in the order of runs."""
    rows = method_rows(runs)
    return rows.assign(place=rows["created_at"].index + 1)


def times_of_one_baseline(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw one baseline's time beside every method's."""
    return step_times(one_baseline(runs), ax)


def used_for_allocated(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the bytes in use."""
    return bytes_held(runs.assign(kv_allocated_bytes=runs["kv_used_bytes"]), ax)


def medians_for_pairs(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw ratios of medians where there are pairs."""
    return trade_off(runs.assign(ratio=float("nan")), ax)


def nothing_lost(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Call everything lossless."""
    return trade_off(runs.assign(nll_delta_nats=0.0), ax)


def best_of_a_kind(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the best method of each kind."""
    table = by_category(runs, ax)
    return table.assign(median=table["low"])


def with_first_steps_of_blocks(runs: pd.DataFrame, steps: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Count the first step of a block."""
    return throughput(runs, steps.assign(index_in_block=steps["index_in_block"] + 1), ax)


def of_fewer_samples(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Take the samples of one task for those of two."""
    return overview(runs.assign(recall_samples=runs["recall_samples"] * 2), ax)


def of_any_length(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw prompts of all lengths as if they were one."""
    return where_bytes_lie(runs.assign(prompt_tokens=1), ax)


def disk_for_host(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Take one place for another."""
    return where_bytes_lie(runs.rename(columns={"host_bytes": "disk_bytes", "disk_bytes": "host_bytes"}), ax)


def from_the_beginning(requests: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Count from the first arrival of all."""
    return first_tokens(requests.assign(arrival_s=0.0), ax)


def both_baselines(requests: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Count the baseline twice."""
    return first_tokens(requests.assign(arm=requests["arm"].replace("baseline_again", "baseline")), ax)


def claims_anything(pairs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Take a ratio below 1 for a claim."""
    return compared(pairs.assign(low=pairs["ratio"], high=pairs["ratio"] - 1e-9), ax)


def any_phase(pairs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Take reading a prompt for decoding."""
    return compared(pairs.assign(phase="decode"), ax)


ELSEWHERE = [
    ("check_bytes_lie_end_to_end", of_any_length),
    ("check_bytes_lie_end_to_end", disk_for_host),
    ("check_waits", from_the_beginning),
    ("check_waits", both_baselines),
    ("check_claims", claims_anything),
    ("check_claims", any_phase),
]
METHODS = [
    ("check_rows", beside_any_baseline),
    ("check_rows", kinds_in_parts),
    ("check_times", times_of_one_baseline),
    ("check_bytes", used_for_allocated),
    ("check_trade_off", medians_for_pairs),
    ("check_trade_off", nothing_lost),
    ("check_kinds", best_of_a_kind),
    ("check_throughput", with_first_steps_of_blocks),
    ("check_overview", of_fewer_samples),
]
MAPS = [upside_down, best_of_each, turned_over]
LATENCIES = [with_first_steps, with_disturbed_blocks, with_the_second_baseline, in_seconds]
FRONTS = [front_of_the_last, front_with_ties, front_upside_down]
TRACES = [counts_entries, forgets_layers]
LOSSES = [lost_by_step, lost_upside_down]
TEXTS = [text_at_the_start, text_a_token_further, text_of_any_head]


def upside_down_times(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw how many times as fast, under the name of how many times as long."""
    return time_ratios(runs.assign(ratio=1 / runs["ratio"]), ax)


def of_the_prefill(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the prefill's times for those of a step."""
    return time_ratios(runs, ax, column="ttft_ratio")


def all_alike(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw times that allow no verdict like those that do."""
    return time_ratios(runs.assign(regime="memory_bound"), ax)


def without_failures_left_out(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw what ended early too."""
    return time_ratios(runs.assign(status="ok"), ax)


TIMES = [upside_down_times, of_the_prefill, all_alike, without_failures_left_out]
