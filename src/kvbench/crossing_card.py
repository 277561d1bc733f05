"""What trained blocks can do: the loss of what follows a context that they read, and of answers, beside other ways."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from kvbench.api import strategy
from kvbench.cache.doors import ATTENTION
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.crossing import crossings_of
from kvbench.models.load import Loaded
from kvbench.models.spec import TINY
from kvbench.quality.evaluate import likelihood, recall
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.transform.crossing import SEED
from kvbench.train_crossings import base_of
from kvbench.types import RunShape, Sample
from kvbench.workloads.recall import RecallTasks, draw
from kvbench.workloads.source import TokenSource

LENGTHS = (64, 256)  # of contexts
SAMPLES, PAIRS, WINDOWS, SCORED, BATCH = 32, 8, 16, 32, 32


def answer_nats(arm: Arm, samples: Sequence[Sample], contexts: Sequence[Sample]) -> float:
    """Return the mean loss of the tokens of answers, the question asked behind a context [nats per token].

    Args:
        arm: which.
        samples: of equal lengths, each with one question.
        contexts: samples whose contexts are read; the same ones, or others.
    """
    context, question, answer = samples[0].spans
    total, count = 0.0, 0
    for first in range(0, len(samples), BATCH):
        prompt = torch.tensor([each.ids[: context.stop] for each in contexts[first : first + BATCH]])
        behind = torch.tensor([each.ids[question.start : answer.stop] for each in samples[first : first + BATCH]])
        run = RunShape(prompt_lengths=(context.stop,) * len(prompt), new_tokens=behind.shape[1])
        cache = arm.cache(run)
        arm.prefill(cache, prompt)
        for at in range(behind.shape[1] - 1):
            logits = arm.step(cache, behind[:, at : at + 1])
            if at + 1 >= answer.start - question.start:
                total += torch.nn.functional.cross_entropy(logits, behind[:, at + 1], reduction="sum").item()
                count += len(behind)
    return total / count


def arms_of(base: Loaded, blocks: CacheStrategy) -> dict[str, Arm]:
    """Return arms that read a context as ever, through blocks, and not at all: through blocks that add nothing."""
    made = {"full cache": strategy("baseline"), "blocks": blocks, "no context": blocks}
    arms = {}
    for name, built in made.items():
        model = built.prepare(base.model)
        if name == "no context":
            crossings = crossings_of(model)
            assert crossings is not None
            crossings.draw(SEED)
        view = built.transform.view(model, base.view)
        arms[name] = Arm(name=name, model=model, view=view, strategy=built, engine=Eager(prefill_chunk=0))
    return arms


def write_card(trained: Path) -> None:
    """Write card.json into the folder of a training run, beside the blocks it describes."""
    (trained / "card.json").write_text(json.dumps(_card(trained), indent=1) + "\n")


@torch.no_grad()
def _card(trained: Path) -> dict[str, Any]:
    recipe = OmegaConf.load(trained / "recipe.yaml")
    base = base_of(recipe, "cpu")
    base.model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    transform = {**recipe.transform, "weights": str(trained)}
    arms = arms_of(base, strategy("arch_alt_10x", transform=transform))
    assert base.tokenizer is not None
    text = (TINY / "held_out.txt").read_text(encoding="utf-8")
    held_out = base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    tasks = RecallTasks.build(base.tokenizer, held_out)
    source = TokenSource(
        prefix=tasks.prefix, text=tuple(held_out), vocabulary=0, seed=0, name="held-out text", tasks=tasks
    )
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    crossings = crossings_of(arms["blocks"].model)
    assert crossings is not None
    return {
        "base": recipe.base,
        "parameters": sum(p.numel() for p in crossings.parameters()),
        "python": sys.version.split()[0],  # whose standard library is the text
        "steps": log[-1]["step"],
        "tokens_seen": log[-1]["step"] * recipe.optimiser.tokens_per_step,
        "seconds": log[-1]["seconds"],
        "held_out_nats": {
            name: {str(tokens): _text_nats(arm, source, tokens) for tokens in LENGTHS} for name, arm in arms.items()
        },
        "samples": SAMPLES,
        "tasks": {task: {str(tokens): _task(arms, tasks, task, tokens) for tokens in LENGTHS} for task in _TASKS},
        "note": "Not the paper's training budget: a few million tokens, of the tasks that are measured here.",
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }


_TASKS = ("key_value", "passkey")


def _text_nats(arm: Arm, source: TokenSource, tokens: int) -> float:
    windows = torch.tensor(source.windows(WINDOWS, tokens + 1 + SCORED))
    found = likelihood((arm,), windows, context=tokens, batch_size=BATCH, progress=lambda share: None)
    return round(found.nll[0] / found.tokens, 4)


def _task(arms: dict[str, Arm], tasks: RecallTasks, task: str, tokens: int) -> dict[str, dict[str, float]]:
    """Return the loss of answers and the share that is exact, by way of reading."""
    samples = draw(tasks, task, SAMPLES, tokens, PAIRS, seed=0, question_in_cache=False)
    nats = {name: answer_nats(arm, samples, samples) for name, arm in arms.items()}
    nats["blocks, another context"] = answer_nats(arms["blocks"], samples, [*samples[1:], samples[0]])
    exact = {
        name: recall(arm, samples, question_in_cache=False, batch_size=BATCH, progress=lambda share: None)
        for name, arm in arms.items()
    }
    return {"answer_nats": {name: round(value, 4) for name, value in nats.items()}, "recall": exact}
