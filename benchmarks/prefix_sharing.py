"""How much sooner prompts are read that begin alike: first come, first served, over prefix-aware, by what is shared.

    python -m benchmarks.prefix_sharing --out benchmarks/results/prefix_sharing    # on a machine that does nothing else

Requests have prompts of one length and ask for one token; a share p of each prompt is that of all. Both serve the same
requests, in turn in one process. The ceiling is N / (p + N (1 - p)): every shared token computed once. The goal is the
ceiling over 1.1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib import ticker

import kvbench
from benchmarks.family import markdown
from benchmarks.tables import keep

COLUMNS = (
    "run_id", "arm", "status", "model", "git_commit", "device_name", "num_threads", "requests", "sharing", "serve_s",
    "ratio", "ratio_low", "ratio_high", "aa_ratio", "rounds", "dirty_share", "prefill_tokens_computed",
    "prefill_tokens_reused", "kv_used_bytes", "same_share", "page_utilisation",
)  # fmt: skip


def measured(model: str, requests: int, tokens: int, share: float, settings: list[str]) -> pd.DataFrame:
    """Return both arms' rows of requests that share so much of their prompts."""
    shared = round(share * tokens)
    tree = f"[[1,{shared}]]" if shared else "[]"
    asked = [
        "strategy=scheduling_prefix",
        f"model={model}",
        "quality=none",
        f"workload.num_requests={requests}",
        f"workload.tree={tree}",
        f"workload.own_tokens={tokens - shared}",
        "workload.own_spread=0",
        "workload.new_tokens=1",
        "workload.new_spread=0",
    ]
    found = kvbench.run([*asked, *settings]).rows
    return found[list(COLUMNS)].assign(share=share, tokens=tokens)


def lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what people read: a line for each number of requests and share."""
    made = []
    for _, row in rows[rows["arm"] == "strategy"].sort_values(["model", "requests", "share"]).iterrows():
        count, share = row["requests"], row["share"]
        ceiling = count / (share + count * (1 - share))
        low, high = 1 / row["ratio_high"], 1 / row["ratio_low"]
        made.append(
            {
                "model": row["model"],
                "requests": str(count),
                "shared": f"{share:.0%}",
                "sharing": f"{row['sharing']:.2f}",
                "times faster": f"{1 / row['ratio']:.2f} [{low:.2f}, {high:.2f}]",
                "ceiling": f"{ceiling:.2f}",
                "of the ceiling": f"{1 / row['ratio'] / ceiling:.0%}",
                "goal": f"{ceiling / 1.1:.2f}",
                "same tokens": f"{row['same_share']:.0%}",
            }
        )
    return pd.DataFrame(made)


def draw(rows: pd.DataFrame, file: Path) -> None:
    """Draw the ratio against the sharing factor, beside the ceiling."""
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    mine = rows[rows["arm"] == "strategy"].sort_values("sharing")
    for (model, count), each in mine.groupby(["model", "requests"]):
        gain = 1 / each["ratio"]
        spread = [gain - 1 / each["ratio_high"], 1 / each["ratio_low"] - gain]
        axes.errorbar(each["sharing"], gain, yerr=spread, marker="o", capsize=3, label=f"{model}, {count} requests")
    most = mine["sharing"].max()
    axes.plot([1, most], [1, most], color="0.6", linestyle="--", label="every shared token computed once")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="sharing factor: tokens of all prompts / of their tree",
        ylabel="time of FCFS / prefix-aware",
    )
    ticks = [tick for tick in (1, 2, 4, 8, 16) if tick <= 1.5 * most]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.FixedLocator(ticks))
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(ticker.NullLocator())
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Run, keep the rows, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama8")
    parser.add_argument("--requests", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 0.75, 0.9])
    parser.add_argument("--tokens", type=int, default=256, help="of a prompt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("settings", nargs="*", help="further overrides, such as measure.cell_seconds=60")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "prefix_sharing.parquet"
    for requests in arguments.requests:
        for share in arguments.shares:
            fresh = measured(arguments.model, requests, arguments.tokens, share, arguments.settings)
            keep(fresh, file, ["model", "requests", "share", "tokens"])
            rows = pd.read_parquet(file)
            text = markdown(lines(rows[rows["status"] == "ok"]))
            (arguments.out / "table.md").write_text(text, encoding="utf-8")
    draw(rows[rows["status"] == "ok"], arguments.out / "prefix_sharing.png")
    print(text, end="")


if __name__ == "__main__":
    main()
