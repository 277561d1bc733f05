"""What memory buys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from kvbench.plots.looks import Look, looks, name_points, require_one, tidy
from kvbench.results.labels import BYTE_UNITS, best_unit, labels

_LINE_HEIGHT, _NAME_WIDTH = 0.05, 0.1  # of the picture, for keeping names apart
_MOST_BESIDE = 10  # points whose names stand beside them
_LITTLE, _MUCH = 0.05, 1.0  # nats: where the one is lost, the other has as much room

Measure = Literal["score", "nll_delta_nats", "kl_nats", "top1_agreement", "recall_key_value", "recall_passkey"]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """How a measure of quality is drawn.

    Args:
        title: of the axis.
        more_is_better: whether the best values are the large ones.
    """

    title: str
    more_is_better: bool


_AXES: dict[str, _Axis] = {
    "score": _Axis(title="score", more_is_better=True),
    "nll_delta_nats": _Axis(title="loss above the full cache (nats per token)", more_is_better=False),
    "kl_nats": _Axis(title="divergence from the full cache (nats per token)", more_is_better=False),
    "top1_agreement": _Axis(title="tokens on which the full cache agrees", more_is_better=True),
    "recall_key_value": _Axis(title="values recalled", more_is_better=True),
    "recall_passkey": _Axis(title="passkeys recalled", more_is_better=True),
}


def quality_against_memory(runs: pd.DataFrame, ax: Axes, *, column: Measure = "nll_delta_nats") -> pd.DataFrame:
    """Draw quality against the bytes of the cache, a point per strategy and budget, and the front of the best.

    Args:
        runs: as `kvbench.load` returns them, of one model, workload and lengths.
        ax: to draw on.
        column: which quality.

    Returns:
        The plotted table: strategy (its budget behind it), bytes, quality, is_on_front.
    """
    measured = runs[(runs["status"] == "ok") & runs["kv_allocated_bytes"].notna() & runs[column].notna()]
    require_one(
        measured, ["model", "weights", "dtype", "workload", "batch_size", "prompt_tokens", "query_aware", "evidence"]
    )
    axis = _AXES[column]
    named = measured.assign(label=labels(measured)).drop_duplicates("label")
    table = pd.DataFrame(
        {
            "strategy": named["label"],
            "bytes": named["kv_allocated_bytes"].astype("int64"),
            "quality": named[column].astype(float),
        }
    ).sort_values(["bytes", "quality"], ascending=[True, not axis.more_is_better], ignore_index=True)
    table["is_on_front"] = _is_on_front(table["quality"], more_is_better=axis.more_is_better)
    unit, size = best_unit([float(table["bytes"].max())], BYTE_UNITS)
    points = table.assign(x=table["bytes"] / size)
    _set_axes(points, ax, axis)
    ax.set(xlabel=f"cache allocated ({unit})", ylabel=axis.title)
    _draw(points, looks(named), ax)
    return table


def _set_axes(points: pd.DataFrame, ax: Axes, axis: _Axis) -> None:
    tidy(ax)
    ax.set_xlim(0, 1.3 * points["x"].max())  # room for the names
    if axis.more_is_better:
        ax.set_ylim(0, 1.08)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    else:
        top, bottom = points["quality"].max(), min(0.0, points["quality"].min())
        room = 0.08 * (top - bottom) or 0.1
        ax.set_ylim(bottom - room, top + room)
        ax.axhline(0, color="0.8", linewidth=1, zorder=0)
        if top > _MUCH:
            ax.set_yscale("symlog", linthresh=_LITTLE)
            ax.set_ylim(bottom - 0.2 * _LITTLE, 1.5 * top)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _is_on_front(quality: pd.Series, *, more_is_better: bool) -> pd.Series:
    """Return whether nothing as small or smaller is as good or better; the rows come in order of size."""
    best = quality.cummax() if more_is_better else quality.cummin()
    return best.diff().fillna(1.0) != 0


def _draw(points: pd.DataFrame, found: Mapping[str, Look], ax: Axes) -> None:
    front = points[points["is_on_front"]]
    ax.step(front["x"], front["quality"], where="post", color="0.75", zorder=1, label="best for its size")
    for name, x, y in points[["strategy", "x", "quality"]].itertuples(index=False):
        ax.scatter(x, y, color=found[name].color, marker=found[name].marker, s=45, zorder=3)
    ax.legend(frameon=False)
    if len(points) > _MOST_BESIDE:
        name_points(points.rename(columns={"quality": "y"}), {name: look.color for name, look in found.items()}, ax)
        return
    for name, x, y, text_y in _apart(points, ax)[["strategy", "x", "quality", "text_y"]].itertuples(index=False):
        ax.annotate(
            name,
            (x, y),
            xytext=(x + 0.03 * ax.get_xlim()[1], text_y),
            color=found[name].color,
            fontsize="small",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": found[name].color, "linewidth": 0.5},
        )


def _apart(points: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Return the points with heights for their names, so that names of neighbours do not lie on each other."""
    bottom, top = ax.get_ylim()
    line = _LINE_HEIGHT * (top - bottom)
    column = (points["x"] / (_NAME_WIDTH * ax.get_xlim()[1])).round()
    heights = pd.Series(index=points.index, dtype=float)
    for _, near in points.groupby(column):
        low = near["quality"].sort_values()
        steps = pd.Series(range(len(low)), index=low.index) * line
        heights[low.index] = (low - steps).cummax() + steps + 0.6 * line  # above the front's line
    return points.assign(text_y=heights)
