"""One line for each network of the family, from the rows that its experiment left.

    python run.py +experiment=family                                         # on a machine that does nothing else
    python -m benchmarks.family --runs runs/family --out benchmarks/results/family

Loss and recall of networks with random weights are empty. Times are paired ratios over MHA's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import kvbench
from kvbench.results.cells import NOTHING
from kvbench.results.labels import bytes_text

COLUMNS = (
    "run_id", "arm", "status", "model", "network", "weights", "git_commit", "prompt_tokens", "new_tokens", "nll_nats",
    "recall_key_value", "recall_passkey", "recall_samples", "kv_allocated_bytes", "weights_bytes", "ratio",
    "ratio_low", "ratio_high", "ttft_ratio", "ttft_ratio_low", "ttft_ratio_high", "num_threads", "device_name",
)  # fmt: skip


def lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each network, the baseline's first.

    Args:
        rows: of networks at several lengths of the prompt; what is not about a length is that of the longest.
    """
    rows = rows[rows["status"] == "ok"].sort_values(["arm", "network", "prompt_tokens"])
    names = rows["network"].str.split().str[0].where(rows["arm"] == "strategy", rows["model"])
    made = []
    for name, mine in rows.groupby(names, sort=False):
        each = mine.drop_duplicates("prompt_tokens", keep="last")
        longest = each.iloc[-1]
        line = {"": name, "loss": _number(longest["nll_nats"], 4)}
        for tokens, share in each.set_index("prompt_tokens")["recall_key_value"].items():
            line[f"values at {tokens:,}"] = NOTHING if pd.isna(share) else f"{100 * share:.1f}%"
        total = longest["prompt_tokens"] + longest["new_tokens"]
        line[f"KV or states of {total:,} tokens"] = bytes_text(longest["kv_allocated_bytes"])
        line |= {"decode step": _ratio(longest, "ratio"), "prefill": _ratio(longest, "ttft_ratio")}
        made.append(line)
    return pd.DataFrame(made)


def _number(value: float, decimals: int) -> str:
    return NOTHING if pd.isna(value) else f"{value:.{decimals}f}"


def _ratio(row: pd.Series, name: str) -> str:
    if row["arm"] == "baseline":
        return "1"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return NOTHING if pd.isna(row[name]) else f"{row[name]:.3f} [{_number(low, 3)}, {_number(high, 3)}]"


def markdown(table: pd.DataFrame) -> str:
    """Return a table as markdown."""
    cells = [list(table), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def main() -> None:
    """Write the rows and the table that people read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the experiment")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = kvbench.load(arguments.runs)[list(COLUMNS)]
    rows.to_parquet(arguments.out / "family.parquet")
    text = markdown(lines(rows))
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
