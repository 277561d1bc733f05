"""What pictures share: colours that colour-blind readers tell apart, and a refusal to mix what does not compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# Okabe and Ito without their yellow, which is faint on white; black is the baseline's
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")
_NUMBER_WIDTH = 0.08  # of the picture
_RATIOS = 64  # between the least and the most, up to which powers of two are marked


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one strategy with one budget is drawn.

    Args:
        color: the strategy's.
        marker: the strategy's; with the colour it is unlike any other's.
        linestyle: tells the budgets of a strategy apart.
    """

    color: str
    marker: str
    linestyle: str


def looks(names: pd.DataFrame) -> dict[str, Look]:
    """Return a look for each label, the baseline's first and the others in alphabetical order.

    Args:
        names: strategy and label of everything drawn.
    """
    found = {}
    order = [name for name in sorted(set(names["strategy"])) if name != "baseline"]
    pairs = sorted(set(names[["strategy", "label"]].itertuples(index=False, name=None)))
    for strategy, label in sorted(pairs, key=lambda pair: pair[0] != "baseline"):
        if strategy == "baseline":
            found[label] = Look(color="black", marker="*", linestyle="-")
            continue
        index, budget = (
            order.index(strategy),
            [other for other in pairs if other[0] == strategy].index((strategy, label)),
        )
        color, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        found[label] = Look(color=color, marker=marker, linestyle=_LINES[budget % len(_LINES)])
    return found


def draw_lines(table: pd.DataFrame, x: str, y: str, found: Mapping[str, Look], ax: Axes) -> None:
    """Draw a line per label, the first the thickest, so that lines under others still show.

    Args:
        table: with a column strategy that holds labels.
        x: column across.
        y: column upwards.
        found: look of each label.
        ax: to draw on.
    """
    for index, (label, look) in enumerate(found.items()):
        line = table[table["strategy"] == label]
        thickness = 1 + 2.5 * (1 - index / len(found))
        ax.plot(
            line[x].to_numpy(dtype=float),
            line[y].to_numpy(dtype=float),
            label=label,
            color=look.color,
            marker=look.marker,
            linestyle=look.linestyle,
            linewidth=thickness,
            markersize=4 + 2 * thickness,
            markerfacecolor="none",
        )


def name_points(points: pd.DataFrame, colors: Mapping[str, str], ax: Axes) -> None:
    """Write names in a column on the right, in order of height, each with a line to its point.

    Args:
        points: strategy, x and y of each.
        colors: of names.
        ax: where they are drawn.
    """
    ordered = points.sort_values(["y", "x"], ascending=[False, True])
    for number, (name, x, y) in enumerate(ordered[["strategy", "x", "y"]].itertuples(index=False)):
        line = {"arrowstyle": "-", "color": colors[name], "linewidth": 0.4, "alpha": 0.7, "relpos": (0.0, 0.5)}
        ax.annotate(
            name,
            (x, y),
            xytext=(1.08, 1 - (number + 0.5) / len(ordered)),
            textcoords="axes fraction",
            color=colors[name],
            fontsize="small",
            verticalalignment="center",
            arrowprops=line,
        )


def require_one(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse to draw together what cannot be compared.

    Args:
        table: about to be drawn.
        columns: in which all rows must agree.
    """
    if table.empty:
        raise ValueError("nothing to draw: no row has these numbers. Look at the columns 'status' and 'reason'.")
    for name in columns:
        kinds = table[name].drop_duplicates().tolist()
        if len(kinds) > 1:
            raise ValueError(f"one {name} to a picture; got {', '.join(map(str, kinds))}. Keep the rows of one.")


def caption(runs: pd.DataFrame) -> str:
    """Return a line that says where numbers come from: models, devices, commits.

    Args:
        runs: as `kvbench.load` returns them.
    """
    ran = runs[runs["status"] == "ok"]
    if ran.empty:
        return "no run went well"
    models = ran["model"] + " (" + ran["weights"] + ", " + ran["dtype"] + ")"
    threads = ran["num_threads"].astype("string") + ran["num_threads"].map({1: " thread"}).fillna(" threads")
    devices = ran["device_name"] + ", " + threads
    changes = ran["git_dirty"].map({True: " with changes"}).fillna("")
    commits = (ran["git_commit"].str[:7] + changes).replace("", "an installed kvbench")
    said = [", ".join(column.dropna().unique()) for column in (models, devices, commits)]
    return f"{said[0]} on {said[1]}; commit {said[2] or 'unknown'}"


def tokens_axis(ax: Axes, tokens: pd.Series) -> None:
    """Mark the lengths that were measured on the x axis, as far as their numbers fit beside each other.

    The axis is linear: cost that grows with every token is to look like it.

    Args:
        ax: whose x axis.
        tokens: lengths drawn.
    """
    marks: list[int] = []
    lengths = sorted({int(value) for value in tokens}, reverse=True)
    for length in lengths:
        if not marks or marks[-1] - length >= _NUMBER_WIDTH * lengths[0]:
            marks.append(length)
    ax.set_xticks(marks)
    ax.set_xlim(0, 1.05 * lengths[0])


def log_axis(ax: Axes, side: Literal["x", "y"], values: pd.Series, *, over_one: bool = False) -> None:
    """Give each doubling as much room as any other, with whole numbers for marks.

    Args:
        ax: whose axis.
        side: which of the two.
        values: drawn along it.
        over_one: whether they are ratios: then 1 is on the axis, and a half and the double as well.
    """
    drawn = values[values > 0].tolist() + ([0.6, 1.7] if over_one else [])
    low, high = (0.85 * min(drawn), 1.18 * max(drawn)) if drawn else (0.5, 2.0)
    digits = (1, 2, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    if over_one and high / low < _RATIOS:
        marks = [2.0**exponent for exponent in range(-10, 10)]
    kept = [mark for mark in marks if low <= mark <= high]
    axis = ax.xaxis if side == "x" else ax.yaxis
    (ax.set_xscale if side == "x" else ax.set_yscale)("log")
    axis.set_major_locator(FixedLocator(kept))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    (ax.set_xlim if side == "x" else ax.set_ylim)(low, high)


def tidy(ax: Axes) -> None:
    """Leave the frame out and put a faint grid behind the numbers.

    Args:
        ax: to tidy.
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)


def legend(ax: Axes) -> None:
    """Put the legend beside the picture, where it hides nothing.

    Args:
        ax: whose lines have labels.
    """
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
