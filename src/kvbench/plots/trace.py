"""Which positions a cache holds, and what attention it loses with the others."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

_TITLES = {"step": "decode step", "layer": "layer"}


def held_positions(held: pd.DataFrame, ax: Axes, *, rows: Literal["step", "layer"] = "step") -> pd.DataFrame:
    """Draw which positions are held, by step or by layer: the darker, the more heads hold one.

    Args:
        held: one row per entry: step, layer, head, position.
        ax: to draw on.
        rows: what goes down the picture; over the other one shares are averaged.

    Returns:
        The plotted table: step or layer, position, share (of heads that hold it).
    """
    table = shares(held, rows)
    lines, places = np.unique(table[rows], return_inverse=True)
    picture = np.zeros((len(lines), int(table["position"].max()) + 1))
    picture[places, table["position"]] = table["share"]
    image = ax.imshow(picture, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1)
    ax.set(xlabel="position (tokens)", ylabel=_TITLES[rows])
    _mark(ax, lines)
    ax.figure.colorbar(image, ax=ax, label="share of heads that hold it", format=PercentFormatter(1, decimals=0))
    return table


def shares(held: pd.DataFrame, rows: Literal["step", "layer"]) -> pd.DataFrame:
    """Return by which share of heads each position is held, by step or by layer, averaged over the other.

    Args:
        held: one row per entry: step, layer, head, position.
        rows: which of the two.

    Returns:
        A table: step or layer, position, share; only of positions that any head holds.
    """
    if held.empty:
        raise ValueError("nothing to draw: no entry is held.")
    heads = held[["step", "layer", "head"]].drop_duplicates().groupby(rows).size()
    counts = held.drop_duplicates(["step", "layer", "head", "position"]).groupby([rows, "position"]).size()
    return counts.div(heads, level=rows).rename("share").reset_index()


def attention_lost(lost: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw how much of the full cache's attention goes to what is no longer held: the darker, the more.

    Args:
        lost: step, layer and the share that is lost.
        ax: to draw on.

    Returns:
        The plotted table: a row per layer, a column per step, shares in them.
    """
    if lost.empty:
        raise ValueError("nothing to draw: no token was decoded.")
    table = lost.pivot(index="layer", columns="step", values="lost")
    first, last = table.columns[0] - 0.5, table.columns[-1] + 0.5
    image = ax.imshow(
        table.to_numpy(),
        aspect="auto",
        interpolation="nearest",
        cmap="Oranges",
        vmin=0,
        vmax=1,
        extent=(first, last, len(table) - 0.5, -0.5),
    )
    ax.set(xlabel="decode step", ylabel="layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark(ax, table.index.to_numpy())
    ax.figure.colorbar(image, ax=ax, label="share of attention lost", format=PercentFormatter(1, decimals=0))
    return table


def _mark(ax: Axes, lines: np.ndarray) -> None:
    """Name some of the lines of a picture, from top to bottom."""
    shown = np.linspace(0, len(lines) - 1, min(len(lines), 9)).round().astype(int)
    ax.set_yticks(shown, [str(line) for line in lines[shown]])
