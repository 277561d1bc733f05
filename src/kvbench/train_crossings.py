"""Training of the blocks that read a context which the model itself has encoded and forgotten.

    kvbench train family=xc10 out=runs/family/xc10

The model is frozen; of the context only the blocks see anything.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from kvbench.configuration import build_group, compose, resolved
from kvbench.kernels.rotary import turn
from kvbench.models.crossing import EPSILON, Crossings, Places
from kvbench.models.load import Loaded, load
from kvbench.models.spec import FAMILY
from kvbench.strategies.transform.crossing import FILE, SEED, Crossed, said_of, with_crossings
from kvbench.train import IGNORE, answers_only, loss_of, optimised, read_corpus, until
from kvbench.types import Sample
from kvbench.workloads.recall import RecallTasks

RECIPE = FAMILY / "crossing.yaml"
MOST_PAIRS = 32
FIRST = (32, 224)  # contexts that say how keys and values differ, and their tokens


def members() -> dict[str, Any]:
    """Return the recipe of every set of blocks that is trained here, by name."""
    recipe: Any = OmegaConf.load(RECIPE)
    own = recipe.pop("members")
    return {name: OmegaConf.merge(recipe, changes) for name, changes in own.items()}


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one block reads of contexts that are all as long.

    Args:
        key: [B, G, T, D], rotated.
        value: [B, G, T, D_v].
        rotary: inverse frequencies, or None.
    """

    key: Tensor
    value: Tensor
    rotary: Tensor | None

    @staticmethod
    def of(pair: tuple[Tensor, Tensor], rotary: Tensor | None) -> Read:
        """Return what is read of keys, not rotated, and values."""
        key, value = pair
        return Read(key=_rotated(key, 0, rotary), value=value, rotary=rotary)

    def cross(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention [B, H, t, D_v] of the first tokens behind the context; queries not rotated."""
        query = _rotated(query, self.key.shape[2], self.rotary)
        return nn.functional.scaled_dot_product_attention(query, self.key, self.value, scale=scale, enable_gqa=True)


def _rotated(rows: Tensor, start: int, rotary: Tensor | None) -> Tensor:
    if rotary is None:
        return rows
    at = torch.arange(start, start + rows.shape[2], device=rows.device)
    return turn(rows, at.expand(len(rows), 1, -1), rotary)


class Contexts:
    """Contexts and what is said behind them: text that goes on, pairs of words of it, questions and answers.

    Args:
        tokens: of the text.
        tasks: of recall.
        behind: tokens behind a context.
        seed: of every choice.
    """

    def __init__(self, tokens: Tensor, tasks: RecallTasks, behind: int, seed: int) -> None:
        self.tokens, self.tasks, self.behind = tokens, tasks, behind
        self.rng = random.Random(seed)

    def batch(self, rows: int, context: int, shares: Mapping[str, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return contexts [rows, context], ids and targets behind them, and which rows are text [rows]."""
        chosen = self.rng.choices(list(shares), list(shares.values()), k=rows)
        made = [getattr(self, f"_{kind}")(context) for kind in chosen]
        ids, targets = (torch.stack(column) for column in zip(*made, strict=True))
        is_text = torch.tensor([kind == "text" for kind in chosen])
        return ids[:, :context], ids[:, context:], targets[:, context:], is_text

    def _text(self, context: int) -> tuple[Tensor, Tensor]:
        length, prefix = context + self.behind, torch.tensor(self.tasks.prefix)
        start = self.rng.randrange(len(self.tokens) - length)
        ids = torch.cat([prefix, self.tokens[start : start + length - len(prefix)]])
        return ids, ids

    def _pair(self, context: int) -> tuple[Tensor, Tensor]:
        """Return random words behind text, and some of them again, each with the one behind it, which counts.

        There is text where a context is longer than all words.
        """
        words = self.tasks.keys + self.tasks.values
        count = min(len(words), context - len(self.tasks.prefix))
        text = self._text(context)[0][: context - count]
        ids = torch.cat([text, torch.tensor(self.rng.sample(words, count))])
        asked = self.rng.sample(range(context - count, context - 1), min(self.behind // 2, count - 1))
        at = torch.tensor(asked)
        again = torch.zeros(self.behind, dtype=torch.long)
        again[: 2 * len(at)] = torch.stack([ids[at], ids[at + 1]], dim=1).flatten()
        targets = torch.full_like(again, IGNORE)
        targets[1 : 2 * len(at) : 2] = ids[at + 1]
        return torch.cat([ids, again]), torch.cat([torch.full_like(ids, IGNORE), targets])

    def _key_value(self, context: int) -> tuple[Tensor, Tensor]:
        most = min(MOST_PAIRS, (context - 8) // (len(self.tasks.pair_mark) + 2))
        pairs = self.rng.choice([count for count in (2, 4, 8, 16, MOST_PAIRS) if count <= most])
        questions = min(pairs, self.behind // (len(self.tasks.question_mark) + 2))
        return self._filled(self.tasks.key_value(self.rng, context_tokens=context, pairs=pairs, questions=questions))

    def _passkey(self, context: int) -> tuple[Tensor, Tensor]:
        return self._filled(self.tasks.passkey(self.rng, context_tokens=context))

    def _filled(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return ids with something behind them that does not count, and targets."""
        ids, targets = answers_only(sample)
        behind = (0, sample.spans[0].stop + self.behind - len(ids))
        return nn.functional.pad(ids, behind), nn.functional.pad(targets, behind, value=IGNORE)


@torch.no_grad()
def hidden_of(model: Any, crossings: Crossings, contexts: Tensor) -> Tensor:
    """Return the hidden states [B, T, hidden] of contexts that a model's blocks read an encoding of."""
    found: list[Tensor] = []
    config, all_layers = model.config, model.config.num_hidden_layers
    config.num_hidden_layers = crossings.places.encoded + 1  # those behind add nothing to it
    try:
        model.base_model(contexts, use_cache=False, keep=found.append)
    finally:
        config.num_hidden_layers = all_layers
    return found[0]


@torch.no_grad()
def begin(model: Any, crossings: Crossings, contexts: Tensor) -> None:
    """Draw a block, and have it begin as the attention of the layer behind it to the whole context.

    It takes over the projections; the encoding is what keys and values of some contexts differ most in. A layer that
    finds what stood behind a word before does so from the first step on.

    Args:
        model: with the block; a Llama.
        crossings: the block.
        contexts: ids [B, T].
    """
    crossings.draw(SEED)
    block: Any = crossings.blocks[0]
    layer = model.base_model.layers[crossings.places.encoded + 1]
    heads, norm = layer.self_attn, layer.input_layernorm.weight
    hidden = hidden_of(model, crossings, contexts)
    rows = nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=EPSILON).flatten(0, 1)
    both = [part.weight * norm for part in (heads.k_proj, heads.v_proj)]
    scales = torch.cat([(rows @ each.T).std().expand(len(each), 1) for each in both])
    weights = torch.cat(both) / scales
    made = rows @ weights.T
    directions = torch.linalg.eigh(made.T @ made).eigenvectors[:, -crossings.width :]
    keys, values = (scales * directions).split([len(each) for each in both])
    begun = {
        "attention_norm": norm,
        "q_proj": heads.q_proj.weight,
        "k_proj": keys,
        "v_proj": values,
        "o_proj": heads.o_proj.weight,
    }
    crossings.encoder.weight.copy_(directions.T @ weights)  # type: ignore[operator]
    for name, weight in begun.items():
        block.get_submodule(name).weight.copy_(weight)


def losses_of(model: Any, crossings: Crossings, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the loss of what is said behind contexts that blocks alone have read: of text, and of answers.

    Args:
        model: with the blocks.
        crossings: the blocks.
        batch: of `Contexts`.
    """
    contexts, ids, targets, is_text = (rows.to(model.device) for rows in batch)
    hidden = hidden_of(model, crossings, contexts)
    with torch.enable_grad():
        readers = [Read.of(pair, crossings.shape.rotary) for pair in crossings.pairs(crossings.encode(hidden))]
        logits = model(ids, use_cache=False, readers=readers).logits
        return loss_of(logits[is_text], targets[is_text]), loss_of(logits[~is_text], targets[~is_text])


def run(name: str, out: Path, threads: int, device: str) -> None:
    """Train blocks by their recipe and leave them, the recipe and a log in a folder.

    Args:
        name: of the recipe.
        out: folder; a run that was interrupted goes on from what it left there.
        threads: of the CPU.
        device: as torch calls it.
    """
    torch.set_num_threads(threads)
    recipe = members()[name]
    out.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(recipe, out / "recipe.yaml")
    base = base_of(recipe, device)
    corpus = read_corpus(recipe.data.held_out_every, list(recipe.data.skip_folders))
    text = "\n\n".join(corpus.train.values())
    tokens = torch.tensor(base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)  # type: ignore[misc]
    tasks = RecallTasks.build(base.tokenizer, tokens.tolist())  # type: ignore[arg-type]
    contexts = Contexts(tokens, tasks, recipe.behind, recipe.seed)
    with (out / "log.jsonl").open("a") as log:
        for entry in train(recipe, base, contexts, out, device):
            print(json.dumps(entry), file=log, flush=True)


def base_of(recipe: Any, device: str) -> Loaded:
    """Return the model that blocks are trained for."""
    spec = build_group(resolved(compose([f"model={recipe.base}"]))["model"], "model")
    return load(replace(spec, device=device, dtype="float32"), seed=0, attention="sdpa")


def train(recipe: Any, base: Loaded, contexts: Contexts, out: Path, device: str = "cpu") -> Iterator[dict[str, float]]:
    """Train blocks, and leave them in the folder; resume from the last checkpoint."""
    asked = Crossed(**recipe.transform, weights="")
    places = Places(behind=(recipe.behind_layer,), encoded=recipe.behind_layer)
    crossings = Crossings(base.view, places, asked.sizes(base.view)[1]).to(device)
    model = with_crossings(base.model, base.view, crossings)
    begin(model, crossings, contexts.batch(*FIRST, until(0, recipe.mix))[0].to(device))

    def losses(step: int, length: int) -> tuple[Tensor, Tensor]:
        rows = recipe.optimiser.tokens_per_step // (length + recipe.behind)
        return losses_of(model, crossings, contexts.batch(rows, length, until(step, recipe.mix)))

    yield from optimised(recipe, crossings, losses, contexts.rng, out, device)
    said = {**said_of(crossings, base.view), "model": recipe.base}
    kept = {name: weight.bfloat16().cpu() for name, weight in crossings.state_dict().items()}
    save_file(kept, out / FILE, metadata=said)
