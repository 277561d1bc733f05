"""The embedded model is what its card says: it beats a 3-gram, recalls at 1,024 tokens, and forgets with a window."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kvbench.api import strategy
from kvbench.cache.doors import ATTENTION
from kvbench.configuration import build_group, compose, resolved
from kvbench.engines.arm import Arm, generate
from kvbench.engines.eager import Eager
from kvbench.model_card import PAIRS, recalled, text_loss
from kvbench.models.load import Loaded, load
from kvbench.models.spec import TINY, ModelSpec
from kvbench.types import RunShape
from kvbench.workloads.asked import Conversation
from kvbench.workloads.recall import RecallTasks
from kvbench.workloads.ruler.marks import MARKED
from tests.mutants.tiny import untrained
from tests.support.hiding import held

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


def answered(tiny: Loaded, asked: Conversation) -> str:
    """Return what the full cache says to the first question."""
    assert tiny.tokenizer is not None
    turn = asked.turns[0]
    prompt = torch.tensor([[*asked.context, *turn.question]])
    arm = Arm(
        name="arm", model=tiny.model, view=tiny.view, strategy=strategy("baseline"), engine=Eager(prefill_chunk=0)
    )
    with torch.no_grad():
        run = RunShape(prompt_lengths=(prompt.shape[1],), new_tokens=turn.new_tokens)
        return str(tiny.tokenizer.decode(generate(arm, run, prompt)[0]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["workload=niah", "workload.samples=1", "workload.depths=[0.0,0.4,1.0]"],
        [
            "workload=ruler",
            "workload.wording=marks",
            "workload.prompt_tokens=512",
            f"workload.tasks=[{','.join(MARKED)}]",
        ],
    ],
)
def test_full_cache_finds_needles_in_the_words_it_knows(tiny: Loaded, overrides: list[str]) -> None:
    asked = build_group(resolved(compose(overrides))["workload"], "workload").conversations(held())
    alone = [replace(one, turns=one.turns[:1]) for one in asked]
    said = [answered(tiny, one) for one in alone]
    assert sum(one.score_of(text, one.turns[0]) or 0 for one, text in zip(alone, said, strict=True)) >= len(said) - 1
    others = [one.score_of(text, one.turns[0]) or 0 for one, text in zip(alone, [*said[1:], said[0]], strict=True)]
    assert sum(others) <= 1, "and nobody else's answers are right"


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
