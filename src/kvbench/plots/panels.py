"""What a notebook draws on: panels side by side, each with a picture, or with why there is none."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvbench.plots.looks import caption

_KIND = ["model", "weights", "workload", "batch_size", "device_name"]
_SENTENCE = 44  # letters to a line
_LETTERS = 15  # small ones to an inch


def kinds(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what can be drawn together: models, workloads and devices with how many runs there are, most first.

    Args:
        runs: as `kvbench.load` returns them.
    """
    ran = runs[runs["status"] == "ok"] if (runs["status"] == "ok").any() else runs
    counts = ran.groupby(_KIND, dropna=False)["run_id"].nunique()
    return counts.rename("runs").sort_values(ascending=False, kind="stable").reset_index()


def of_kind(table: pd.DataFrame, kind: Mapping[str, Any] | pd.Series) -> pd.DataFrame:
    """Return the rows that belong to a kind; those that ended early, where nothing speaks against it.

    Args:
        table: runs, steps, requests or samples, as `kvbench.load` returns them.
        kind: a row of `kinds`.
    """
    fits = pd.Series(data=True, index=table.index)
    for name in _KIND:
        known = table[name].notna() & (not pd.isna(kind[name]))
        fits &= ~known | (table[name] == kind[name]).fillna(value=False).astype(bool)
    return table[fits]


def panels(
    runs: pd.DataFrame, *pictures: Callable[[Axes], pd.DataFrame], width: float = 15.0, height: float = 4.5
) -> list[pd.DataFrame]:
    """Draw pictures side by side, with a line below that says where the numbers come from.

    Args:
        runs: whose numbers they are.
        pictures: each draws on axes and returns what it has drawn; where it refuses, its reason stands in its place.
        width: of the figure, in inches.
        height: of the figure, in inches.

    Returns:
        The plotted tables; an empty one where there is no picture.
    """
    figure, axes = plt.subplots(1, len(pictures), figsize=(width, height), squeeze=False, layout="constrained")
    tables = [_drawn(picture, ax) for picture, ax in zip(pictures, axes.flat, strict=True)]
    sign(figure, caption(runs))
    return tables


def sign(figure: Figure, text: str) -> None:
    """Write below a figure where its numbers come from.

    Args:
        figure: with a constrained layout.
        text: as `caption` returns it.
    """
    wrapped = textwrap.fill(text, int(_LETTERS * figure.get_figwidth()))
    figure.supxlabel(wrapped, fontsize="x-small", color="0.4", x=0.01, ha="left")


def _drawn(picture: Callable[[Axes], pd.DataFrame], ax: Axes) -> pd.DataFrame:
    try:
        return picture(ax)
    except ValueError as error:
        ax.clear()
        ax.set_axis_off()
        text = textwrap.fill(f"Not drawn: {error}", _SENTENCE)
        ax.text(0.5, 0.5, text, ha="center", va="center", color="0.35", transform=ax.transAxes)
        return pd.DataFrame()
