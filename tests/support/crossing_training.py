"""What must hold for the training of blocks that read contexts."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import LlamaForCausalLM

from kvbench import train, train_crossings
from kvbench.api import strategy
from kvbench.crossing_card import answer_nats, arms_of
from kvbench.models.crossing import Crossings, Places
from kvbench.models.load import Loaded
from kvbench.models.spec import FAMILY
from kvbench.models.view import view_of
from kvbench.strategies.transform.crossing import FILE, Crossed, with_crossings
from kvbench.train_crossings import Contexts
from kvbench.workloads.recall import RecallTasks, draw
from tests.support.family import VOCABULARY, few_tokens, recipes
from tests.support.models import attention

CONTEXT, BEHIND, STEPS = 48, 32, 6


def contexts(seed: int = 3) -> Contexts:
    """Return contexts over little text."""
    mixture = few_tokens(seed)
    return Contexts(mixture.tokens, mixture.tasks, BEHIND, seed)


def base() -> Loaded:
    """Return a small model that nobody has trained."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    model: Any = train.network(OmegaConf.merge(recipes()["gqa"].model, sizes), VOCABULARY)
    assert isinstance(model, LlamaForCausalLM)
    model.model.embed_tokens.weight.data.mul_(20)  # the head's as well, which nobody trains
    model.eval().requires_grad_(False).set_attn_implementation("sdpa")
    return Loaded(model=model, tokenizer=None, view=view_of(model), weights="random", revision="seed-5")


def small(steps: int = STEPS) -> Any:
    """Return a recipe that takes a second."""
    recipe: Any = train_crossings.members()["xc10"]
    recipe.optimiser = {
        **recipe.optimiser,
        "steps": steps,
        "tokens_per_step": 640,
        "peak_rate": 1e-2,
        "rate": {0: 1.0, steps: 1.0},
    }
    recipe.lengths, recipe.mix = {steps: CONTEXT}, {steps: {"text": 0.5, "pair": 0.5}}
    return recipe


def trained(out: Path, given: Loaded, recipe: Any, most: int | None = None) -> list[dict[str, float]]:
    """Train, or go on, with a checkpoint every other step, up to so many log entries, and return these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EVERY", 2)
        patch.setattr(time, "perf_counter", itertools.count().__next__)
        return list(itertools.islice(train_crossings.train(recipe, given, contexts(), out), most))


def what_is_asked_stands_in_the_context() -> None:
    """Words behind others, answers and digits are those of the context, and what is text goes on behind it."""
    made, tasks = contexts(), contexts().tasks
    assert made.batch(1, 1200, {"pair": 1.0})[0].shape == (1, 1200), "longer than all words"
    for kind in ("text", "pair", "key_value", "passkey"):
        read, ids, targets, is_text = made.batch(4, CONTEXT, {kind: 1.0})
        assert (read.shape, ids.shape, targets.shape) == ((4, CONTEXT), (4, BEHIND), (4, BEHIND))
        assert is_text.tolist() == [kind == "text"] * 4
        for row in range(4):
            context, behind = " ".join(map(str, read[row].tolist())), ids[row].tolist()
            asked = [at for at in range(BEHIND) if targets[row, at] >= 0]
            assert all(targets[row, at] == behind[at] for at in asked)
            if kind == "pair":
                assert asked == list(range(1, BEHIND, 2))
                assert all(" ".join(map(str, behind[at - 1 : at + 1])) in context for at in asked)
            elif kind == "key_value":
                pairs = [" ".join(map(str, (*tasks.pair_mark, *behind[at - 1 : at + 1]))) for at in asked]
                assert pairs
                assert all(pair in context for pair in pairs)
            elif kind == "passkey":
                assert " ".join(str(behind[at]) for at in asked) in context
            else:
                text = " ".join(map(str, made.tokens.tolist()))
                assert f"{context} {' '.join(map(str, behind))}".removeprefix(f"{tasks.prefix[0]} ") in text


def a_block_begins_as_the_layer_behind_it() -> None:
    """Where the encoding has room for them, keys and values of a context are those of the layer behind the block."""
    given, read = base(), contexts().batch(2, CONTEXT, {"text": 1.0})[0]
    crossings = Crossings(given.view, Places(behind=(0,), encoded=0), 16)  # 2 heads of 4, keys and values
    model = with_crossings(given.model, given.view, crossings)
    train_crossings.begin(model, crossings, read)
    alone: Any = given.model.base_model
    layer, hidden = alone.layers[1], alone(read, output_hidden_states=True).hidden_states[1]
    normed = layer.input_layernorm(hidden)
    (got,), heads = crossings.pairs(crossings.encode(hidden)), layer.self_attn
    for mine, part in zip(got, (heads.k_proj, heads.v_proj), strict=True):
        torch.testing.assert_close(mine.transpose(1, 2).flatten(2), part(normed), rtol=1e-3, atol=1e-4)
    block: Any = crossings.blocks[0]
    assert torch.equal(block.q_proj(block.attention_norm(hidden)), heads.q_proj(block.attention_norm(hidden)))
    assert torch.equal(block.o_proj.weight, heads.o_proj.weight)
    assert not block.down_proj.weight.any()


def training_goes_on_exactly() -> None:
    """A run that was interrupted twice ends with the blocks and the losses of one that was not."""
    given, recipe = base(), small()
    with TemporaryDirectory() as whole, TemporaryDirectory() as parts:
        want = trained(Path(whole), given, recipe)
        got = [*trained(Path(parts), given, recipe, 1), *trained(Path(parts), given, recipe)]
        assert got == want
        assert [entry["step"] for entry in want] == [2, 4, 6]
        ends = [torch.load(Path(out) / "checkpoint.pt", weights_only=False)["model"] for out in (whole, parts)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def training_lowers_the_loss_of_a_frozen_model() -> None:
    """Thirty steps lower the loss of text by half a nat, change nothing of the model, and leave blocks for it."""
    given = base()
    before = {name: weight.clone() for name, weight in given.model.state_dict().items()}
    with TemporaryDirectory() as folder:
        entries = trained(Path(folder), given, small(30))
        assert entries[-1]["text_nats"] < entries[0]["text_nats"] - 0.5, entries
        made = Crossed(compression=10, mode="auto", weights=folder).prepare(given.model)
        assert not view_of(made).is_untrained
        with pytest.raises(ValueError, match="kvbench train family=xc10"):
            Crossed(compression=20, mode="auto", weights=folder).prepare(given.model)
    after = given.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def answers_are_scored_behind_their_context() -> None:
    """The loss of answers is that of the whole text at once; without a context it is that of the question alone."""
    given, tasks = base(), contexts().tasks
    samples = draw(tasks, "key_value", 3, CONTEXT, 4, seed=1, question_in_cache=False)
    arms = arms_of(given, strategy("arch_alt_10x"))
    texts = torch.tensor([sample.ids for sample in samples])
    with attention(given.model, "sdpa") as stock, torch.no_grad():  # type: ignore[arg-type]
        want = [_answers(stock(rows, use_cache=False).logits, rows) for rows in (texts, texts[:, CONTEXT:])]
    with attention(given.model, "kvbench"), torch.no_grad():  # type: ignore[arg-type]
        others = [*samples[1:], samples[0]]
        got = [answer_nats(arms[name], samples, samples) for name in ("full cache", "no context", "blocks")]
        moved = answer_nats(arms["full cache"], samples, others)
    assert got == pytest.approx([*want, want[1]], abs=1e-4)
    assert abs(moved - want[0]) > 1e-3


def _answers(logits: Tensor, rows: Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits[:, -2], rows[:, -1]).item()


def shipped() -> list[str]:
    """Return the blocks that come with kvbench."""
    return sorted({card.parent.name for card in FAMILY.glob("*/card.json")} & train_crossings.members().keys())


def what_is_shipped_is_what_its_card_says(member: str) -> None:
    """Blocks are found for the embedded model, and answers behind their own context are nearer than without it."""
    folder, recipe = FAMILY / member, train_crossings.members()[member]
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["steps"] == recipe.optimiser.steps
    assert (folder / FILE).stat().st_size < 6_000_000
    given = train_crossings.base_of(recipe, "cpu")
    assert given.tokenizer is not None
    tasks = RecallTasks.build(given.tokenizer, contexts().tokens.tolist())
    samples = draw(tasks, "passkey", 16, 64, 8, seed=0, question_in_cache=False)
    with attention(given.model, "kvbench"), torch.no_grad():  # type: ignore[arg-type]
        arms = arms_of(given, strategy("arch_alt_10x", transform=dict(recipe.transform)))
        assert not arms["blocks"].view.is_untrained
        got = {name: answer_nats(arm, samples, samples) for name, arm in arms.items()}
        moved = answer_nats(arms["blocks"], samples, [*samples[1:], samples[0]])
    said = card["tasks"]["passkey"]["64"]["answer_nats"]
    assert got["blocks"] == pytest.approx(said["blocks"], abs=0.5)
    assert got["blocks"] < min(got["no context"], moved) - 1
