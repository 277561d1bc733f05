"""Checks of heads that lie one behind the other, against heads that are stored apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kvbench.cache import ragged
from kvbench.cache.plan import LayerPlan
from kvbench.cache.ragged import RaggedStore
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, assert_same_held
from tests.support.drive import Driven, drive, padded
from tests.support.models import attention, ids, model
from tests.support.steps import HOST, Recorder
from tests.support.strategies import strategy

LENGTHS = (PROMPT, PROMPT - 7)


def run_of() -> RunShape:
    """Return the shape of two rows of different lengths."""
    return RunShape(prompt_lengths=LENGTHS, new_tokens=NEW)


def tokens() -> torch.Tensor:
    """Return the ids of both rows [2, T]."""
    return padded([ids(70 + row, 1, length + NEW)[0] for row, length in enumerate(LENGTHS)])


def driven(made: CacheStrategy, model_name: str, *, dtype: torch.dtype = torch.float64, steps: Sequence[int]) -> Driven:
    """Return what comes of both rows."""
    with torch.no_grad():
        return drive(model(model_name, dtype), made, tokens(), run_of(), steps=steps)


def equals_heads_apart(name: str, model_name: str, *overrides: str) -> None:
    """A store of all heads gives what a store for each would, at every step.

    Args:
        name: of the method.
        model_name: of the model.
        overrides: of the strategy's configuration.
    """
    made, steps = strategy(name, *overrides, tokens=BUDGET), (1, 1, 3, *[1] * (NEW - 5))
    got = driven(made, model_name, steps=steps)
    assert any(type(store) is RaggedStore for layer in got.cache.layers for _, store in layer.stores), "nothing to see"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerPlan, "lies_ragged", lambda plan, run: False)
        want = driven(made, model_name, steps=steps)
        assert max(len(layer.stores) for layer in want.cache.layers) > 2, "heads do not differ: this proves nothing"
    assert_close(got.logits, want.logits)
    assert_same_held(got.held, want.held)
    assert got.cache.numbers_held() == want.cache.numbers_held()


def native_is_the_reference(name: str, model_name: str) -> None:
    """In float32, where compiled code reads entries, logits are those of plain torch."""
    made, steps = strategy(name, tokens=BUDGET), (1,) * NEW
    got = driven(made, model_name, dtype=torch.float32, steps=steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "chosen_kernel", lambda kernel, device, dtype: "reference")
        want = driven(made, model_name, dtype=torch.float32, steps=steps)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(got.logits, want.logits), "plain torch read both: this proves nothing"


def steps_do_not_grow_with_heads(name: str) -> None:
    """A decode step makes as many operations for four KV heads as for two, waits for nothing, and moves nothing."""
    made, counts = strategy(name, tokens=BUDGET), []
    for model_name in ("llama_mha", "llama_gqa"):
        network, together = model(model_name, torch.float32), tokens()
        with torch.no_grad():
            cache = drive(network, made, together[:, : PROMPT + 2], run_of()).cache
            addresses = [t.data_ptr() for layer in cache.layers for t in layer.tensors()]
            with attention(network, "kvbench"), Recorder() as made_here:
                cache.begin(DECODE)
                step, where = together[:, PROMPT + 2 : PROMPT + 3], cache.position_ids(1)
                network(step, past_key_values=cache, use_cache=True, position_ids=where)
        assert not set(made_here.names) & set(HOST)
        assert addresses == [t.data_ptr() for layer in cache.layers for t in layer.tensors()]
        counts.append(len(made_here.names))
    assert counts[0] == counts[1]
