"""`kvbench trace`: which positions each layer held, drawn in the terminal and, if asked for, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console

from kvbench.bench import source_of
from kvbench.configuration import check, compose
from kvbench.configuration.composing import search_path
from kvbench.models.load import load
from kvbench.plots.trace import held_positions
from kvbench.runner import check_lengths, job_of
from kvbench.tracing import Trace, trace

SHADES = " .:-=#"
LABEL_WIDTH = 24


def main(overrides: Sequence[str], config_dir: str | None, out: str) -> None:
    """Trace the first row of a workload and draw what was held at its end.

    Args:
        overrides: as for `kvbench run`.
        config_dir: folder with more configurations, or None.
        out: picture to write; "" for none.
    """
    asked = [override for override in overrides if not override.startswith("quality")]  # nothing is scored here
    checked = check(compose([*asked, "quality=none", *search_path(config_dir)]))
    job = job_of(checked)
    check_lengths(job)
    loaded = load(checked.model, seed=checked.seed, attention="sdpa")
    run = job.workload.runs()[-1]
    ids = torch.tensor(job.workload.ids(source_of(job, loaded), run)[:1], device=loaded.view.device)
    held = table(trace(loaded.model, checked.strategy, ids, run.prompt_tokens))
    console = Console()
    for line in drawn(held, ids.shape[1], max(20, console.width - LABEL_WIDTH)):
        print(line)
    if out:
        _picture(held, Path(out))


def table(traced: Trace) -> pd.DataFrame:
    """Return one row per step, layer, KV head and position held of the first row of a batch."""
    parts = [
        {"step": step, "layer": layer, "head": head, "position": position}
        for step, layers in enumerate(traced.held)
        for layer, positions in enumerate(layers)
        for head, row in enumerate(positions[0].tolist())
        for position in row
        if position >= 0
    ]
    return pd.DataFrame(parts, columns=["step", "layer", "head", "position"])


def drawn(held: pd.DataFrame, tokens: int, width: int) -> list[str]:
    """Return one line per layer: how much of each stretch of positions was held at the end, over all heads.

    Args:
        held: as `table` returns it.
        tokens: positions there were.
        width: characters for them.
    """
    width = min(width, tokens)
    cell = np.arange(tokens) * width // tokens
    lines = [f"each character stands for {tokens / width:.1f} of {tokens} positions: ' ' none held, '#' all of them"]
    for layer, rows in held[held["step"] == held["step"].max()].groupby("layer"):
        num_heads = rows["head"].nunique()
        counts = np.bincount(cell[rows["position"]], minlength=width)
        shares = counts / (num_heads * np.bincount(cell))
        shades = "".join(SHADES[math.ceil(share * (len(SHADES) - 1))] for share in shares)
        lines.append(f"layer {layer:2} {len(rows) / num_heads:7.0f} held |{shades}|")
    return lines


def _picture(held: pd.DataFrame, file: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    held_positions(held, figure.add_subplot(), rows="step")
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}. Give another file with --out.") from error
    print(f"picture: {file}")
