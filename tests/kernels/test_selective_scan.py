"""Mamba's recurrence in C++ equals a loop over tokens, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from kvbench.kernels import compiling
from kvbench.kernels.selective_scan import is_native
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.selective_scan import MUTANTS
from tests.support import scans

CPU = torch.device("cpu")
has_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")


@has_compiler
@pytest.mark.parametrize(("rows", "tokens", "channels"), [(1, 1, 16), (2, 7, 32), (3, 40, 48)])
def test_a_scan_equals_a_loop(rows: int, tokens: int, channels: int) -> None:
    scans.equals_a_loop(rows, tokens, channels)


@has_compiler
def test_a_scan_in_threads_equals_a_loop() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scans.equals_a_loop(3, 12)
    finally:
        torch.set_num_threads(before)


@has_compiler
@pytest.mark.parametrize("pieces", [(3, 4), (1, 1, 5)])
def test_a_scan_goes_on_from_a_state(pieces: tuple[int, ...]) -> None:
    scans.goes_on_from_a_state(pieces)


@has_compiler
def test_large_rates_forget_all() -> None:
    scans.large_rates_forget_all()


@has_compiler
@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_what_is_not_computed_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_native(CPU, torch.float32, 32) == (compiling.compiler() is not None)
    assert not is_native(CPU, torch.float64, 32)
    assert not is_native(CPU, torch.float32, 24)
    assert not is_native(torch.device("cuda"), torch.float32, 32)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not is_native(CPU, torch.float32, 32)
