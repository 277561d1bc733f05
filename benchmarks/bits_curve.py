"""What packed and projected caches lose, by the bits that a number of theirs takes, beside what rounding alone loses.

    python -m benchmarks.bits_curve --out benchmarks/results/bits_curve

The embedded model on held-out text, read through the cache after 512 tokens; nothing is timed. The reference knows no
cache: one forward pass in which every key and value is rounded, the newest ones too, by formulas of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from kvbench.asking import ask_likelihood
from kvbench.bench import Bench
from kvbench.columns import held
from kvbench.configuration import check, compose
from kvbench.job import Job, Measured, Row
from kvbench.measure.host import LocalHost
from kvbench.models.spec import TINY
from kvbench.runner import job_of
from kvbench.types import RunShape

ATTENTION = "rounded"
LATENT = "strategy/codec@strategy.codec.latent={}"  # how coordinates are written
HALF = ("strategy.codec.most=0.5", "strategy.codec.least=0.5")
LIMIT = 1.5  # times the reference's loss
LEAST = 1e-5  # nats that are drawn
OUTLIERS, FIRST = 0.01, 1  # of KVQuant: share of a token's numbers, and first tokens, that stay
Rounding = Callable[[Tensor, int], Tensor]  # of keys or values [B, G, T, D] of a layer


def by_token(bits: int, group: int, *, symmetric: bool = False, clip: float = 1.0) -> Rounding:
    """Return what rounds neighbouring channels of a token together, to a share of how far they reach."""

    def rounded(numbers: Tensor, layer: int) -> Tensor:
        parts = numbers.unflatten(-1, (-1, group))
        if symmetric:
            step = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
            made: Tensor = (torch.round(parts / step) * step).flatten(-2)
            return made
        low, high = clip * parts.amin(-1, keepdim=True), clip * parts.amax(-1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp(min=1e-9)
        made = torch.round((parts.clamp(low, high) - low) / step) * step
        made += low
        return made.flatten(-2)

    return rounded


def by_channel(bits: int, group: int) -> Rounding:
    """Return what rounds neighbouring tokens of a channel together; a last group may have fewer."""

    def rounded(numbers: Tensor, layer: int) -> Tensor:
        groups = numbers.split(group, dim=-2)
        return torch.cat([by_token(bits, part.shape[-2])(part.mT, layer).mT for part in groups], dim=-2)

    return rounded


def by_pair(radius_bits: int, angle_bits: int, group: int) -> Rounding:
    """Return what rounds radii and angles of neighbouring tokens to middles, angles counted from their mean's."""

    def middles(numbers: Tensor, bits: int) -> Tensor:
        low, high = numbers.amin(-2, keepdim=True), numbers.amax(-2, keepdim=True)
        step = ((high - low) / 2**bits).clamp(min=1e-9)
        made: Tensor = low + (((numbers - low) / step).floor().clamp(max=2**bits - 1) + 0.5) * step
        return made

    def rounded(numbers: Tensor, layer: int) -> Tensor:
        made = []
        for points in torch.complex(*numbers.chunk(2, dim=-1)).split(group, dim=-2):
            mean = (points / points.abs()).mean(-2, keepdim=True).angle()
            beyond = torch.remainder(points.angle() - mean + torch.pi, 2 * torch.pi)
            radius, angle = middles(points.abs(), radius_bits), middles(beyond, angle_bits) + mean - torch.pi
            made.append(torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1))
        return torch.cat(made, dim=-2)

    return rounded


def by_signs(bits: int, num_large: int, group: int, size: int) -> Rounding:
    """Return what keeps of keys signs of products with directions, and lengths, the largest channels apart."""
    random = torch.Generator().manual_seed(1)
    blocks = [torch.linalg.svd(torch.randn(size, size, generator=random)).U for _ in range(bits)]
    directions = torch.cat(blocks)
    mean = (2 / torch.pi) ** 0.5 * (1 + 1 / (4 * size)) / size**0.5  # size of a number of a direction, nearly

    def told(part: Tensor, count: int) -> Tensor:
        signs = (part @ directions[:count].mT).sign()
        made: Tensor = signs @ directions[:count] * (part.norm(dim=-1, keepdim=True) / (count * mean))
        return made

    def rounded(numbers: Tensor, layer: int) -> Tensor:
        made = []
        for part in numbers.split(group, dim=-2):
            far = part.norm(dim=-2, keepdim=True)
            large = far >= far.sort(dim=-1).values[..., -num_large, None]
            of_large, of_others = told(part * large, bits * size // 2), told(part * ~large, bits * size)
            made.append(torch.where(large, of_large, of_others))
        return torch.cat(made, dim=-2)

    return rounded


@cache
def embedded() -> tuple[dict[str, Any], Tensor]:
    """Return the embedded model's codebooks and how fast each pair of channels of its keys is rotated."""
    (file,) = TINY.glob("codebooks_*.json")
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    half = config["head_dim"] // 2
    speed = config["rope_parameters"]["rope_theta"] ** (-torch.arange(half) / half)
    return json.loads(file.read_text(encoding="utf-8")), speed


def turned(keys: Tensor, sign: int) -> Tensor:
    """Return the embedded model's keys rotated on, or back, by their positions."""
    angle = torch.arange(keys.shape[-2])[:, None] * embedded()[1]
    pairs = torch.complex(*keys.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), sign * angle)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def to_table(side: str, bits: int) -> Rounding:
    """Return what rounds keys before their rotation, or values, to the embedded model's codebooks, but for outliers."""

    def rounded(numbers: Tensor, layer: int) -> Tensor:
        books, is_key = embedded()[0], side == "keys"
        given = turned(numbers, -1) if is_key else numbers
        tokens = given.transpose(1, 2).flatten(2)
        count = max(1, round(OUTLIERS * tokens.shape[2]))
        if is_key:
            low, high = (torch.tensor(books[name][layer]) for name in ("lower", "upper"))
            far = ((tokens - (low + high) / 2) / (high - low)).abs()
            stays = far >= far.sort(dim=-1).values[..., -count, None]
        else:
            far = (tokens - tokens.median(dim=-1, keepdim=True).values).abs()
            stays = far >= far.sort(dim=-1).values[..., -count, None]
            low = tokens.masked_fill(stays, torch.inf).amin(dim=-1, keepdim=True)
            high = tokens.masked_fill(stays, -torch.inf).amax(dim=-1, keepdim=True)
        stays[:, :FIRST] = True
        levels = low + (high - low) * (torch.tensor(books[side][str(bits)][layer])[:, None, None, None] + 1) / 2
        nearest = (levels - tokens).abs().argmin(dim=0, keepdim=True)
        made = torch.where(stays, tokens, levels.expand(-1, *tokens.shape).gather(0, nearest)[0])
        made = made.unflatten(2, (numbers.shape[1], -1)).transpose(1, 2)
        return turned(made, 1) if is_key else made

    return rounded


def by_hadamard(rounding: Rounding, size: int) -> Rounding:
    """Return what rounds heads of a power of two that were multiplied by a Hadamard matrix, and turns them back."""
    signs = [[(-1.0) ** (row & column).bit_count() for column in range(size)] for row in range(size)]
    matrix = torch.tensor(signs) / size**0.5

    def rounded(numbers: Tensor, layer: int) -> Tensor:
        made: Tensor = rounding(numbers @ matrix, layer) @ matrix.mT
        return made

    return rounded


def spread(bits: int, size: int) -> Rounding:
    """Return what rounds heads that were turned at random to the means of 2^bits cells of equally likely numbers."""
    normal = torch.special.ndtri((torch.arange(2**12) + 0.5) / 2**12)
    levels = normal.unflatten(0, (2**bits, -1)).mean(1)
    for _ in range(500):
        cells = torch.bucketize(normal, (levels[1:] + levels[:-1]) / 2)
        levels = torch.zeros(2**bits).index_add(0, cells, normal) / cells.bincount(minlength=2**bits)
    matrix = torch.linalg.svd(torch.randn(size, size, generator=torch.Generator().manual_seed(1))).U

    def rounded(numbers: Tensor, layer: int) -> Tensor:
        length = numbers.norm(dim=-1, keepdim=True) / size**0.5
        nearest = (numbers @ matrix / length)[..., None].sub(levels).abs().argmin(-1)
        made: Tensor = levels[nearest] * length @ matrix.mT
        return made

    return rounded


def smoothed(rounding: Rounding) -> Rounding:
    """Return what rounds rotated keys over the root of how large a channel, or its partner, gets in the same text."""

    def rounded(numbers: Tensor, layer: int) -> Tensor:
        largest = numbers.abs().amax(dim=-2, keepdim=True)
        scale = torch.maximum(largest, largest.roll(numbers.shape[-1] // 2, dims=-1)).sqrt()
        made: Tensor = rounding(numbers / scale, layer) * scale
        return made

    return rounded


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table.

    Args:
        label: shown.
        overrides: of the run.
        reference: how keys and values are rounded, where rounding is all that happens.
    """

    label: str
    overrides: tuple[str, ...]
    reference: tuple[Rounding, Rounding] | None = None


def _tokens(bits: int) -> tuple[str, ...]:
    sides = ("key_quantiser", "value_quantiser")
    return ("strategy=quantization_4bit", *(f"strategy.codec.{side}.bits={bits}" for side in sides))


def _kivi(bits: int, residual: int, values: int = 0) -> tuple[str, ...]:
    rest = (f"strategy.codec.value_quantiser.bits={values}",) if values else ()
    return (f"strategy=kivi{bits}", f"strategy.codec.residual={residual}", *rest)


def _polar(radius_bits: int, angle_bits: int, group: int) -> tuple[str, ...]:
    bits = (f"strategy.codec.radius_bits={radius_bits}", f"strategy.codec.angle_bits={angle_bits}")
    return ("strategy=polarquant", *bits, f"strategy.codec.group={group}", f"strategy.codec.residual={group}")


def _tuned(bits: float) -> tuple[str, ...]:
    return ("strategy=kvtuner", f"strategy.codec.bits={bits}", "strategy.codec.like.residual=32")


_SIXTEEN = tuple(f"strategy.codec.latent.{side}_quantiser.group=16" for side in ("key", "value"))
_UNCORRECTED = ("strategy.codec.rank=0", "strategy.codec.block_rank=0")

CASES = (
    Case(label="float16", overrides=("strategy=baseline", "strategy/codec=float16")),
    Case(
        label="quantization_8bit",
        overrides=("strategy=quantization_8bit",),
        reference=(by_token(8, 32, symmetric=True), by_token(8, 32, symmetric=True)),
    ),
    Case(label="fp8", overrides=("strategy=fp8",)),
    Case(
        label="quantization_4bit",
        overrides=("strategy=quantization_4bit",),
        reference=(by_token(4, 32), by_token(4, 32)),
    ),
    Case(label="per token, 3 bits", overrides=_tokens(3), reference=(by_token(3, 32), by_token(3, 32))),
    Case(label="per token, 2 bits", overrides=_tokens(2), reference=(by_token(2, 32), by_token(2, 32))),
    Case(label="flexgen_int4", overrides=("strategy=flexgen_int4",), reference=(by_token(4, 32), by_token(4, 32))),
    Case(label="kivi4", overrides=_kivi(4, 128), reference=(by_channel(4, 32), by_token(4, 32))),
    Case(label="kivi4, residual 32", overrides=_kivi(4, 32), reference=(by_channel(4, 32), by_token(4, 32))),
    Case(label="kivi2", overrides=_kivi(2, 128), reference=(by_channel(2, 32), by_token(2, 32))),
    Case(label="kivi2, residual 32", overrides=_kivi(2, 32), reference=(by_channel(2, 32), by_token(2, 32))),
    *(
        Case(
            label=f"kvquant{bits}",
            overrides=(f"strategy=kvquant{bits}",),
            reference=(to_table("keys", bits), to_table("values", bits)),
        )
        for bits in (4, 3, 2)
    ),
    *(
        Case(
            label="polarquant" + told,
            overrides=_polar(radius, angle, group),
            reference=(by_pair(radius, angle, group), by_token(4, 32)),
        )
        for radius, angle, group, told in (
            (4, 4, 128, ""),
            (4, 4, 32, ", groups of 32"),
            (3, 5, 32, ", 3 + 5 bits, groups of 32"),
            (2, 2, 32, ", 2 + 2 bits, groups of 32"),
        )
    ),
    *(
        Case(
            label="qjl" + told,
            overrides=("strategy=qjl", f"strategy.codec.first_layers={first}", f"strategy.codec.residual={residual}"),
            reference=(by_signs(bits, 8, 32, 32), by_token(2, 32)),
        )
        for bits, first, residual, told in (
            (4, 15, 128, ""),
            (4, 15, 32, ", residual 32"),
            (2, 0, 32, ", 2 bits in all layers, residual 32"),
        )
    ),
    Case(label="gear", overrides=("strategy=gear",)),
    Case(label="gear, outliers alone", overrides=("strategy=gear", *_UNCORRECTED)),
    Case(label="kvtuner", overrides=("strategy=kvtuner",)),
    *(
        Case(label=f"kvtuner, {bits:g} bits, residual 32", overrides=_tuned(bits), reference=reference)
        for bits, reference in ((2.5, None), (3, None), (4, (by_channel(4, 32), by_token(4, 32))))
    ),
    Case(label="keys 4, values 2 bits, residual 32", overrides=_kivi(4, 32, values=2)),
    Case(label="keys 2, values 4 bits, residual 32", overrides=_kivi(2, 32, values=4)),
    Case(label="streaming_kvquant", overrides=("strategy=streaming_kvquant",)),
    Case(label="streaming_kvquant, chunk 64", overrides=("strategy=streaming_kvquant", "strategy.codec.chunk=64")),
    Case(label="lorc", overrides=("strategy=lorc",)),
    Case(label="lorc_fp16", overrides=("strategy=lorc_fp16",)),
    Case(
        label="quarot",
        overrides=("strategy=quarot",),
        reference=(by_hadamard(by_token(4, 32, clip=0.95), 32), by_hadamard(by_token(4, 32, clip=0.95), 32)),
    ),
    Case(label="quarot, not clipped", overrides=("strategy=quarot", LATENT.format("int4"))),
    *(
        Case(
            label=f"turboquant{bits}",
            overrides=(f"strategy=turboquant{bits}",),
            reference=(spread(bits, 32), spread(bits, 32)),
        )
        for bits in (4, 3, 2)
    ),
    Case(
        label="qoq_kv4",
        overrides=("strategy=qoq_kv4",),
        reference=(smoothed(by_token(4, 32)), by_token(4, 32)),
    ),
    *(
        Case(label=f"eigen_attention, {kept:g}", overrides=("strategy=eigen_attention", f"strategy.codec.kept={kept}"))
        for kept in (0.8, 0.6)
    ),
    *(
        Case(label=f"think, {kept:g}", overrides=("strategy=think", f"strategy.codec.kept={kept}"))
        for kept in (0.6, 0.5)
    ),
    Case(label="skvq", overrides=("strategy=skvq",)),
    Case(label="skvq, groups of 16, no window", overrides=("strategy=skvq", "strategy.codec.window=0", *_SIXTEEN)),
    Case(label="rotatekv", overrides=("strategy=rotatekv",)),
    Case(
        label="rotatekv, groups of 32", overrides=("strategy=rotatekv", "strategy.codec.latent.key_quantiser.group=32")
    ),
    Case(label="quarot in 2 bits", overrides=("strategy=quarot", LATENT.format("int2"))),
    Case(label="palu", overrides=("strategy=palu",)),
    Case(label="palu_fp16", overrides=("strategy=palu_fp16",)),
    Case(label="palu at half", overrides=("strategy=palu", "strategy.codec.kept=0.5")),
    Case(label="lorc at half", overrides=("strategy=lorc", *HALF)),
    Case(label="smoothquant", overrides=("strategy=smoothquant",)),
    Case(
        label="snapkv at half, kivi4",
        overrides=("strategy=snapkv", "strategy.budget.amount=0.5", "strategy/codec=kivi4"),
    ),
)


def job_for(case: Case, windows: int) -> Job:
    """Return the job of a case."""
    return job_of(check(compose([*case.overrides, "model=tiny", f"quality.text_windows={windows}"])))


def through_the_cache(bench: Bench, job: Job) -> Row:
    """Return what a strategy loses, and the bits its numbers take."""
    bench.job = job
    bench.arms["strategy"] = replace(
        bench.arms["strategy"], strategy=job.strategy, model=job.strategy.prepare(bench.loaded.model)
    )
    bench.measured = Measured(rows={"strategy": {}, "baseline": {}})
    ask_likelihood(bench)
    arm, quality = bench.arms["strategy"], job.quality
    run = RunShape(prompt_lengths=(quality.context_tokens,), new_tokens=quality.scored_tokens + 1)
    cache = arm.cache(run)
    arm.prefill(cache, torch.tensor(bench.sources["baseline"].windows(1, run.prompt_tokens)))
    known = held(arm, cache, run)
    return {**bench.measured.rows["strategy"], **{name: known[name] for name in ("bits_per_element", "exact_share")}}


def rounded_loss(bench: Bench, job: Job, rounding: tuple[Rounding, Rounding] | None) -> float:
    """Return the loss on the same tokens of one forward pass in which every key and value is rounded [nats]."""

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **keywords: Any) -> Any:
        if rounding is not None:
            layer = int(module.layer_idx)  # type: ignore[arg-type]
            key, value = rounding[0](key, layer), rounding[1](value, layer)
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=keywords.get("scaling"), enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    model: Any = bench.loaded.model
    quality, length = job.quality, job.quality.context_tokens + 1 + job.quality.scored_tokens
    windows = torch.tensor(bench.sources["baseline"].windows(quality.text_windows, length))
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        total = 0.0
        for ids in windows:
            logits = model(ids[None], use_cache=False).logits[0, quality.context_tokens : -1].double()
            total -= logits.log_softmax(-1).gather(1, ids[quality.context_tokens + 1 :, None]).mean().item()
    finally:
        model.set_attn_implementation(before)
    return total / len(windows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw loss against bits, each row as its number in the list beside; those that no other row beats are orange."""
    figure, (ax, names) = plt.subplots(ncols=2, figsize=(11, 6.5), width_ratios=(1.0, 0.38), layout="constrained")
    place = ["bits_per_element", "nll_delta_nats"]
    points = table.groupby(place)["label"].agg(" = ".join).reset_index()  # by bits; equal ones share a number
    points["loss"] = points["nll_delta_nats"].clip(lower=LEAST)
    points["is_best"] = points["loss"] < points["loss"].cummin().shift(fill_value=float("inf"))
    best = points[points["is_best"]]
    ax.step(best["bits_per_element"], best["loss"], where="post", color="#D55E00", linewidth=0.8, zorder=1)
    for number, row in enumerate(points.itertuples(), start=1):
        colour = "#D55E00" if row.is_best else "#0072B2"
        ax.scatter(row.bits_per_element, row.loss, color=colour, s=110, linewidths=0.5, edgecolors="white", zorder=2)
        ax.annotate(
            str(number),
            (row.bits_per_element, row.loss),
            color="white",
            fontsize=6.5,
            fontweight="bold",
            ha="center",
            va="center",
        )
        names.text(0.0, 1 - number / (len(points) + 1), f"{number:2d}  {row.label}", color=colour, fontsize="small")
    names.set_axis_off()
    ax.set_yscale("log")
    ax.set_xlabel(
        "bits per number of keys and values after 512 tokens, metadata and exact ones included (full cache: 32.5)"
    )
    ax.set_ylabel(f"loss above the full cache (nats per token; {LEAST:.0e} or less at the bottom)")
    ax.grid(color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, write the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16, help="of held-out text")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    bench = Bench(job_for(CASES[0], arguments.windows), lambda stage, share: None)
    torch.set_num_threads(LocalHost().num_cpus)
    full = rounded_loss(bench, bench.job, None)
    rows: list[Row] = []
    for case in CASES:
        job = job_for(case, arguments.windows)
        row: Row = {"label": case.label, "overrides": " ".join(case.overrides), **through_the_cache(bench, job)}
        shown = f"{case.label:28s}{row['bits_per_element']:6.2f} bits  loss {row['nll_delta_nats']:+.4f}"
        if case.reference is not None:
            row["reference_nats"] = rounded_loss(bench, job, case.reference) - full
            shown += f"  rounding alone {row['reference_nats']:+.4f}"
            if row["nll_delta_nats"] > LIMIT * max(0.0, row["reference_nats"]):
                shown += f"  more than {LIMIT} of it"
        print(shown, flush=True)
        rows.append(row)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    table = pd.DataFrame(rows).assign(commit=commit)
    table.to_parquet(arguments.out / "quality.parquet")
    draw(table, arguments.out / "loss.png")


if __name__ == "__main__":
    main()
