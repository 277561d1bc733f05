"""Where in a context what is asked for is still found."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from kvbench.plots.looks import require_one

_COLOURS = "cividis"  # from dark to light, for eyes that see fewer colours and for print
_DARK = 0.45  # below which numbers are white
_LEVEL = 6  # lengths whose names fit beside each other


def needle_map(samples: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the mean score in each cell of a grid: context lengths across, depths downwards.

    Args:
        samples: answers of one arm of one strategy to a workload of lengths and depths (niah, passkey), with a column
            each for arm, context_tokens, depth and score; those without a depth are left out.
        ax: to draw on.

    Returns:
        The plotted table: depth (share), context_tokens, score (mean), samples (of the cell).
    """
    placed = samples[samples["depth"].notna()]
    alike = ("arm", "strategy", "budget_unit", "budget_amount", "model", "weights", "workload", "query_aware")
    require_one(placed, [name for name in alike if name in placed])
    cells = placed.groupby(["depth", "context_tokens"])["score"]
    table = cells.agg(score="mean", samples="count").reset_index()
    grid = table.pivot_table(index="depth", columns="context_tokens", values="score")
    mesh = ax.pcolormesh(grid.to_numpy(dtype=float), cmap=_COLOURS, vmin=0, vmax=1, edgecolors="white", linewidth=1)
    rows, columns = ([list(part).index(value) + 0.5 for value in part] for part in (grid.index, grid.columns))
    for depth, tokens, score in table[["depth", "context_tokens", "score"]].itertuples(index=False):
        place = columns[list(grid.columns).index(tokens)], rows[list(grid.index).index(depth)]
        ax.annotate(f"{100 * score:.0f}", place, color="white" if score < _DARK else "black", ha="center", va="center")
    ax.set_xticks(columns, [f"{int(tokens):,}" for tokens in grid.columns])
    ax.tick_params("x", rotation=0 if len(columns) <= _LEVEL else 30)
    ax.set_yticks(rows, [f"{depth:.0%}" for depth in grid.index])
    ax.set(xlabel="context (tokens)", ylabel="depth of the needle")
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(mesh, ax=ax, label="mean score", format=PercentFormatter(1, decimals=0))
    return table
