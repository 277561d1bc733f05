"""A line of a picture for each method, below those of its kind."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from kvbench.plots.looks import Look, looks, require_one
from kvbench.results.labels import labels

REFERENCE = "reference"  # whatever has no category
_OF_THE_BASELINE = ("kv_allocated_bytes", "decode_p50_ms", "tokens_per_s")
_ONE_METHOD = "0.94"  # behind names of one method


def method_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each method, in order of kinds and of runs, with its baseline beside it.

    Args:
        runs: as `kvbench.load` returns them, of one model and device, with a column `category`.

    Returns:
        The strategies' rows, the last of each, with `label`, `kind` (its category, and its workload where that is not
        what most have), `place` (its line from above, a line kept free above each kind), `same_as` (another name of the
        same configuration, or "") and the baseline's numbers in columns that end in `_full`.
    """
    mine = runs[runs["arm"] == "strategy"]
    require_one(mine[mine["status"] == "ok"], ["model", "device_name"])
    mine = mine.assign(label=labels(mine)).drop_duplicates(["label", "workload"], keep="last")
    theirs = runs[runs["arm"] == "baseline"].set_index(["sweep", "run_id"])[list(_OF_THE_BASELINE)]
    mine = mine.join(theirs.add_suffix("_full"), on=["sweep", "run_id"]).reset_index(drop=True)
    usual = mine["workload"].mode()[0]
    other = mine["workload"].where(mine["workload"] != usual, "").map(lambda name: f", {name}" if name else "")
    mine["kind"] = mine["category"].fillna(REFERENCE).replace("", REFERENCE) + other.astype("string")
    mine[[f"{name}_full" for name in _OF_THE_BASELINE]] = mine.filter(like="_full").where(mine["status"] == "ok")
    kinds = {kind: number for number, kind in enumerate(mine["kind"].unique())}
    order = mine["kind"].map(kinds).astype(int).sort_values(kind="stable").index
    mine = mine.loc[order].reset_index(drop=True)
    mine["place"] = mine.index + mine["kind"].map(kinds).astype(int) + 1
    names = mine.groupby("config_json")["strategy"]
    mine["same_as"] = names.shift(1).fillna(names.shift(-1)).fillna("")
    return mine


def looks_of_kinds(rows: pd.DataFrame) -> dict[str, Look]:
    """Return a look for each kind, the references' that of a baseline."""
    kinds = pd.DataFrame({"strategy": rows["kind"].replace(REFERENCE, "baseline"), "label": rows["kind"]})
    return looks(kinds)


def name_rows(rows: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Write the methods' names on the left of axes side by side, below the names of their kinds.

    Rows that share their configuration are shaded: what lies between them is noise. Where a row did not go well its
    status stands in place of its numbers.

    Args:
        rows: as `method_rows` returns them.
        axes: the first of which has the names.
    """
    found = looks_of_kinds(rows)
    heads = rows.groupby("kind", sort=False)["place"].min() - 1
    for ax in axes:
        ax.set_ylim(rows["place"].max() + 0.7, -0.6)
        ax.set_yticks([*rows["place"], *heads], ["" for _ in range(len(rows) + len(heads))])
        ax.tick_params("y", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.grid(axis="x", color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        for place in rows.loc[rows["same_as"] != "", "place"]:
            ax.axhspan(place - 0.5, place + 0.5, color=_ONE_METHOD, linewidth=0, zorder=0)
        for place, status in rows.loc[rows["status"] != "ok", ["place", "status"]].itertuples(index=False):
            across = ax.get_yaxis_transform()
            said = status.replace("_", " ")
            ax.text(0.02, place, said, transform=across, va="center", color="0.45", style="italic", fontsize="small")
    axes[0].set_yticks([*rows["place"], *heads], [*rows["label"], *heads.index])
    for text, kind in zip(axes[0].get_yticklabels()[len(rows) :], heads.index, strict=True):
        text.set(fontweight="bold", color=found[kind].color, fontsize="small")


def times_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return time over the baseline's: the paired ratio with its interval, or that of medians where there is none."""
    ratio = rows["ratio"].astype(float)
    medians = rows["decode_p50_ms"].astype(float) / rows["decode_p50_ms_full"].astype(float)
    return pd.DataFrame(
        {
            "time": ratio.fillna(medians),
            "low": rows["ratio_low"].astype(float),
            "high": rows["ratio_high"].astype(float),
            "is_paired": ratio.notna(),
        }
    )
