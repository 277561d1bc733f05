"""What pages are used for."""

from __future__ import annotations

import json

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from kvbench.plots.looks import require_one, tidy


def named_by_page(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs or steps with the slots of a page in a column, and behind the strategy's name, where there are pages.

    Args:
        frame: as `kvbench.load` returns it, with or without steps.
        runs: those it belongs to, as `kvbench.load` returns them.
    """
    known = runs[runs["arm"] == "strategy"].set_index(["sweep", "run_id"])["config_json"].map(_page_tokens)
    mine = pd.MultiIndex.from_frame(frame[["sweep", "run_id"]])
    size = known.astype("Int64").reindex(mine).set_axis(frame.index).where(frame["arm"] == "strategy")
    names = frame["strategy"].where(size.isna(), frame["strategy"] + " " + size.astype("string"))
    return frame.assign(strategy=names, page_tokens=size)


def page_utilisation(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw which share of the slots of all pages taken holds entries, a line per length of the prompt.

    Args:
        runs: as `named_by_page` returns them, of one model and batch.
        ax: to draw on.

    Returns:
        The plotted table: prompt_tokens, page_tokens, utilisation (share).
    """
    paged = runs[(runs["status"] == "ok") & runs["page_utilisation"].notna()]
    require_one(paged, ["model", "batch_size", "new_tokens"])
    found = paged.groupby(["prompt_tokens", "page_tokens"])["page_utilisation"].min()
    table = found.rename("utilisation").reset_index()
    for tokens, line in table.groupby("prompt_tokens"):
        x, y = (line[name].to_numpy(dtype=float) for name in ("page_tokens", "utilisation"))
        ax.plot(x, y, marker="o", label=f"{tokens} tokens")
    sizes = sorted({int(size) for size in table["page_tokens"]})
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="slots of a page", ylabel="slots taken that hold entries", ylim=(0, 1.05))
    tidy(ax)
    ax.legend(frameon=False, title="prompt", loc="lower left")
    return table


def _page_tokens(config_json: str) -> int | None:
    """Return the slots of a page by a run's configuration; None where there are no pages."""
    found: int | None = json.loads(config_json)["strategy"].get("layout", {}).get("page_tokens")
    return found
