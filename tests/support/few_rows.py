"""What holds of a few rows against a matrix, and of the engine that is made of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kvbench.engines.arm import Arm
from kvbench.engines.compiled import FEW, Compiled
from kvbench.engines.eager import Eager
from kvbench.engines.recorded import Recorded
from kvbench.kernels import few_rows
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import RunShape
from tests.support.models import VOCABULARY, ids
from tests.support.strategies import strategy

EAGER, COMPILED, RECORDED = Eager(prefill_chunk=0), Compiled(prefill_chunk=0), Recorded(prefill_chunk=0)
PROMPT, NEW, BUDGET = 24, 4, 16


def products_are_torch_s(sets: tuple[int, ...], rows: int, entries: int, width: int, dtype: torch.dtype) -> None:
    """Products, and sums by weights, of a part of a larger storage are those of torch in float64."""
    generator = torch.Generator().manual_seed(rows * entries + width)
    matrix = torch.randn(*sets, entries + 3, width, generator=generator).to(dtype).narrow(-2, 0, entries)
    some, weights = (torch.randn(*sets, rows, size, generator=generator) for size in (width, entries))
    for got, want in (
        (few_rows.Matrix(matrix).products(some, entries), some.double() @ matrix.double().mT),
        (few_rows.Matrix(matrix).sums(weights), weights.double() @ matrix.double()),
    ):
        assert want.abs().max() > 0
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-6 * want.abs().max().item() + 1e-6)


def bias_is_added(entries: int) -> None:
    """A bias is added to every row's products."""
    some, matrix, bias = torch.ones(3, 16), torch.zeros(entries, 16), torch.arange(float(entries))
    assert torch.equal(few_rows.Matrix(matrix, bias).products(some, entries), bias.expand(3, -1))


def in_threads(check: Callable[[], None], threads: int) -> None:
    """The same holds in several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(before)


@functools.cache
def network(name: str) -> PreTrainedModel:
    """Return a random model in float32 whose heads are wide enough to be read by compiled code."""
    torch.manual_seed(5)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None}
    if name == "gpt2":
        made: Any = GPT2LMHeadModel(GPT2Config(n_embd=64, n_head=4, n_layer=2, n_positions=256, **sizes))
    else:
        sizes |= {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4, "max_position_embeddings": 256}
        made = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
    for key, weight in made.named_parameters():
        if "q_proj" in key or "k_proj" in key or "c_attn" in key:
            weight.data.mul_(8)
        elif "bias" in key:
            weight.data.normal_()
    made.eval().requires_grad_(False).set_attn_implementation("kvbench")
    found: PreTrainedModel = made
    return found


def arm(made: CacheStrategy, name: str, engine: Eager) -> Arm:
    """Return a strategy on a model of its own."""
    model = engine.prepare(made.prepare(copy.deepcopy(network(name))))
    view = engine.view(made.transform.view(model, view_of(network(name))))
    return Arm(name="strategy", model=model, view=view, strategy=made, engine=engine)


def logits(one: Arm, run: RunShape, tokens: Tensor) -> Tensor:
    """Return the logits [B, 1 + steps, V] after a prompt and after each of the tokens behind it."""
    cache = one.cache(run)
    found = [one.prefill(cache, tokens[:, : run.prompt_tokens])]
    found += [one.step(cache, tokens[:, at : at + 1]) for at in range(run.prompt_tokens, tokens.shape[1])]
    return torch.stack(found, dim=1)


def compiled_is_eager(method: str, name: str, rows: int = 1, grows_by: int = 0) -> None:
    """The compiled engine's logits are the eager one's, but for the order of sums in float32.

    Args:
        method: name of the strategy.
        name: of the network.
        rows: of the batch.
        grows_by: so many tokens follow that nobody has announced; 0 for a few that were.
    """
    made = strategy(method, tokens=BUDGET)
    run = RunShape(prompt_lengths=(PROMPT,) * rows, new_tokens=None if grows_by else NEW)
    tokens = ids(3, rows, PROMPT + (grows_by or NEW))
    assert rows <= FEW
    want, got = (logits(arm(made, name, engine), run, tokens) for engine in (EAGER, COMPILED))
    assert torch.equal(want[:, 0].argmax(dim=-1), got[:, 0].argmax(dim=-1))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max().item())


def recorded_is_compiled(method: str, name: str, rows: int = 1, *overrides: str) -> None:
    """A recorded step's logits are those of the same step where it is not, whatever tokens it is given."""
    made, run = strategy(method, *overrides, tokens=BUDGET), RunShape(prompt_lengths=(PROMPT,) * rows, new_tokens=9)
    one, other = (arm(made, name, engine) for engine in (COMPILED, RECORDED))
    reason = made.unsupported(other.view, run)
    if reason is not None:
        assert "records a step once" in reason, reason
        pytest.skip(reason)
    tokens = ids(3, rows, PROMPT + 9)
    want, got = logits(one, run, tokens), logits(other, run, tokens)
    assert (want[:, 1:] - want[:, :-1]).abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


def norms_are_torch_s(rows: int, width: int) -> None:
    """Rows divided by the roots of their mean squares are those of torch in float64."""
    generator = torch.Generator().manual_seed(width)
    some, weight = (torch.randn(size, generator=generator) for size in ((rows, width), (width,)))
    want = torch.nn.functional.rms_norm(some.double(), (width,), weight.double(), eps=0.1)
    torch.testing.assert_close(few_rows.normed(some, weight, 0.1).double(), want, rtol=1e-5, atol=1e-6)
