"""A recorded step without a GPU: the operations of one step, called again on the same tensors as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from kvbench.cache.kv_cache import KVCache
from kvbench.engines.arm import Arm
from kvbench.engines.cuda_graph import CudaGraph
from kvbench.engines.eager import Eager, forward
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import ModelView, RunShape
from tests.support.drive import padded
from tests.support.models import attention, ids, model_for
from tests.support.steps import HOST
from tests.support.strategies import strategy

PROMPT, NEW = 20, 12
KEEPS, FILLS = PROMPT // 2, PROMPT + NEW // 2  # budgets met by the prompt, and only while decoding


class Replayed(CudaGraph):
    """Replays what a graph would hold: operations and addresses, and every number that Python had at hand."""

    def unsupported(self, view: ModelView) -> str | None:
        """Return None: every device can."""

    def record(self, model: nn.Module, cache: KVCache, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what does a step for other ids; as on a GPU, the cache counts a token of which nothing is done."""
        before, given = cache.snapshot(), ids.clone()
        with Tape() as tape:
            logits = forward(model, cache, given)
        cache.restore(before)
        cache.skip()
        return lambda ids: tape.play(given, ids, logits)


class Tape(TorchDispatchMode):
    """Notes operations with what they were given: tensors, of which it keeps every one, and numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noted: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it."""
        assert func.overloadpacket.__name__ not in HOST, f"{func} needs the host, which a graph does not wait for"
        out = func(*args, **(kwargs or {}))
        self.noted.append((func, args, kwargs or {}, out))
        return out

    def play(self, given: Tensor, now: Tensor, result: Tensor) -> Tensor:
        """Return what came of it, with another tensor in the place of one that was given."""
        found = {id(given): now}

        def current(each: object) -> object:
            return found.get(id(each), each)

        for func, args, kwargs, out in self.noted:
            made = func(*pytree.tree_map(current, args), **pytree.tree_map(current, kwargs))
            for old, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(made), strict=True):
                found[id(old)] = new
        return found[id(result)]


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
