"""What holds of norms that have other code for a token per row."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from kvbench.models.normed import normed, renorm

WIDTH = 48
LEAST = 0.1


class Counting(TorchDispatchMode):
    """Counts operations, views aside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def pair(norm: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Return a model that is one norm, and the same with other code for a few rows."""
    torch.manual_seed(5)
    norm.get_parameter("weight").data.normal_()
    before = nn.Sequential(norm).requires_grad_(False)
    after = copy.deepcopy(before)
    renorm(after, normed)
    return before, after


def a_token_is_divided_by_its_root() -> None:
    """What comes of one token per row is what it comes of by its formula, in four operations."""
    _, after = pair(LlamaRMSNorm(WIDTH, eps=LEAST))
    rows = torch.randn(3, 1, WIDTH)
    want = torch.nn.functional.rms_norm(rows.double(), (WIDTH,), after.get_parameter("0.weight").double(), eps=LEAST)
    with Counting() as counted:
        got = after(rows)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    assert len(counted.names) == 4, counted.names


def all_else_is_as_it_was() -> None:
    """Several tokens, other numbers than float32 and other norms are computed by the model's own code."""
    before, after = pair(LlamaRMSNorm(WIDTH, eps=LEAST))
    assert type(after[0]) is not type(before[0])
    for rows in (torch.randn(2, 5, WIDTH), torch.randn(2, 1, 4, WIDTH), torch.randn(2, 1, WIDTH, dtype=torch.float64)):
        assert torch.equal(after(rows), before(rows))
    for norm in (
        LlamaRMSNorm(WIDTH, eps=LEAST).bfloat16(),
        Gemma3RMSNorm(WIDTH, eps=LEAST),
        nn.LayerNorm(WIDTH, eps=LEAST),
    ):
        before, after = pair(norm)
        rows = torch.randn(2, 1, WIDTH, dtype=norm.get_parameter("weight").dtype)
        assert torch.equal(after(rows), before(rows))
        assert type(after[0]) is type(before[0])


def the_last_code_is_what_runs() -> None:
    """A copy of a model can be given other code for its norms; the model keeps its own."""
    _, after = pair(LlamaRMSNorm(WIDTH, eps=LEAST))
    other = copy.deepcopy(after)
    renorm(other, lambda rows, weight, least: rows * 0)
    rows = torch.randn(2, 1, WIDTH)
    assert not other(rows).any()
    assert after(rows).all()
