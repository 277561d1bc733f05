"""`kvbench trace`: what each layer held, and the attention it lost, in the terminal and, if asked for, as a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console

from kvbench import plots
from kvbench.api import strategy
from kvbench.bench import source_of
from kvbench.cache.doors import ATTENTION
from kvbench.configuration import check, compose
from kvbench.configuration.composing import search_path
from kvbench.models.load import load
from kvbench.plots.text import height_of
from kvbench.runner import check_lengths, job_of
from kvbench.tracing import Held, arm_of, attention_lost, held_by

WIDTH = 9.0  # inches of a picture
SHADES = " .:-=#"
LABEL_WIDTH = 24
CONTEXT = 8  # tokens: more than any character has
UNFINISHED = "\ufffd"


def main(overrides: Sequence[str], config_dir: str | None, out: str, layer: int | None = None) -> None:
    """Trace the first row of a workload and draw what was held at its end, and what attention was lost on the way.

    Args:
        overrides: as for `kvbench run`.
        config_dir: folder with more configurations, or None.
        out: picture to write; "" for none.
        layer: the only one whose entries the picture shows; None for all.
    """
    asked = [override for override in overrides if not override.startswith("quality")]  # nothing is scored here
    checked = check(compose([*asked, "quality=none", *search_path(config_dir)]))
    job = job_of(checked)
    check_lengths(job)
    loaded = load(checked.model, seed=checked.seed, attention=ATTENTION)
    run = job.workload.runs()[-1]
    ids = torch.tensor(job.workload.ids(source_of(job, loaded), run)[:1], device=loaded.view.device)
    arm = arm_of(loaded.model, checked.strategy)
    positions = held_by(arm, ids, run.prompt_tokens)
    held, lost = table(positions), None
    if checked.strategy.forgets and ids.shape[1] > run.prompt_tokens:
        lost = lost_table(attention_lost(replace(arm, strategy=strategy("baseline")), ids, positions))
    if layer is not None and layer not in set(held["layer"]):
        raise ValueError(f"--layer must be one of the model's {held['layer'].nunique()} layers, from 0; got {layer}.")
    console = Console()
    for line in [*drawn(held, ids.shape[1], max(20, console.width - LABEL_WIDTH)), told(lost)]:
        print(line)
    if out:
        shown = held if layer is None else held[held["layer"] == layer]
        title = " ".join([*overrides, *([] if layer is None else [f"--layer {layer}"])])
        pieces = [] if loaded.tokenizer is None else pieces_of(loaded.tokenizer, ids[0].tolist())
        _picture(shown, lost, Path(out), pieces=pieces, prompt_tokens=run.prompt_tokens, title=title)


def table(held: Held) -> pd.DataFrame:
    """Return one row per step, layer, KV head and position held of the first row of a batch."""
    parts = [
        {"step": step, "layer": layer, "head": head, "position": position}
        for step, layers in enumerate(held)
        for layer, positions in enumerate(layers)
        for head, row in enumerate(positions[0].tolist())
        for position in row
        if position >= 0
    ]
    return pd.DataFrame(parts, columns=["step", "layer", "head", "position"])


def lost_table(lost: torch.Tensor) -> pd.DataFrame:
    """Return one row per decode step and layer with the share of attention that is lost, from [steps, layers]."""
    step, layer = np.indices(lost.shape)
    return pd.DataFrame({"step": step.ravel() + 1, "layer": layer.ravel(), "lost": lost.double().cpu().ravel()})


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text: a character of several tokens comes with the last of them."""
    pieces = []
    for at in range(len(ids)):
        context = ids[max(0, at - CONTEXT) : at]  # some tokenizers leave out a space where a text begins
        before, after = tokenizer.decode(context).rstrip(UNFINISHED), tokenizer.decode(ids[at - len(context) : at + 1])
        pieces.append("" if after.endswith(UNFINISHED) else after[len(before) :])
    return pieces


def told(lost: pd.DataFrame | None) -> str:
    """Return a sentence on the attention lost, as `lost_table` returns it; None for nothing to count."""
    if lost is None:
        return "attention lost: not counted, for nothing is decoded or nothing leaves for good"
    means = lost.groupby("layer")["lost"].mean()
    by_layer = ", ".join(f"{share:.1%}" for share in means)
    return f"attention lost, from the first layer to the last: {by_layer}; mean {means.mean():.1%}"


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


def _picture(
    held: pd.DataFrame, lost: pd.DataFrame | None, file: Path, *, pieces: Sequence[str], prompt_tokens: int, title: str
) -> None:
    """Draw the text on top, if there is one, and below it what was held step by step and what attention was lost."""
    text = height_of(pieces, WIDTH) if any(pieces) else 0.0
    figure = Figure(figsize=(WIDTH, 3.2 + (text + 1 if text else 0)), layout="constrained")
    figure.suptitle(textwrap.fill(title or "strategy=baseline", 110), fontsize="medium")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(text + 1, 3))[:, 0] if text else (None, figure)
    if top is not None:
        plots.held_text(held, pieces, top.add_subplot(), prompt_tokens=prompt_tokens)
    panels = bottom.subplots(1, 1 if lost is None else 2, squeeze=False)[0]
    plots.held_positions(held, panels[0], rows="step")
    if lost is not None:
        plots.attention_lost(lost, panels[1])
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}. Give another file with --out.") from error
    print(f"picture: {file}")
