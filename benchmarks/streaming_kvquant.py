"""Streaming KVQuant: what each part gives and costs, and what a search finds, in loss and bits of a number.

    python run.py +experiment=streaming_kvquant_ablation
    python run.py +experiment=streaming_kvquant_search
    python -m benchmarks.streaming_kvquant --out benchmarks/results/streaming_kvquant

Losses and bytes are the same whatever else the machine does; times are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

import kvbench
from benchmarks.family import markdown
from kvbench import plots
from kvbench.plots.looks import name_points
from kvbench.results.labels import bytes_text

ABLATION, SEARCH = "streaming_kvquant_ablation", "streaming_kvquant_search"
KEPT = ["bits_per_element", "kv_allocated_bytes", "nll_delta_nats", "recall_key_value", "key_error", "value_error"]
BITS, LOSS = KEPT[0], KEPT[2]
LINEAR = 0.01  # nats below which the axis of losses is linear


def rows_of(folder: Path) -> pd.DataFrame:
    """Return the strategy's rows below a folder, and what was chosen; nothing where there are none."""
    if not any(folder.rglob("run.parquet")):
        return pd.DataFrame(columns=["row", *KEPT])
    runs = kvbench.load(folder)
    mine = runs[(runs["arm"] == "strategy") & (runs["status"] == "ok")]
    return mine.assign(row=mine["overrides"].map(chosen)).drop_duplicates("row")


def chosen(overrides: str) -> str:
    """Return what tells a row from the others of its sweep."""
    words = [word.partition("=") for word in overrides.split()]
    row = next((value for name, _, value in words if name == "+row"), "")
    codec = (f"{name.rpartition('.')[2]}={float(value):.3g}" for name, _, value in words if "strategy.codec." in name)
    return row or " ".join(codec)


def unbeaten(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that no other beats in loss and bits, by bits."""
    ordered = rows.sort_values([BITS, LOSS])
    return ordered[ordered[LOSS] < ordered[LOSS].cummin().shift(fill_value=float("inf"))]


def lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what people read."""
    return pd.DataFrame(
        {
            "row": rows["row"],
            "bits per number": rows[BITS].map("{:.2f}".format),
            "KV": rows["kv_allocated_bytes"].map(bytes_text),
            "loss": rows[LOSS].map("{:+.4f}".format),
            "recall": rows["recall_key_value"].map("{:.1%}".format),
        }
    )


def draw(ablation: pd.DataFrame, search: pd.DataFrame, ax: Axes) -> None:
    """Draw loss against bits: the rows by name, the search's trials, and the line of those that no other beats."""
    if len(search):
        ax.scatter(search[BITS], search[LOSS], s=14, color="0.6", label="trials of the search")
        best = unbeaten(search)
        ax.plot(best[BITS], best[LOSS], color="C0", marker="o", markersize=4, label="that no other beats")
    packed = ablation[ablation["row"] != "baseline"]
    ax.scatter(packed[BITS], packed[LOSS], s=28, color="C1", marker="s", label="rows of the ablation", zorder=3)
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.set(xlabel="bits per number", ylabel="loss above the full cache's (nats per token)")
    ax.set_yscale("symlog", linthresh=LINEAR)
    lost = pd.concat([packed[LOSS], search[LOSS]]) if len(search) else packed[LOSS]
    ax.set_ylim(min(0.0, lost.min()) - LINEAR / 4, 2 * lost.max())
    names = packed["row"].str.removeprefix("streaming_").str.replace("_", " ")
    points = pd.DataFrame({"strategy": names, "x": packed[BITS], "y": packed[LOSS]})
    name_points(points, dict.fromkeys(names, "C1"), ax)
    ax.legend(frameon=False)


def main() -> None:
    """Write the rows, the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the experiments")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    ablation, search = rows_of(arguments.runs / ABLATION), rows_of(arguments.runs / SEARCH)
    for name, rows in (("ablation", ablation), ("search", search)):
        if len(rows):
            rows[["row", "run_id", "config_hash", "git_commit", *KEPT]].to_parquet(arguments.out / f"{name}.parquet")
    text = markdown(lines(ablation))
    if len(search):
        text += f"\nOf {len(search)} trials of the search, those that no other beats:\n\n"
        text += markdown(lines(unbeaten(search)))
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    figure, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    draw(ablation, search, ax)
    plots.sign(figure, plots.caption(kvbench.load(arguments.runs / ABLATION)))
    figure.savefig(arguments.out / "loss.png", dpi=130)
    print(text, end="")


if __name__ == "__main__":
    main()
