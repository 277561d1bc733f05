"""Quality measured through the cache: the prompt is read and compressed, what follows is fed token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench.engines.arm import Arm
from kvbench.types import RunShape, Sample

Progress = Callable[[float], None]


@dataclass(kw_only=True)
class Likelihood:
    """What continuations say of two arms.

    Args:
        nll: sum of the negative log-likelihood per arm [nats], strategy first.
        rank: sum of the ranks of the true tokens per arm, strategy first; 1 is the most likely token.
        kl: sum of KL(baseline || strategy) [nats]; with one arm alone this and the next two stay 0.
        agree: tokens whose most likely continuation is the same.
        difference: largest logit difference.
        tokens: scored tokens.
        packed: of "key" and "value" the squares of what packing did to prompts, and of what was packed, summed.
    """

    nll: list[float] = field(default_factory=lambda: [0.0, 0.0])
    rank: list[int] = field(default_factory=lambda: [0, 0])
    kl: float = 0.0
    agree: int = 0
    difference: float = 0.0
    tokens: int = 0
    packed: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def packing_errors(self) -> dict[str, float]:
        """Root mean squares of what packing did, over those of what was packed; empty where nothing was."""
        return {f"{name}_error": math.sqrt(error / size) for name, (error, size) in self.packed.items() if size > 0}

    def add(self, logits: Sequence[Tensor], target: Tensor) -> None:
        """Count one token per row.

        Args:
            logits: of each arm [B, V], the strategy's first.
            target: true next tokens [B].
        """
        said = [t.double().log_softmax(dim=-1) for t in logits]
        for index, log_probability in enumerate(said):
            true = log_probability.gather(1, target[:, None])
            self.nll[index] -= true.sum().item()
            self.rank[index] += len(target) + int((log_probability > true).sum())
        self.tokens += len(target)
        if len(said) == 1:
            return
        mine, theirs = said
        self.kl += (theirs.exp() * (theirs - mine)).sum().item()
        self.agree += int((mine.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
        self.difference = max(self.difference, (logits[0].double() - logits[1].double()).abs().max().item())


def likelihood(
    arms: Sequence[Arm], windows: Tensor, *, context: int, batch_size: int, progress: Progress
) -> Likelihood:
    """Feed continuations through the caches of one arm, or of two in lockstep.

    The token right after the context only enters the caches: its own likelihood was decided before anything left.

    Args:
        arms: the one judged and, where both read the same tokens, the baseline it is compared with.
        windows: ids [W, context + 1 + scored].
        context: tokens read and compressed.
        batch_size: windows at once.
        progress: told how much is done.
    """
    found = Likelihood()
    steps = windows.shape[1] - context - 1
    for first in range(0, len(windows), batch_size):
        ids = windows[first : first + batch_size]
        run = RunShape(prompt_lengths=(context,) * len(ids), new_tokens=steps + 1)
        caches = [arm.cache(run) for arm in arms]
        for arm, cache in zip(arms, caches, strict=True):
            arm.prefill(cache, ids[:, :context])
        for name, squares in (arms[0].packing_squares(*caches) if len(arms) == 2 else {}).items():
            before = found.packed.get(name, (0.0, 0.0))
            found.packed[name] = (before[0] + squares[0], before[1] + squares[1])
        for at in range(context, context + steps):
            logits = [arm.step(cache, ids[:, at : at + 1]) for arm, cache in zip(arms, caches, strict=True)]
            found.add(logits, ids[:, at + 1])
        progress(min(1.0, (first + len(ids)) / len(windows)))
    return found


def recall(
    arm: Arm, samples: Sequence[Sample], *, question_in_cache: bool, batch_size: int, progress: Progress
) -> float:
    """Return the share of samples whose whole answer is the most likely continuation.

    The question is always asked after compression; query-aware runs have it in the compressed prompt as well, so
    that an answer never comes from attention that nothing had left yet.

    Args:
        arm: which.
        samples: of equal lengths, each with one question.
        question_in_cache: whether the question is part of what is compressed too.
        batch_size: samples at once.
        progress: told how much is done.
    """
    right = 0
    for first in range(0, len(samples), batch_size):
        batch = samples[first : first + batch_size]
        right += _answered(arm, batch, question_in_cache=question_in_cache)
        progress(min(1.0, (first + len(batch)) / len(samples)))
    return right / len(samples)


def _answered(arm: Arm, samples: Sequence[Sample], *, question_in_cache: bool) -> int:
    context, question, answer = samples[0].spans
    ids = torch.tensor([sample.ids for sample in samples], device=arm.view.device)
    prompt = ids[:, : question.stop if question_in_cache else context.stop]
    rest = ids[:, question.start : answer.stop]
    cache = arm.cache(RunShape(prompt_lengths=(prompt.shape[1],) * len(ids), new_tokens=rest.shape[1]))
    arm.prefill(cache, prompt)
    asked = question.stop - question.start
    is_right = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for at in range(rest.shape[1] - 1):
        logits = arm.step(cache, rest[:, at : at + 1])
        if at + 1 >= asked:
            is_right &= logits.argmax(dim=-1) == rest[:, at + 1]
    return int(is_right.sum())


def bits_per_byte(nll_nats: float, num_bytes: int) -> float:
    """Return a likelihood in the one unit that does not depend on the tokenizer."""
    return nll_nats / math.log(2) / num_bytes
