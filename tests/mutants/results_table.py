"""Tables that say more than was measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console

from kvbench.results.table import print_table


def claims_speed_anyway(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Print the verdict although everything fits in the processor's cache."""
    print_table(frame.assign(regime="memory_bound"), console, path=path)


def fills_gaps_with_zero(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Print a perfect loss where there is none."""
    print_table(frame.assign(nll_delta_nats=frame["nll_delta_nats"].fillna(0.0)), console, path=path)


def averages_baselines(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Print a baseline that was never run."""
    is_baseline = frame["arm"] == "baseline"
    middle = frame.loc[is_baseline, "decode_p50_ms"].median()
    print_table(frame.assign(decode_p50_ms=frame["decode_p50_ms"].mask(is_baseline, middle)), console, path=path)


def repeats_baselines(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Print every run's baseline as if it were another strategy."""
    print_table(frame.assign(arm="strategy"), console, path=path)


def throws_all_together(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Print one table, whatever the model."""
    print_table(frame.assign(model="all"), console, path=path)


def ranks_published_with_measured(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Print other people's numbers as ours."""
    print_table(frame.assign(evidence="measured"), console, path=path)


def forgets_networks(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Print rows of other networks as if they were the model's."""
    print_table(frame.assign(network=None), console, path=path)


def compares_all_losses(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Print what networks with random weights were not asked."""
    print_table(frame.assign(nll_nats=frame["nll_nats"].fillna(8.0)), console, path=path)
