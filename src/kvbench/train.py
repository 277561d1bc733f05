"""Training of the embedded models: corpus, tokenizer, mixture of tasks, optimiser.

    kvbench train family=tiny out=runs/train_tiny
    kvbench train family=mha out=runs/family/mha threads=1
    kvbench train family=gqa from=mha align=none share=0.05 out=runs/family/gqa_from_mha

Text comes from what every Python installation has: the standard library's sources and its documentation topics.
A run is a function of the recipe, the Python version, the device and the thread count; it is resumed from its last
checkpoint, on whatever device.
"""

from __future__ import annotations

import hashlib
import json
import pydoc_data.topics
import random
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from kvbench.models.load import recurrent
from kvbench.models.sharing import SharingConfig, SharingForCausalLM
from kvbench.models.spec import FAMILY, TINY
from kvbench.types import Sample
from kvbench.uptraining import converted
from kvbench.workloads.recall import RecallTasks

RECIPE = TINY / "recipe.yaml"
EVERY = 100  # steps between checkpoints
OF_ATTENTION = ("num_attention_heads", "max_position_embeddings", "rope_theta")  # of no use to the others
IGNORE = -100


def members() -> dict[str, Any]:
    """Return the recipe of every model that is trained here, by name."""
    family: Any = OmegaConf.load(FAMILY / RECIPE.name)
    own = family.pop("members")
    recipes = {name: OmegaConf.merge(family, {"model": changes}) for name, changes in own.items()}
    return {"tiny": OmegaConf.load(RECIPE), **recipes}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents by name, split into what is trained on and what is held out."""

    train: dict[str, str]
    held_out: dict[str, str]

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every document."""
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in (self.train | self.held_out).items()}


def read_corpus(held_out_every: int, skip_folders: list[str]) -> Corpus:
    """Read the standard library's documentation topics and sources.

    Args:
        held_out_every: every so many documents one is held out, in order of name.
        skip_folders: folders of the standard library left out.
    """
    documents = {f"topics/{name}": text for name, text in pydoc_data.topics.topics.items()}
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not set(skip_folders) & set(inside.parts):
            documents[str(inside)] = path.read_text(encoding="utf-8", errors="strict")
    names = sorted(documents)
    held_out = set(names[::held_out_every])
    return Corpus(
        train={name: documents[name] for name in names if name not in held_out},
        held_out={name: documents[name] for name in names if name in held_out},
    )


def held_out_text(corpus: Corpus) -> str:
    """Return the held-out sources; topics repeat each other, so that a held-out one may have been read elsewhere."""
    return "\n\n".join(text for name, text in corpus.held_out.items() if not name.startswith("topics/"))


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose digits stand alone and whose texts begin with "<s>"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=["<s>", "</s>"],
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


class Mixture:
    """Rows of text, copying, key-value recall and pass keys, with the targets that count."""

    def __init__(self, tokens: Tensor, tasks: RecallTasks, seed: int) -> None:
        self.tokens, self.tasks = tokens, tasks
        self.rng = random.Random(seed)

    def batch(self, rows: int, length: int, shares: Mapping[str, float]) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids [rows, length], targets [rows, length] and which rows are text [rows]."""
        chosen = self.rng.choices(list(shares), list(shares.values()), k=rows)
        if rows >= 2 and len(set(chosen) & {"text"}) == 0:
            chosen[0] = "text"  # every step sees text
        made = [getattr(self, f"_{kind}")(length) for kind in chosen]
        ids, targets = (torch.stack(column) for column in zip(*made, strict=True))
        return ids, targets, torch.tensor([kind == "text" for kind in chosen])

    def _window(self, length: int) -> Tensor:
        start = self.rng.randrange(len(self.tokens) - length)
        prefix = torch.tensor(self.tasks.prefix)
        return torch.cat([prefix, self.tokens[start : start + length - len(prefix)]])

    def _text(self, length: int) -> tuple[Tensor, Tensor]:
        ids = self._window(length)
        return ids, ids

    def _copy(self, length: int) -> tuple[Tensor, Tensor]:
        words = torch.tensor(self.tasks.keys + self.tasks.values)
        period = self.rng.randrange(8, length // 2 - 1)
        segment = words[torch.tensor([self.rng.randrange(len(words)) for _ in range(period)])]
        ids = torch.cat([torch.tensor(self.tasks.prefix), segment.repeat(length // period + 1)])[:length]
        targets = ids.clone()
        targets[: period + len(self.tasks.prefix) + 1] = IGNORE
        return ids, targets

    def _key_value(self, length: int) -> tuple[Tensor, Tensor]:
        most = 8 if length <= 64 else 16 if length <= 128 else 32
        pairs = self.rng.choice([p for p in (2, 4, 8, 16, 32) if p <= most])
        questions = min(pairs, 16, 2 if length <= 64 else 16)
        context = length - questions * (len(self.tasks.question_mark) + 2)
        while context < pairs * (len(self.tasks.pair_mark) + 2) + 8:
            pairs //= 2
            questions = min(questions, pairs)
            context = length - questions * (len(self.tasks.question_mark) + 2)
        return answers_only(self.tasks.key_value(self.rng, context_tokens=context, pairs=pairs, questions=questions))

    def _passkey(self, length: int) -> tuple[Tensor, Tensor]:
        answer = sum(len(self.tasks.digits[0]) for _ in range(5))
        context = length - len(self.tasks.passkey_lead) - answer
        return answers_only(self.tasks.passkey(self.rng, context_tokens=context))


def answers_only(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return ids, and targets of which the answers alone count."""
    ids = torch.tensor(sample.ids)
    targets = torch.full_like(ids, IGNORE)
    for span in sample.spans:
        if span.kind == "answer":
            targets[span.start : span.stop] = ids[span.start : span.stop]
    return ids, targets


def learning_rate(step: int, peak: float, points: Mapping[int, float]) -> float:
    """Return the rate of a step: linear between the given points."""
    return peak * float(np.interp(step, list(points), list(points.values())))


def until(step: int, schedule: Mapping[int, Any]) -> Any:
    """Return what a schedule says of a step: the value of the first bound above it."""
    return next(value for bound, value in schedule.items() if step < bound)


def network(architecture: Any, vocab_size: int) -> PreTrainedModel:
    """Return an untrained model of a recipe's architecture."""
    arguments: Any = OmegaConf.to_container(architecture)
    arguments |= {"vocab_size": vocab_size, "tie_word_embeddings": True}
    arguments |= {"bos_token_id": 0, "eos_token_id": 1}
    kind = arguments.pop("model_type", "llama")
    if kind in recurrent():
        made_of, own = recurrent()[kind], {name: value for name, value in arguments.items() if name not in OF_ATTENTION}
        made: PreTrainedModel = made_of(made_of.config_class(**own))
        return made
    arguments["rope_parameters"] = {"rope_type": "default", "rope_theta": arguments.pop("rope_theta")}
    if "sharing_layers" in arguments:
        return SharingForCausalLM(SharingConfig(**arguments))
    return LlamaForCausalLM(LlamaConfig(**arguments))


def decays(name: str, weight: Tensor) -> bool:
    """Return whether a weight is drawn towards 0: matrices are, rates of forgetting are not."""
    return weight.ndim == 2 and not name.endswith("A_log")


def train(recipe: Any, mixture: Mixture, vocab_size: int, out: Path, device: str = "cpu") -> Iterator[dict[str, float]]:
    """Train a model as `optimised` does, and leave it in the folder."""
    torch.manual_seed(recipe.seed)
    model = network(recipe.model, vocab_size)  # drawn on the CPU, so that all devices begin with the same
    if "start" in recipe:
        model.load_state_dict(converted(recipe.start))
    torch.nn.Module.to(model, device)  # transformers wraps it in something untyped
    model.set_attn_implementation("sdpa")

    def losses(step: int, length: int) -> tuple[Tensor, Tensor]:
        batch = mixture.batch(recipe.optimiser.tokens_per_step // length, length, until(step, recipe.mix))
        return _losses(model, *(rows.to(device) for rows in batch), is_low=recipe.precision == "bfloat16")

    yield from optimised(recipe, model, losses, mixture.rng, out, device)
    model.bfloat16().save_pretrained(out / "model")


def optimised(
    recipe: Any,
    model: torch.nn.Module,
    losses: Callable[[int, int], tuple[Tensor, Tensor]],
    rng: random.Random,
    out: Path,
    device: str,
) -> Iterator[dict[str, float]]:
    """Train, leave a checkpoint every so many steps and yield a log entry for it; resume from the last one.

    Args:
        recipe: of which the optimiser and the lengths are read here.
        model: what is trained of a network, or all of it.
        losses: returns those of text and of tasks, of a step and its sequences' length.
        rng: what rows are drawn with.
        out: folder of the checkpoint.
        device: as torch calls it.
    """
    out.mkdir(parents=True, exist_ok=True)
    matrices = [p for name, p in model.named_parameters() if decays(name, p)]
    others = [p for name, p in model.named_parameters() if not decays(name, p)]
    settings = recipe.optimiser
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=tuple(settings.betas),
    )
    first, before, checkpoint = 0, 0.0, out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=False)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        rng.setstate(state["rng"])
        first, before = state["step"], state["seconds"]
    started = time.perf_counter()
    for step in range(first, settings.steps):
        length = until(step, recipe.lengths)
        text, task = losses(step, length)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, settings.peak_rate, settings.rate)
        torch.autograd.backward((text, task))
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % EVERY == 0 or step + 1 == settings.steps:
            seconds = before + time.perf_counter() - started
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "rng": rng.getstate()}
            partial = checkpoint.with_suffix(".partial")
            torch.save(state | {"step": step + 1, "seconds": seconds}, partial)
            partial.replace(checkpoint)
            yield {
                "step": step + 1,
                "length": length,
                "text_nats": round(text.item(), 4),
                "task_nats": round(task.item(), 4),
                "seconds": round(seconds, 1),
            }


@torch.enable_grad()  # which a measurement in the same process turns off
def _losses(
    model: PreTrainedModel, ids: Tensor, targets: Tensor, is_text: Tensor, *, is_low: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss of the rows of text and of the others."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=is_low):
        logits = model(ids, use_cache=False).logits.float()
    return loss_of(logits[is_text], targets[is_text]), loss_of(logits[~is_text], targets[~is_text])


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of the targets that count; 0 where there is none."""
    if targets.numel() == 0:
        return logits.sum()
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORE
    )


def run(recipe: Any, out: Path, threads: int, device: str) -> None:
    """Train a model by its recipe and leave it, tokenizer, held-out text, hashes, recipe and log in a folder.

    Args:
        recipe: all but the embedded model's use the embedded tokenizer.
        out: folder; a run that was interrupted goes on from what it left there.
        threads: of the CPU.
        device: as torch calls it.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(recipe, out / "recipe.yaml")
    corpus = read_corpus(recipe.data.held_out_every, list(recipe.data.skip_folders))
    (out / "corpus.json").write_text(json.dumps(corpus.hashes(), indent=0))
    (out / "held_out.txt").write_text(held_out_text(corpus))
    if recipe != members()["tiny"]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY)
    elif (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(list(corpus.train.values()), recipe.data.vocab_size)
    tokenizer.save_pretrained(out)
    tokens = torch.tensor(tokenizer("\n\n".join(corpus.train.values()), add_special_tokens=False).input_ids)
    tasks = RecallTasks.build(tokenizer, tokens.tolist())
    mixture = Mixture(tokens, tasks, recipe.seed)
    with (out / "log.jsonl").open("a") as log:
        for entry in train(recipe, mixture, len(tokenizer), out, device):
            print(json.dumps(entry), file=log, flush=True)
