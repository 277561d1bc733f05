"""FlexAttention over pages: the kernel by itself, and in a model. Each form is compiled, which takes seconds."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch

from kvbench.kernels.attend import flex
from kvbench.kernels.packed import why_not
from kvbench.models.view import view_of
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.flexing import MUTANTS
from tests.support import flexing
from tests.support.models import model
from tests.support.strategies import composed

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
longer = partial(pytest.param, marks=pytest.mark.shipped)
is_there = pytest.mark.skipif(flex.why_not(CPU, torch.float32) is not None, reason="FlexAttention cannot be compiled")


@is_there
@pytest.mark.parametrize(
    ("dtype", "size", "sets"),
    [longer(torch.float32, 16, 1), longer(torch.float32, 128, 2), longer(torch.bfloat16, 16, 2)],
    ids=str,
)
def test_pages_are_attended_to_where_they_lie(dtype: torch.dtype, size: int, sets: int) -> None:
    flexing.pages_are_attended_to_where_they_lie(dtype, size, sets)


@is_there
@pytest.mark.parametrize(("size", "name"), [longer(16, "baseline"), longer(128, "baseline"), longer(4, "snapkv")])
def test_logits_are_those_of_slots_in_a_row(size: int, name: str) -> None:
    flexing.logits_are_those_of_slots_in_a_row(size, name)


@is_there
@pytest.mark.shipped
@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(flexing) - seen_to_fail(MUTANTS)


def test_requests_that_share_pages_are_refused() -> None:
    reason = composed("paged", "layout.kernel=flex").cannot_share(view_of(model("llama_gqa")))
    assert "compiled for each batch; use strategy.layout.kernel=auto" in str(reason)


def test_it_says_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "was seen on a CPU alone, and the model is on cuda" in str(why_not("flex", CUDA, torch.float32))
    assert "computes in float32 on a CPU, and the model in float64" in str(why_not("flex", CPU, torch.float64))
    monkeypatch.setattr(flex, "compiler", lambda: None)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
    monkeypatch.setattr(sys, "platform", "linux")
    assert "no C++ compiler (CXX, g++, clang++) was found" in str(why_not("flex", CPU, torch.float32))
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    assert "for processors with AVX2" in str(why_not("flex", CPU, torch.float32))
