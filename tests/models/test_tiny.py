"""The embedded model is what its card says: it beats a 3-gram, recalls at 1,024 tokens, and forgets with a window."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kvbench.api import strategy
from kvbench.cache.doors import ATTENTION
from kvbench.configuration import build_group, compose, resolved
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.model_card import PAIRS, recalled, text_loss
from kvbench.models.load import Loaded, load
from kvbench.models.spec import TINY, ModelSpec
from kvbench.workloads.recall import RecallTasks
from tests.mutants.tiny import untrained

CARD = json.loads((TINY / "card.json").read_text())
LONG, SAMPLES = 1024, 12


def spec() -> ModelSpec:
    """Return the specification of model=tiny."""
    built: ModelSpec = build_group(resolved(compose([]))["model"], "model")
    return replace(built, device="cpu")


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    """The embedded model."""
    return load(spec(), seed=0, attention=ATTENTION)


def tasks_of(tiny: Loaded) -> RecallTasks:
    """Return its recall tasks in held-out text."""
    text = (TINY / "held_out.txt").read_text()
    assert tiny.tokenizer is not None
    return RecallTasks.build(tiny.tokenizer, tiny.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def share(tiny: Loaded, task: str, **settings: object) -> float:
    """Return the share of exact answers at 1,024 tokens."""
    built = strategy("sliding_window", **settings) if settings else strategy("baseline")
    arm = Arm(name="arm", model=tiny.model, view=tiny.view, strategy=built, engine=Eager(prefill_chunk=0))
    with torch.no_grad():
        return recalled(arm, tasks_of(tiny), task, LONG, SAMPLES)


def check_loss(model: torch.nn.Module, tiny: Loaded) -> None:
    """Fail unless a model's loss on held-out text is the card's."""
    tasks = tasks_of(tiny)
    with torch.no_grad():
        loss = text_loss(model, tasks.filler[: 4 * LONG], tasks.prefix, LONG)
    assert loss == pytest.approx(CARD["held_out_nats"][str(LONG)], abs=0.5)  # four windows of forty-five
    assert loss < CARD["kneser_ney_nats"] - 0.6


def test_card_passes_the_gate() -> None:
    assert CARD["held_out_nats"]["1024"] <= CARD["kneser_ney_nats"] - 1.0
    assert CARD["recall"]["key_value, full"]["1024"] >= 0.95
    assert CARD["recall"]["passkey, full"]["1024"] >= 0.90
    assert CARD["recall"]["key_value, window_128"]["1024"] < 0.5
    assert PAIRS == 16


def test_loss_on_held_out_text_is_the_cards(tiny: Loaded) -> None:
    check_loss(load(spec(), seed=0, attention="sdpa").model, tiny)


def test_loss_check_catches_a_model_that_was_not_trained(tiny: Loaded) -> None:
    with pytest.raises(AssertionError):
        check_loss(untrained(load(spec(), seed=0, attention="sdpa").model), tiny)


@pytest.mark.parametrize("task", ["key_value", "passkey"])
def test_full_cache_recalls_and_a_window_forgets(tiny: Loaded, task: str) -> None:
    assert share(tiny, task) >= 0.85
    assert share(tiny, task, budget={"amount": 128, "unit": "tokens"}) <= 0.5


def test_files_are_small_and_every_document_has_its_hash() -> None:
    assert (TINY / "model.safetensors").stat().st_size < 6_000_000
    hashes = json.loads((TINY / "corpus.json").read_text())
    assert len(hashes) > 300
    assert all(len(value) == 64 for value in hashes.values())
    log = [json.loads(line) for line in (TINY / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == CARD["steps"]
