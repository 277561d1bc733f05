"""Attention on packed rows: every kernel against the numbers that the codes stand for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvbench.kernels import compiling
from kvbench.kernels.packed import native, why_not
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.native_rows import MUTANTS
from tests.mutants.reference_rows import MUTANTS as REFERENCE_MUTANTS
from tests.support.codecs import (
    QUANTISERS,
    a_step_needs_little_room,
    both_kernels_keep_the_same,
    products_equal_dense_ones,
    quantiser,
)
from tests.support.packed_rows import ALL, PAGED, RAGGED, Case, rows_are_what_they_stand_for

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CPU = torch.device("cpu")
FORMS = (  # each is compiled: registers and plain loops, every plane of bits, all three ways to share scales
    (quantiser(2, "tokens", 4), 64, 1),
    (quantiser(4, group=32), 64, 4),
    (quantiser(2, group=32), 64, 2),
    (quantiser(2, group=32, scales="e4m3"), 64, 2),
    (quantiser(4, group=5, scales="e4m3"), 12, 1),
    (quantiser(3), 64, 1),
    (quantiser(3, "tokens", 4), 20, 2),
    (quantiser(4, group=5), 12, 3),
    (quantiser(8, symmetric=True, levels="e4m3"), 64, 1),
    (quantiser(16, symmetric=True, levels="float16"), 64, 2),
    (quantiser(4, symmetric=True, levels="normal"), 64, 2),
)
ENCODED = [(how, dim) for how, dim, _ in FORMS if how.tokens == 1 and how.levels in ("integers", "e4m3")]
ENCODED.append((quantiser(4, group=32, clip=0.95), 64))
CASES = (  # each is compiled too
    Case(codebook=True, outliers=7, rotary=32, tokens=ALL, expanded=True, share=4),
    Case(bits=3, codebook=True, outliers=19, expanded=True),
    Case(bits=2, dim=20, codebook=True, low=False, outliers=2, channel=torch.int32, rotary=7, positions="by head"),
    Case(bits=8, dim=48, codebook=True, tokens=4, rotary=8, share=2),
    *PAGED,
    *RAGGED,
)
has_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let a test run on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("how", QUANTISERS, ids=str)
def test_the_reference_equals_dense_products(how: object) -> None:
    for dim in (16, 11):
        products_equal_dense_ones(how, dim, 2, "reference")  # type: ignore[arg-type]


@has_compiler
@pytest.mark.parametrize(("how", "dim", "share"), FORMS, ids=str)
def test_the_native_kernel_equals_dense_products(how: object, dim: int, share: int) -> None:
    products_equal_dense_ones(how, dim, share, "native")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_with_tables_outliers_and_rotation_are_what_they_stand_for(case: Case) -> None:
    rows_are_what_they_stand_for(case)


@has_compiler
@pytest.mark.parametrize("case", CASES, ids=str)
def test_natively_they_are_too(case: Case, two_threads: None) -> None:
    rows_are_what_they_stand_for(case, "native")


@each_of(REFERENCE_MUTANTS)
def test_the_oracle_fails_on_a_wrong_reference(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


@has_compiler
@pytest.mark.parametrize(("how", "dim"), ENCODED, ids=str)
def test_both_kernels_keep_the_same(how: object, dim: int) -> None:
    both_kernels_keep_the_same(how, dim)  # type: ignore[arg-type]


@has_compiler
@pytest.mark.parametrize("name", ["kivi4", "quantization_8bit"])
def test_a_native_step_needs_little_room(name: str) -> None:
    a_step_needs_little_room(name, "native")


@has_compiler
@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


@has_compiler
def test_what_was_compiled_once_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    numbers = native._numbers(quantiser(8, symmetric=True).form(8), torch.empty(0, dtype=torch.float16))
    first = compiling.compiled(native.ENCODER, numbers, native.MEND)
    written = first.stat().st_mtime_ns
    assert compiling.compiled(native.ENCODER, numbers, native.MEND) == first
    assert first.stat().st_mtime_ns == written
    kept = {file.suffix: file.stat().st_mtime_ns for file in first.parent.iterdir()}
    assert kept.keys() <= {".so", ".h", ".gch"}, "a draft was left"
    compiling.compiled(native.ENCODER, numbers | {"DIM": 9}, native.MEND)
    again = {file.suffix: file.stat().st_mtime_ns for file in first.parent.iterdir() if file.suffix != ".so"}
    assert again.items() <= kept.items(), "the standard headers were read again"


def test_the_native_kernel_says_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "runs on a CPU, and the model is on cuda" in str(why_not("native", torch.device("cuda"), torch.float32))
    assert "computes in float32, and the model in float64" in str(why_not("native", CPU, torch.float64))
    assert why_not("reference", CPU, torch.float64) is None
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler (CXX, g++, clang++) was found" in str(why_not("native", CPU, torch.float32))


@has_compiler
def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "rows.cpp"
    broken.write_text("int main( {", encoding="utf-8")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"did not compile; set strategy\.codec\.kernel=reference.*\n.*error"):
        compiling.compiled(broken, {}, native.MEND)
