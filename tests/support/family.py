"""What must hold for the recipes of the matched family, and for training by any of them."""

from __future__ import annotations

import functools
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kvbench import train
from kvbench.configuration import build_group, compose, resolved
from kvbench.model_card import text_loss
from kvbench.models.load import load, recurrent
from kvbench.models.spec import FAMILY, TINY, ModelSpec
from kvbench.workloads.recall import RecallTasks

VOCABULARY = 2048
STEPS = 6
LONG = 1024


def recipes() -> dict[str, Any]:
    """Return the recipes of the family."""
    return {name: recipe for name, recipe in train.members().items() if name != "tiny"}


def members_have_as_many_parameters() -> None:
    """Members are as large as the embedded model, within a hundredth, and no two of them are the same network."""
    with torch.device("meta"):
        made = {name: train.network(recipe.model, VOCABULARY) for name, recipe in train.members().items()}
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in made.items()}
    assert all(abs(size - sizes["tiny"]) <= sizes["tiny"] / 100 for size in sizes.values()), sizes
    made.pop("tiny")  # the same network as gqa, trained for longer
    shapes = {tuple((key, tuple(p.shape)) for key, p in network.named_parameters()) for network in made.values()}
    assert len(shapes) == len(made)


def members_read_the_same_tokens() -> None:
    """Every member is given the same rows in the same order, at every length."""
    first: list[Tensor] = []
    for recipe in recipes().values():
        mixture, got = few_tokens(recipe.seed), []
        for step in (0, 1, *recipe.lengths):
            at = min(step, recipe.optimiser.steps - 1)
            length = train.until(at, recipe.lengths)
            got.append(mixture.batch(2, length, train.until(at, recipe.mix))[0])
        first = first or got
        assert all(torch.equal(one, other) for one, other in zip(first, got, strict=True))


@functools.cache
def _tokens() -> tuple[Tensor, RecallTasks]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY)
    text = (TINY / "held_out.txt").read_text(encoding="utf-8")[:20_000]
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return torch.tensor(ids), RecallTasks.build(tokenizer, ids)


def few_tokens(seed: int) -> train.Mixture:
    """Return a mixture over little text."""
    return train.Mixture(*_tokens(), seed)


def small(member: str = "gqa", steps: int = STEPS, layers: int = 2) -> Any:
    """Return a recipe that takes a second."""
    changes: dict[str, dict[str, Any]] = {
        "model": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": layers},
        "optimiser": {"steps": steps, "tokens_per_step": 256, "rate": {0: 1.0, steps: 1.0}},
    }
    if member == "mamba2":
        changes["model"]["head_dim"] = 2 * 24 // recipes()[member].model.num_heads
    made: Any = OmegaConf.merge(recipes()[member], changes)
    made.lengths, made.mix = {steps // 2: 64, steps: 128}, {steps: {"text": 0.5, "copy": 0.5}}
    return made


def trained(out: Path, recipe: Any, most: int | None = None, device: str = "cpu") -> list[dict[str, float]]:
    """Train, or go on, with a checkpoint every other step, up to so many log entries, and return these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EVERY", 2)
        patch.setattr(time, "perf_counter", itertools.count().__next__)  # looked at once per entry
        return list(itertools.islice(train.train(recipe, few_tokens(recipe.seed), VOCABULARY, out, device), most))


def training_goes_on_exactly(folder: Path) -> None:
    """A run that was interrupted twice ends with the weights and the losses of one that was not."""
    recipe, whole, parts = small(), folder / "whole", folder / "parts"
    want = trained(whole, recipe)
    got = [*trained(parts, recipe, 1), *trained(parts, recipe, 1), *trained(parts, recipe)]
    assert [entry["step"] for entry in want] == [2, 4, 6]
    assert [entry["seconds"] for entry in want] == [1, 2, 3]
    assert got == want
    ends = [torch.load(out / "checkpoint.pt", weights_only=False)["model"] for out in (whole, parts)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def training_lowers_the_loss(folder: Path, device: str = "cpu") -> None:
    """Thirty steps lower the loss of text by half a nat, and leave a model of that kind."""
    entries = trained(folder, small("mqa", steps=30), device=device)
    assert entries[-1]["text_nats"] < entries[0]["text_nats"] - 0.5, entries
    assert json.loads((folder / "model" / "config.json").read_text())["num_key_value_heads"] == 1


def a_recurrent_member_learns(folder: Path, name: str) -> None:
    """Few steps lower the loss of text by half a nat; what is left is loaded as that network, with those weights."""
    recipe = small(name, steps=20)
    recipe.optimiser.peak_rate = 1e-2
    entries = trained(folder, recipe)
    assert entries[-1]["text_nats"] < entries[0]["text_nats"] - 0.5, entries
    spec: ModelSpec = build_group(resolved(compose([]))["model"], "model")
    loaded = load(replace(spec, path=str(folder / "model"), device="cpu"), seed=0, attention="kvbench")
    assert isinstance(loaded.model, recurrent()[name])
    kept = torch.load(folder / "checkpoint.pt", weights_only=False)["model"]
    assert all(torch.equal(mine, kept[key].bfloat16().float()) for key, mine in loaded.model.state_dict().items())


def a_member_that_shares_is_loaded_as_one(member: str, folder: Path) -> None:
    """What was trained with shared layers comes back with them, with windows, and with the weights that were left."""
    donors: list[int | None] = [None, None, None, 2] if member == "yoco" else [None, 0]
    trained(folder, small(member, steps=2, layers=len(donors)))
    spec: ModelSpec = build_group(resolved(compose([]))["model"], "model")
    loaded = load(replace(spec, path=str(folder / "model"), device="cpu"), seed=0, attention="sdpa")
    assert [layer.donor for layer in loaded.view.layers] == donors
    assert [layer.window for layer in loaded.view.layers] == ([128, 128, 0, 0] if member == "yoco" else [0, 0])
    kept = torch.load(folder / "checkpoint.pt", weights_only=False)["model"]
    got = loaded.model.state_dict()
    assert got.keys() == kept.keys()
    assert all(torch.equal(got[key], kept[key].bfloat16().float()) for key in kept)


def shipped() -> list[str]:
    """Return the members that come with kvbench."""
    return sorted({card.parent.name for card in FAMILY.glob("*/card.json")} & recipes().keys())


def what_is_shipped_is_what_its_card_says(member: str) -> None:
    """A member has the recipe's tokens behind it, the card's loss on held-out text, and less than 6 MB."""
    folder, recipe = FAMILY / member, recipes()[member]
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["step"] == card["steps"] == recipe.optimiser.steps
    assert card["tokens_seen"] == recipe.optimiser.steps * recipe.optimiser.tokens_per_step
    assert (folder / "model.safetensors").stat().st_size < 6_000_000
    spec: ModelSpec = build_group(resolved(compose([f"model=tiny-{member}"]))["model"], "model")
    loaded = load(replace(spec, device="cpu"), seed=0, attention="sdpa")
    assert loaded.tokenizer is not None
    assert sum(p.numel() for p in loaded.model.parameters()) == card["parameters"]
    text = (TINY / "held_out.txt").read_text(encoding="utf-8")
    tasks = RecallTasks.build(loaded.tokenizer, loaded.tokenizer(text, add_special_tokens=False).input_ids)
    loss = text_loss(loaded.model, tasks.filler[: 4 * LONG], tasks.prefix, LONG)
    assert loss == pytest.approx(card["held_out_nats"][str(LONG)], abs=0.5)  # four windows of forty-five
    assert loss < card["kneser_ney_nats"] - 0.3


def in_a_folder(check: Any) -> None:
    """Call an oracle with a folder of its own."""
    with TemporaryDirectory() as folder:
        check(Path(folder))
