"""The compiled engine says what the eager one says, of every method."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kvbench.cache.codecs.dense import Dense
from kvbench.cache.plan import GROW_LEAST
from kvbench.columns import held
from kvbench.engines.compiled import FEW, Compiled
from kvbench.kernels import compiling
from kvbench.models.view import view_of, weights_bytes
from kvbench.types import RunShape
from tests.support import few_rows as support
from tests.support.models import ids, model
from tests.support.strategies import settings, strategy

LEARNED = ("headkv", "duoattention", "razorattention")  # from a model: what they share heads by is adakv's
METHODS = sorted(
    name
    for name, setting in settings().items()
    if not setting.like and name not in LEARNED and strategy(name).codec.is_exact and strategy(name).transform.is_exact
)

pytestmark = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("method", [*METHODS, "quantization_8bit", "gqa", "mla"])
def test_logits_are_the_eager_engine_s(method: str) -> None:
    support.compiled_is_eager(method, "llama")


@pytest.mark.parametrize("method", ["baseline", "h2o"])
def test_so_they_are_with_learned_positions_and_in_batches(method: str) -> None:
    support.compiled_is_eager(method, "gpt2")
    support.compiled_is_eager(method, "llama", rows=FEW)


def test_so_they_are_of_a_cache_that_grows() -> None:
    support.compiled_is_eager("baseline", "llama", grows_by=GROW_LEAST + 4)


def test_weights_stay_where_they_are_but_for_their_order() -> None:
    for name in ("llama", "gpt2"):
        before = support.network(name)
        after = support.COMPILED.prepare(copy.deepcopy(before))
        assert weights_bytes(after) == weights_bytes(before)
        assert support.COMPILED.prepare(after) is after
        for one, other in zip(before.parameters(), after.parameters(), strict=True):
            assert torch.equal(one, other)
        tokens = ids(3, 1, 2 * FEW)
        logits = [each(tokens, use_cache=False).logits for each in _stock(before, after)]
        torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)


def _stock(*networks: nn.Module) -> list[nn.Module]:
    copies = [copy.deepcopy(network) for network in networks]
    for network in copies:
        network.set_attn_implementation("sdpa")  # type: ignore[operator]
    return copies


def test_rows_say_what_read_the_entries() -> None:
    run = RunShape(prompt_lengths=(support.PROMPT,), new_tokens=support.NEW)
    for engine, kernel in ((support.EAGER, None), (support.COMPILED, "native")):
        arm = support.arm(strategy("baseline"), "llama", engine)
        cache = arm.cache(run)
        arm.prefill(cache, ids(3, 1, support.PROMPT))
        assert held(arm, cache, run)["kernel"] == kernel


def test_models_that_cannot_be_read_so_are_refused() -> None:
    narrow = replace(view_of(model("llama_gqa")), is_compiled=True)
    assert type(Dense().of_layer(narrow, 0)) is Dense  # heads of 8 are read by torch, and the row says so
    reason = Compiled(prefill_chunk=0).unsupported(view_of(model("llama_gqa")))
    assert reason is not None
    assert "model.dtype=float32" in reason
