"""What a trained model can do: its loss beside a 3-gram's, and what it recalls with the full cache and a window."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import PreTrainedTokenizerFast

from kvbench.api import strategy
from kvbench.cache.doors import ATTENTION
from kvbench.configuration import build_group, compose, resolved
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.load import load
from kvbench.quality.evaluate import recall
from kvbench.quality.ngram import KneserNey
from kvbench.train import held_out_text, read_corpus
from kvbench.types import RunShape
from kvbench.workloads.recall import RecallTasks, draw

LENGTHS = (256, 512, 1024)
WINDOW = 128
SAMPLES = 256
PAIRS = 16


def text_loss(model: nn.Module, ids: Sequence[int], prefix: Sequence[int], tokens: int) -> float:
    """Return the mean loss over whole windows of a text [nats per token].

    Args:
        model: with a stock attention function.
        ids: the text.
        prefix: ids that begin every window.
        tokens: per window, prefix included.
    """
    need = tokens - len(prefix)
    windows = [[*prefix, *ids[at : at + need]] for at in range(0, len(ids) - need, need)]
    losses = []
    for row in windows:
        logits = model(torch.tensor([row]), use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:])).item())
    return sum(losses) / len(losses)


def recalled(arm: Arm, tasks: RecallTasks, task: str, tokens: int, samples: int) -> float:
    """Return the share of exact answers, question asked after the context."""
    drawn = draw(tasks, task, samples, tokens, PAIRS, seed=0, question_in_cache=False)
    return recall(arm, drawn, question_in_cache=False, batch_size=16, progress=lambda share: None)


def write_card(trained: Path) -> None:
    """Write card.json into the folder of a training run, beside the weights it describes."""
    (trained / "card.json").write_text(json.dumps(_card(trained), indent=1) + "\n")


@torch.no_grad()
def _card(trained: Path) -> dict[str, Any]:
    recipe = OmegaConf.load(trained / "recipe.yaml")
    corpus = read_corpus(recipe.data.held_out_every, list(recipe.data.skip_folders))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return found

    train_ids, held_out_ids = ids("\n\n".join(corpus.train.values())), ids(held_out_text(corpus))
    spec = build_group(resolved(compose([]))["model"], "model")
    spec = replace(spec, path=str(trained / "model"), device="cpu")
    stock = load(spec, seed=0, attention="sdpa").model
    loaded = load(spec, seed=0, attention=ATTENTION)
    full, window = strategy("baseline"), strategy("sliding_window", budget={"amount": WINDOW, "unit": "tokens"})
    arms = {
        name: Arm(name=name, model=loaded.model, view=loaded.view, strategy=built, engine=Eager(prefill_chunk=0))
        for name, built in (("full", full), (f"window_{WINDOW}", window))
        if built.unsupported(loaded.view, RunShape(prompt_lengths=(max(LENGTHS),), new_tokens=1)) is None
    }
    tasks = RecallTasks.build(tokenizer, held_out_ids)
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    last = log[-1] if log else {"step": 0, "seconds": 0.0}
    losses = {tokens: text_loss(stock, held_out_ids, tasks.prefix, tokens) for tokens in LENGTHS}
    return {
        "parameters": sum(p.numel() for p in stock.parameters()),
        "python": sys.version.split()[0],  # whose standard library is the text
        "corpus_sha256": sha256(json.dumps(corpus.hashes()).encode()).hexdigest(),
        "corpus_tokens": len(train_ids),
        "held_out_tokens": len(held_out_ids),
        "steps": last["step"],
        "tokens_seen": last["step"] * recipe.optimiser.tokens_per_step,
        "seconds": last["seconds"],
        "held_out_nats": {str(tokens): round(loss, 4) for tokens, loss in losses.items()},
        "kneser_ney_nats": round(KneserNey(train_ids, len(tokenizer)).nll_nats(held_out_ids), 4),
        "recall_samples": SAMPLES,
        "recall": {
            f"{task}, {name}": {str(n): recalled(arm, tasks, task, n, SAMPLES) for n in LENGTHS}
            for task in ("key_value", "passkey")
            for name, arm in arms.items()
        },
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }
