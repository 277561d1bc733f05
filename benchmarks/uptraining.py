"""MHA converted to GQA by the mean of its heads, aligned first or not, and trained on, beside GQA from scratch.

    python -m benchmarks.uptraining --out benchmarks/results/uptraining
    python -m benchmarks.uptraining --out benchmarks/results/uptraining --time    # on a machine that does nothing else

The family's MHA (arXiv:2305.13245 on a toy): loss of held-out text in windows of 1,024 tokens, and recall of values and
pass keys through the full cache. What is not trained yet is trained first, and goes on where it was interrupted. Times
are paired, of one GQA over MHA: all conversions have the same shapes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

import kvbench
from benchmarks.tables import keep
from kvbench import train
from kvbench.cache.doors import ATTENTION
from kvbench.configuration import build_group, compose, resolved
from kvbench.job import Row
from kvbench.model_card import LENGTHS, write_card
from kvbench.models.load import load
from kvbench.models.spec import FAMILY
from kvbench.types import RunShape
from kvbench.uptraining import recipe_of

BASE, MEMBER = "mha", "gqa"
SHARES = (0.0, 0.05, 0.1)
ALIGNED = ("none", "procrustes")
LONG = LENGTHS[-1]
TIMES = ("decode_ratio", "decode_ratio_low", "decode_ratio_high")
CONVERTED = ("model=tiny-mha", "strategy=gqa", "strategy.transform.num_groups=2")
SCRATCH = ("model=tiny-mha", "strategy=matched", f"strategy.transform.kind={MEMBER}")
COLOURS = {"none": "#0072B2", "procrustes": "#D55E00", "scratch": "#009E73"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Args:
        label: shown.
        folder: with the model.
        align: what was done to the heads of a group before they were converted, or "" where none were.
        share: of the steps of the first training that it was trained on for.
    """

    label: str
    folder: Path
    align: str = ""
    share: float = 0.0

    @property
    def card(self) -> Path:
        """What was measured of it once it was trained."""
        return (self.folder.parent if self.align else self.folder) / "card.json"


def variants(trained: Path) -> list[Variant]:
    """Return what is compared; GQA from scratch where it is shipped."""
    ways = {"none": "mean", "procrustes": "aligned, mean"}
    made = [Variant(label="MHA", folder=FAMILY / BASE)]
    for share in SHARES:
        for align in ALIGNED:
            folder = trained / f"{MEMBER}_from_{BASE}_{align}_{share:g}"
            label = f"{ways[align]}, {100 * share:g}%"
            made.append(Variant(label=label, folder=folder / "model", align=align, share=share))
    scratch = Variant(label="GQA from scratch", folder=FAMILY / MEMBER)
    return [*made, *([scratch] if (FAMILY / MEMBER / "card.json").is_file() else [])]


def train_missing(variant: Variant, threads: int) -> None:
    """Train what is not there."""
    if variant.card.is_file():
        return
    recipes = train.members()
    groups = recipes[MEMBER].model.num_key_value_heads
    recipe = recipe_of(BASE, recipes, groups, align=variant.align, share=variant.share)
    print(f"{variant.label}: {recipe.optimiser.steps} steps", flush=True)
    train.run(recipe, variant.folder.parent, threads, "cpu")
    write_card(variant.folder.parent)


def measured(variant: Variant) -> Row:
    """Return what a variant loses and recalls by its card, and what it holds."""
    spec = build_group(resolved(compose([]))["model"], "model")
    view = load(replace(spec, path=str(variant.folder), device="cpu"), seed=0, attention=ATTENTION).view
    card = json.loads(variant.card.read_text(encoding="utf-8"))
    return {
        "variant": variant.label,
        "align": variant.align,
        "share": variant.share,
        "tokens_after": card["tokens_seen"] if variant.align else 0,
        "parameters": card["parameters"],
        "kv_bytes": kvbench.strategy("baseline").used_bytes(view, RunShape(prompt_lengths=(LONG,), new_tokens=1), LONG),
        "held_out_nats": card["held_out_nats"][str(LONG)],
        "recall_samples": card["recall_samples"],
        **{
            f"recall_{task}_{tokens}": card["recall"][f"{task}, full"][str(tokens)]
            for task in ("key_value", "passkey")
            for tokens in LENGTHS
        },
    }


def timed(overrides: Sequence[str], runs: Path) -> Row:
    """Return a decode step's time over MHA's after as many tokens."""
    lengths = (f"workload.prompt_tokens={LONG}", "workload.new_tokens=64", "quality=none", f"runs={runs}")
    rows = kvbench.run([*overrides, *lengths]).rows
    row = rows[rows["arm"] == "strategy"].iloc[0]
    return {name: row[name.removeprefix("decode_")] for name in TIMES}


def with_times(table: pd.DataFrame, runs: Path) -> pd.DataFrame:
    """Return the table with times of the two kinds of GQA."""
    kinds = {"converted": table["align"] != "", "scratch": table["variant"] == "GQA from scratch"}
    for kind, overrides in (("converted", CONVERTED), ("scratch", SCRATCH)):
        if kinds[kind].any():
            for name, value in timed(overrides, runs).items():
                table.loc[kinds[kind], name] = value
    return table


def markdown(table: pd.DataFrame) -> str:
    """Return the table that people read."""
    head = ["", "parameters", "KV KiB", "loss", *(f"values at {n:,}" for n in LENGTHS), f"pass key at {LONG:,}", "step"]
    lines = [head, ["---"] * len(head)]
    for row in table.to_dict("records"):
        recall = [row[f"recall_key_value_{n}"] for n in LENGTHS] + [row[f"recall_passkey_{LONG}"]]
        ratio, low, high = (row[name] for name in TIMES)
        step = "" if pd.isna(ratio) else f"{ratio:.3f} [{low:.3f}, {high:.3f}]"
        cells = [row["variant"], f"{row['parameters']:,}", f"{row['kv_bytes'] / 1024:.0f}"]
        lines.append([*cells, f"{row['held_out_nats']:.4f}", *(f"{100 * share:.1f}%" for share in recall), step])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw loss and recall over the share of the steps, and the bytes held."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", width_ratios=(4, 4, 3))
    recall = f"recall_key_value_{LONG}"
    for ax, measure, said in (
        (axes[0], "held_out_nats", "loss of held-out text (nats per token)"),
        (axes[1], recall, f"values recalled at {LONG:,} tokens"),
    ):
        for name, colour in (("MHA", "black"), ("GQA from scratch", COLOURS["scratch"])):
            for value in table.loc[table["variant"] == name, measure]:
                ax.axhline(value, color=colour, linestyle="--", linewidth=1, label=name)
        for align, label, marker in (("none", "mean of heads", "o"), ("procrustes", "aligned first", "x")):
            mine = table[table["align"] == align].sort_values("share")
            ax.plot(100 * mine["share"], mine[measure], color=COLOURS[align], marker=marker, label=label)
        ax.set(xlabel="steps after conversion (% of the first training's)", ylabel=said)
        ax.set(xticks=[100 * share for share in SHARES], xlim=(-0.5, 100 * SHARES[-1] + 0.5))
        _plain(ax)
    axes[1].set_ylim(-0.03, 1.03)
    axes[0].legend(frameon=False, fontsize="small")
    held = table[(table["variant"] == "MHA") | (table["align"] == "none") & (table["share"] == 0)]
    bars = axes[2].barh(["MHA", "GQA"], held["kv_bytes"] / 1024, color=["black", COLOURS["none"]], height=0.4)
    told = [f"{size / 1024:,.0f}" for size in held["kv_bytes"]]
    ratio = held["decode_ratio"].iloc[-1]
    if not pd.isna(ratio):
        told[-1] += f"\nstep {ratio:.2f} x MHA's"
    axes[2].bar_label(bars, told, padding=4)
    axes[2].set(xlabel=f"KV KiB at {LONG:,} tokens")
    axes[2].margins(x=0.4)
    axes[2].invert_yaxis()
    _plain(axes[2])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plain(ax: Axes) -> None:
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Train what is missing, measure, write the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trained", type=Path, default=Path("runs/uptraining"), help="folder of what is trained")
    parser.add_argument("--threads", type=int, default=1, help="of the training")
    parser.add_argument("--variants", nargs="*", default=None, help="labels of some of the rows")
    parser.add_argument("--time", action="store_true", help="only time what is there")
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file, every = arguments.out / "variants.parquet", variants(arguments.trained)
    if arguments.time:
        with_times(pd.read_parquet(file), arguments.trained / "times").to_parquet(file)
    elif not arguments.draw:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
        for variant in every:
            if arguments.variants is None or variant.label in arguments.variants:
                train_missing(variant, arguments.threads)
                row = {**measured(variant), **dict.fromkeys(TIMES, float("nan"))}
                keep(pd.DataFrame([row]).assign(commit=commit.strip()), file, by=["variant"])
                print(f"{variant.label:20s} {row['held_out_nats']:.4f} nats", flush=True)
    order = {variant.label: at for at, variant in enumerate(every)}
    table = pd.read_parquet(file).sort_values("variant", key=lambda names: names.map(order))
    (arguments.out / "table.md").write_text(markdown(table), encoding="utf-8")
    draw(table, arguments.out / "uptraining.png")


if __name__ == "__main__":
    main()
