"""A recorded step: the operations of one step, done again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.cache.kv_cache import KVCache
from kvbench.engines import tape
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.engines.replaying import Replaying
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.tracing import attention_lost
from kvbench.types import RunShape
from tests.support.drive import padded
from tests.support.models import attention, ids, model_for
from tests.support.strategies import strategy

PROMPT, NEW = 20, 12
KEEPS, FILLS = PROMPT // 2, PROMPT + NEW // 2  # budgets met by the prompt, and only while decoding


class Replayed(Replaying):
    """Replays what `engine=recorded` does, of a model in any dtype."""

    def record(self, model: nn.Module, cache: KVCache, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what does a step for other ids."""
        return tape.recorded(model, cache, ids)


EAGER, REPLAYED = Eager(prefill_chunk=0), Replayed(prefill_chunk=0)


def arm(made: CacheStrategy, model_name: str, engine: Eager) -> Arm:
    """Return a strategy on a small random model."""
    return _arm(made, model_for(made, model_name), engine)


def _arm(made: CacheStrategy, model: PreTrainedModel, engine: Eager) -> Arm:
    return Arm(name="strategy", model=model, view=engine.view(view_of(model)), strategy=made, engine=engine)


def refusal(made: CacheStrategy, model_name: str, new_tokens: int | None = NEW) -> str | None:
    """Return why a strategy's steps cannot be recorded, or None."""
    view = replace(view_of(model_for(made, model_name)), replays=True)
    return made.unsupported(view, RunShape(prompt_lengths=(PROMPT,), new_tokens=new_tokens))


def replays_are_eager_steps(made: CacheStrategy, model_name: str, lengths: Sequence[int] = (PROMPT,)) -> None:
    """Logits, and what is held, of replayed steps are those of eager ones, at first and after going back."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    tokens = padded([ids(7 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    with attention(model_for(made, model_name), "kvbench"):
        (want, kept), (again, _) = _twice(arm(made, model_name, EAGER), run, tokens)
        assert torch.equal(want, again)
        for got, held in _twice(arm(made, model_name, REPLAYED), run, tokens):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10 * want.abs().max().item())
            assert held == kept


def _twice(one: Arm, run: RunShape, tokens: Tensor) -> list[tuple[Tensor, list[object]]]:
    """Return the logits [B, 1 + steps, V] and what is held after each step, then the same from the prompt's end on."""
    cache = one.cache(run)
    first = one.prefill(cache, tokens[:, : run.prompt_tokens])
    before, found = cache.snapshot(), []
    for _ in range(2):
        cache.restore(before)
        logits, held = [first], []
        for at in range(run.prompt_tokens, tokens.shape[1]):
            logits.append(one.step(cache, tokens[:, at : at + 1]))
            rows = [row for layer in cache.layers for row in layer.held_positions().tolist()]
            held.append([[at for at in heads if at >= 0] for row in rows for heads in row])
        found.append((torch.stack(logits, dim=1), [cache.used_bytes(), *held]))
    if isinstance(one.engine, Replayed):
        assert cache.recorded
        assert all(cache.recorded.values())
    return found


def a_pass_over_several_tokens_is_those_steps(made: CacheStrategy, model_name: str) -> None:
    """Three tokens in one pass, and replayed steps behind them, say what eager steps say."""
    run, tokens = RunShape(prompt_lengths=(PROMPT,), new_tokens=NEW), ids(7, 1, PROMPT + NEW)
    with attention(model_for(made, model_name), "kvbench"):
        found = []
        for engine, several in ((EAGER, 1), (REPLAYED, 3)):
            one = arm(made, model_name, engine)
            cache = one.cache(run)
            one.prefill(cache, tokens[:, :PROMPT])
            for at in range(PROMPT, PROMPT + 3, several):
                logits = [one.step(cache, tokens[:, at : at + several])]
            logits += [one.step(cache, tokens[:, at : at + 1]) for at in range(PROMPT + 3, PROMPT + NEW)]
            found.append(torch.stack(logits))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10 * found[0].abs().max().item())


def more_than_was_said_is_refused(made: CacheStrategy, model_name: str) -> None:
    """A token behind those that a cache was built for is refused, whether its step is recorded or not."""
    run, tokens = RunShape(prompt_lengths=(PROMPT,), new_tokens=NEW), ids(7, 1, PROMPT + NEW + 1)
    for stop in (NEW, 1):  # before a step was recorded, too
        run = replace(run, new_tokens=stop)
        with attention(model_for(made, model_name), "kvbench"):
            one = arm(made, model_name, REPLAYED)
            cache = one.cache(run)
            one.prefill(cache, tokens[:, :PROMPT])
            for at in range(PROMPT, PROMPT + stop):
                one.step(cache, tokens[:, at : at + 1])
            with pytest.raises(ValueError, match=f"{stop} new ones; token {PROMPT + stop + 1} does not fit"):
                one.step(cache, tokens[:, PROMPT + stop : PROMPT + stop + 1])


def states_are_those_of_eager_steps(network: PreTrainedModel) -> None:
    """Logits of replayed steps of a recurrent network are those of eager ones, at first and after going back."""
    run, tokens = RunShape(prompt_lengths=(PROMPT,), new_tokens=NEW), ids(7, 1, PROMPT + NEW)
    eager, replayed = (_twice(_arm(strategy("baseline"), network, engine), run, tokens) for engine in (EAGER, REPLAYED))
    for (got, _), (want, _) in zip(replayed, eager, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10 * want.abs().max().item())


def what_is_asked_of_a_cache_is_answered(packed: CacheStrategy, model_name: str) -> None:
    """What packing did to a prompt, and where attention goes, are said of recorded steps as of eager ones."""
    run, tokens = RunShape(prompt_lengths=(PROMPT,), new_tokens=NEW), ids(7, 1, PROMPT + NEW)
    layers = len(view_of(model_for(packed, model_name)).layers)
    held = ((torch.arange(2)[None, None],) * layers,) * (NEW + 1)  # all but the first two are lost
    found = []
    with attention(model_for(packed, model_name), "kvbench"), torch.no_grad():
        for engine in (EAGER, REPLAYED):
            mine, full = (arm(made, model_name, engine) for made in (packed, strategy("baseline")))
            caches = [each.cache(run) for each in (mine, full)]
            for each, cache in zip((mine, full), caches, strict=True):
                each.prefill(cache, tokens[:, :PROMPT])
            found.append((mine.packing_squares(*caches), attention_lost(full, tokens, held)))
    (error, lost), (want, really) = found
    for side in ("key", "value"):
        assert want[side][0] > 0
        assert error[side] == pytest.approx(want[side], rel=1e-10)
    assert really.min() > 0.1
    torch.testing.assert_close(lost, really, rtol=1e-10, atol=0)
