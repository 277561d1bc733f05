"""Many methods beside each other: time, bytes, and what is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from kvbench.plots.looks import Look, legend, log_axis, name_points, require_one
from kvbench.plots.rows import looks_of_kinds, method_rows, name_rows, times_of
from kvbench.results.labels import BYTE_UNITS, best_unit

_Z95 = 1.96  # standard errors of a 95% interval
_LITTLE_LOST = 0.05  # nats per token
_LOSSES = (0, 0.05, 0.2, 1, 5, 20)  # marked
EVERY = ("strategy", "kind")
_BAR: Mapping[str, Any] = {"marker": "|", "ms": 11}
_TIME, _BYTES = "time over the full cache's", "bytes of the cache over the full cache's"


def step_times(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the median time of a decode step of each method, a line up to the 90th percentile, and its own baseline's.

    Args:
        runs: as `method_rows` takes them.
        ax: to draw on.

    Returns:
        The plotted table: strategy, kind, p50, p90, baseline_p50 (ms).
    """
    rows, found, table = _lines(runs)
    columns = {"p50": "decode_p50_ms", "p90": "decode_p90_ms", "baseline_p50": "decode_p50_ms_full"}
    table = table.assign(**{name: rows[column].astype(float) for name, column in columns.items()})
    for place, (_, kind, p50, p90, full) in zip(rows["place"], table.itertuples(index=False), strict=True):
        color = found[kind].color
        ax.plot([p50, p90], [place, place], color=color, linewidth=1.5)
        ax.plot(full, place, marker="|", color="black", markersize=11, linestyle="none")
        ax.plot(p50, place, marker=found[kind].marker, color=color, linestyle="none")
    name_rows(rows, [ax])
    log_axis(ax, "x", pd.concat([table["p50"], table["p90"], table["baseline_p50"]]))
    ax.set(xlabel="time per decode step (ms)")
    _explain(ax, {"median": {"marker": "o"}, "to the 90th percentile": {"ls": "-"}, "full cache, same run": _BAR})
    return table


def bytes_held(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the bytes that each method's cache allocates, and the peak of its process above the idle model.

    Args:
        runs: as `method_rows` takes them.
        ax: to draw on.

    Returns:
        The plotted table: strategy, kind, kv, baseline_kv, peak (bytes).
    """
    rows, found, table = _lines(runs)
    columns = {"kv": "kv_allocated_bytes", "baseline_kv": "kv_allocated_bytes_full", "peak": "peak_bytes"}
    table = table.assign(**{name: rows[column].astype("Int64") for name, column in columns.items()})
    unit, size = best_unit(table["baseline_kv"].dropna().astype(float).tolist(), BYTE_UNITS)
    numbers = table[list(columns)].astype(float) / size
    for place, kind, kv, full in zip(rows["place"], rows["kind"], numbers["kv"], numbers["baseline_kv"], strict=True):
        ax.plot([kv, full], [place, place], color=found[kind].color, linewidth=1.5)
        ax.plot(kv, place, marker=found[kind].marker, color=found[kind].color, ls="none")
    ax.plot(numbers["baseline_kv"], rows["place"], **_BAR, color="black", ls="none")
    ax.plot(numbers["peak"], rows["place"], marker="o", mfc="white", color="0.35", ls="none", markersize=5)
    name_rows(rows, [ax])
    log_axis(ax, "x", numbers.stack())
    ax.set(xlabel=f"memory ({unit})")
    peak = {"marker": "o", "mfc": "white", "ms": 5}
    marks = {"cache allocated": {"marker": "s"}, "full cache, same run": _BAR, "peak above the idle model": peak}
    _explain(ax, marks)
    return table


def trade_off(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the time of a step against the bytes of the cache, both over the full cache's, with what is lost.

    Args:
        runs: as `method_rows` takes them.
        ax: to draw on.

    Returns:
        The plotted table: strategy, kind, bytes (share), time, low, high (ratio), is_paired, loss (nats per token).
    """
    rows, found, table = _lines(runs)
    share = rows["kv_allocated_bytes"].astype(float) / rows["kv_allocated_bytes_full"].astype(float)
    table = pd.concat([table.assign(bytes=share), times_of(rows)], axis=1)
    table["loss"] = rows["nll_delta_nats"].astype(float)
    table = table.dropna(subset=["bytes", "time"]).reset_index(drop=True)
    require_one(table.assign(one=0), ["one"])
    for _, point in table.iterrows():
        _draw_point(point, found[point["kind"]], ax)
    ax.axhline(1, color="0.8", linewidth=1, zorder=0)
    ax.axvline(1, color="0.8", linewidth=1, zorder=0)
    log_axis(ax, "x", table["bytes"], over_one=True)
    log_axis(ax, "y", table[["time", "low", "high"]].stack(), over_one=True)
    ax.set(xlabel=_BYTES, ylabel=_TIME)
    ax.spines[["top", "right"]].set_visible(False)
    colors = {label: found[kind].color for label, kind in table[list(EVERY)].itertuples(index=False)}
    name_points(table.rename(columns={"bytes": "x", "time": "y"}), colors, ax)
    _explain(
        ax,
        {
            f"loses less than {_LITTLE_LOST} nats": {"marker": "o"},
            "loses more": {"marker": "o", "mfc": "white"},
            "not known, or untrained": {"marker": "x"},
        },
    )
    return table


def by_category(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw for each kind of methods the median of bytes and of times over the full cache's, and each method's own.

    Args:
        runs: as `method_rows` takes them.
        ax: to draw on.

    Returns:
        The plotted table: kind, measure (bytes or time), median, low, high (least and most), methods.
    """
    rows = method_rows(runs)
    share = rows["kv_allocated_bytes"].astype(float) / rows["kv_allocated_bytes_full"].astype(float)
    values = pd.DataFrame({"kind": rows["kind"], "bytes": share, "time": times_of(rows)["time"]})
    flat = values.melt("kind", var_name="measure").dropna()
    table = flat.groupby(["kind", "measure"], sort=False)["value"].agg(["median", "min", "max", "count"])
    table = table.set_axis(["median", "low", "high", "methods"], axis=1).reset_index()
    kinds = list(values["kind"].unique())
    for offset, (measure, color, hatch) in ((-0.2, ("bytes", "#56B4E9", "")), (0.2, ("time", "#E69F00", "///"))):
        mine = table[table["measure"] == measure]
        places = [kinds.index(kind) + offset for kind in mine["kind"]]
        ax.barh(places, mine["median"] - 1, left=1, height=0.36, color=color, hatch=hatch, ec="white", label=measure)
        ax.hlines(places, mine["low"], mine["high"], color="0.3", linewidth=1)
        own = flat[flat["measure"] == measure]
        ax.plot(own["value"], [kinds.index(kind) + offset for kind in own["kind"]], "o", color="black", markersize=3)
    ax.axvline(1, color="0.5", linewidth=1)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()
    ax.tick_params("y", length=0)
    log_axis(ax, "x", flat["value"], over_one=True)
    ax.set(xlabel="over the full cache's: median of the methods, each of them a dot")
    ax.spines[["top", "right", "left"]].set_visible(False)
    legend(ax)
    return table


_OF_ALL = ("time", "bytes")
_PANELS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # titles, and ends of intervals
    "time": ("time of a step\n(of the full cache's)", ("low", "high")),
    "bytes": ("bytes of the cache\n(of the full cache's)", ()),
    "loss": ("loss above the full cache\n(nats per token)", ()),
    "recall": ("values recalled\n", ("recall_low", "recall_high")),
}


def overview(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw time, bytes, loss and recall of each method, in panels that share the methods' names.

    Loss and recall have a panel where some method has them: with random weights there are none.

    Args:
        runs: as `method_rows` takes them.
        ax: in whose place the panels stand.

    Returns:
        The plotted table: strategy, kind, time, low, high, is_paired, bytes, loss, recall, recall_low, recall_high.
    """
    rows, found, table = _lines(runs)
    share = rows["kv_allocated_bytes"].astype(float) / rows["kv_allocated_bytes_full"].astype(float)
    recall = rows["recall_key_value"].astype(float)
    low, high = _wilson(recall, rows["recall_samples"].astype(float))
    table = pd.concat([table, times_of(rows)], axis=1)
    loss = rows["nll_delta_nats"].astype(float)
    table = table.assign(bytes=share, loss=loss, recall=recall, recall_low=low, recall_high=high)
    panels = {name: panel for name, panel in _PANELS.items() if name in _OF_ALL or table[name].notna().any()}
    axes = dict(zip(panels, _divided(ax, len(panels)), strict=True))
    for name, (title, ends) in panels.items():
        for place, (_, point) in zip(rows["place"], table.iterrows(), strict=True):
            look = found[point["kind"]]
            face = "white" if name == "time" and not point["is_paired"] else look.color
            axes[name].plot(point[name], place, marker=look.marker, color=look.color, mfc=face, ls="none", markersize=5)
            if ends:
                axes[name].plot(point[list(ends)], [place, place], color=look.color, linewidth=1.5)
        axes[name].set_xlabel(title)
    name_rows(rows, list(axes.values()))
    for name in _OF_ALL:
        axes[name].axvline(1, color="0.5", linewidth=1, zorder=0)
    log_axis(axes["time"], "x", table[["time", "low", "high"]].stack(), over_one=True)
    if "loss" in axes:
        _loss_axis(axes["loss"], loss)
    for name in axes.keys() & {"bytes", "recall"}:
        axes[name].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes[name].set_xlim(-0.04, max(1.05, axes[name].get_xlim()[1]))
    _explain(axes["time"], {"of pairs": {"marker": "o"}, "of medians": {"marker": "o", "mfc": "white"}})
    return table


def _lines(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Look], pd.DataFrame]:
    """Return a row for each method, the looks of their kinds, and the table that a picture returns, to be filled."""
    rows = method_rows(runs)
    return rows, looks_of_kinds(rows), rows[["label", "kind"]].set_axis(list(EVERY), axis=1)


def _loss_axis(ax: Axes, loss: pd.Series) -> None:
    """Give little losses as much room as large ones."""
    ax.set_xscale("symlog", linthresh=_LITTLE_LOST)
    ax.set_xlim(min(-0.01, 1.2 * loss.min()), max(0.1, 1.5 * loss.max()))
    ax.xaxis.set_major_locator(FixedLocator([mark for mark in _LOSSES if mark <= ax.get_xlim()[1]]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _divided(ax: Axes, count: int) -> list[Axes]:
    """Return axes side by side in the place of some, which are gone."""
    figure, spec = ax.figure, ax.get_subplotspec()
    assert spec is not None
    ax.remove()
    parts = spec.subgridspec(1, count)
    return [figure.add_subplot(parts[0, number]) for number in range(count)]


def _explain(ax: Axes, marks: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what marks mean above the picture."""
    plain = {"color": "0.2", "ls": "none"}
    handles = [Line2D([], [], **{**plain, **mark}, label=label) for label, mark in marks.items()]
    ax.legend(handles=handles, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, fontsize="small")


def _draw_point(point: pd.Series, look: Look, ax: Axes) -> None:
    marker = "x" if pd.isna(point["loss"]) else look.marker
    face = "white" if point["loss"] > _LITTLE_LOST else look.color
    ax.plot([point["bytes"]] * 2, [point["low"], point["high"]], color=look.color, linewidth=1)
    ax.plot(point["bytes"], point["time"], marker=marker, color=look.color, mfc=face, ls="none", markersize=7)


def _wilson(share: pd.Series, count: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return the ends of the 95% interval of a share of so many samples (Wilson's)."""
    spread = _Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z95 * np.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return middle - half, middle + half
