"""Which positions a cache holds."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

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
    if held.empty:
        raise ValueError("nothing to draw: no entry is held.")
    heads = held[["step", "layer", "head"]].drop_duplicates().groupby(rows).size()
    counts = held.drop_duplicates(["step", "layer", "head", "position"]).groupby([rows, "position"]).size()
    table = counts.div(heads, level=rows).rename("share").reset_index()
    lines, places = np.unique(table[rows], return_inverse=True)
    picture = np.zeros((len(lines), int(table["position"].max()) + 1))
    picture[places, table["position"]] = table["share"]
    image = ax.imshow(picture, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1)
    ax.set(xlabel="position (tokens)", ylabel=_TITLES[rows])
    shown = np.linspace(0, len(lines) - 1, min(len(lines), 9)).round().astype(int)
    ax.set_yticks(shown, [str(line) for line in lines[shown]])
    ax.figure.colorbar(image, ax=ax, label="share of heads that hold it")
    return table
