"""What must hold for a member that begins as another one, converted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kvbench
from kvbench import train, uptraining
from kvbench.configuration import build_group, compose, resolved
from kvbench.models.load import load
from kvbench.models.spec import ModelSpec
from tests.support import family

ALIGNED = ("none", "procrustes")
IDS = torch.randint(0, family.VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(5))


@contextmanager
def shipped(folder: Path) -> Iterator[None]:
    """Hold a family whose only member is a small one with six KV heads, trained for two steps."""
    if not (folder / "mha").is_dir():
        family.trained(folder / "run", family.small("mha", steps=2))
        (folder / "run" / "model").rename(folder / "mha")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uptraining, "FAMILY", folder)
        yield


def recipe(align: str, steps: int) -> Any:
    """Return the recipe of so many steps of 40 from the small member, at lengths of which a step holds some rows."""
    made = uptraining.recipe_of("mha", {"mha": family.small("mha", steps=40)}, 2, align=align, share=steps / 40)
    assert made.optimiser.steps == steps
    made.lengths = {steps: 64}
    return made


def loaded(path: Path) -> nn.Module:
    """Return a model that was left in a folder."""
    spec: ModelSpec = build_group(resolved(compose([]))["model"], "model")
    return load(replace(spec, path=str(path), device="cpu"), seed=0, attention="sdpa").model


def without_steps_it_is_the_transform(folder: Path) -> None:
    """Before the first step logits are strategy=gqa's bit for bit; what no step leaves are its weights in bfloat16."""
    found: list[Tensor] = []
    for align in ALIGNED:
        asked = recipe(align, 0)
        with shipped(folder), torch.no_grad():
            changed = kvbench.strategy("gqa", transform={"num_groups": 2, "align": align}).prepare(
                loaded(folder / "mha")
            )
            want: Any = changed(IDS, use_cache=False).logits
            begun = train.network(asked.model, family.VOCABULARY)
            begun.load_state_dict(uptraining.converted(asked.start))
            begun.set_attn_implementation("sdpa")
            assert torch.equal(begun(IDS, use_cache=False).logits, want)
            assert family.trained(folder / align, asked) == []
        left, kept = loaded(folder / align / "model").state_dict(), changed.state_dict()
        assert left.keys() == kept.keys()
        assert all(torch.equal(left[name], kept[name].bfloat16().float()) for name in kept)
        found.append(want)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def uptraining_goes_on_exactly(folder: Path) -> None:
    """A run that was interrupted ends with the weights and losses of one that was not, which are not its first ones."""
    asked, whole, parts = recipe("procrustes", 4), folder / "whole", folder / "parts"
    with shipped(folder):
        want = family.trained(whole, asked)
        got = [*family.trained(parts, asked, 1), *family.trained(parts, asked)]
        first = uptraining.converted(asked.start)
    assert [entry["step"] for entry in want] == [2, 4]
    assert got == want
    ends = [torch.load(out / "checkpoint.pt", weights_only=False)["model"] for out in (whole, parts)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not all(torch.equal(ends[0][key], first[key]) for key in first)
    assert json.loads((whole / "model" / "config.json").read_text())["num_key_value_heads"] == 2


def a_share_of_the_steps_is_a_whole_training() -> None:
    """A twentieth of 3,200 steps goes through every rate, length and mix that the first training did."""
    recipes = train.members()
    made, base = uptraining.recipe_of("mha", recipes, 2, align="none", share=0.05), recipes["mha"]
    steps = range(made.optimiser.steps)
    assert len(steps) == 160
    rates = [train.learning_rate(step, made.optimiser.peak_rate, made.optimiser.rate) for step in steps]
    assert base.optimiser.steps == 3200  # the recipe it is made of stays
    for step in steps:
        first = 20 * step
        want = train.learning_rate(first, base.optimiser.peak_rate, base.optimiser.rate)
        assert rates[step] == pytest.approx(want)
        assert train.until(step, made.lengths) == train.until(first, base.lengths)
        assert train.until(step, made.mix) == train.until(first, base.mix)
    assert made.seed != base.seed
    heads = 4 * 2 * (6 - 2) * 32 * 192  # layers x keys and values x heads less x their size x width
    sizes = [sum(p.numel() for p in train.network(one.model, family.VOCABULARY).parameters()) for one in (base, made)]
    assert sizes[0] - sizes[1] == heads
