"""A few rows against a matrix in C++ are what torch makes of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from kvbench.kernels import compiling, few_rows
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.few_rows import MUTANTS
from tests.support import few_rows as support

CPU = torch.device("cpu")
has_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")


@has_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", range(1, 10))
def test_products_and_sums_are_torch_s(rows: int, dtype: torch.dtype) -> None:
    for sets, entries, width in (((2, 3), 70, 48), ((1,), 1, 64), ((), 129, 16), ((1, 2), 9, 160)):
        support.products_are_torch_s(sets, rows, entries, width, dtype)
    support.bias_is_added(rows)


@has_compiler
def test_norms_are_torch_s() -> None:
    support.norms_are_torch_s(1, 16)
    support.norms_are_torch_s(3, 160)


@has_compiler
@pytest.mark.parametrize("sets", [(1,), (3, 1)])
def test_threads_change_nothing(sets: tuple[int, ...]) -> None:
    support.in_threads(partial(support.products_are_torch_s, sets, 3, 131, 32, torch.float32), 2)


@has_compiler
@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_what_is_not_read_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CPU" in str(few_rows.why_not(torch.device("cuda"), torch.float32))
    assert "float32" in str(few_rows.why_not(CPU, torch.float16))
    assert (few_rows.why_not(CPU, torch.float32) is None) == (compiling.compiler() is not None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "compiler" in str(few_rows.why_not(CPU, torch.float32))
