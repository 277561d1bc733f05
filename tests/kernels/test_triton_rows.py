"""The Triton kernel for packed rows: interpreted on a CPU, and compiled for a GPU that is not there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from kvbench.kernels.packed import on_gpu, why_not
from tests.kernels.test_packed import CASES, FORMS
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.triton_rows import FEW_PROGRAMS, MUTANTS
from tests.support import kvquant, streams
from tests.support.codecs import a_step_needs_little_room, products_equal_dense_ones, quantiser
from tests.support.packed_rows import IN_BLOCKS, Case, rows_are_what_they_stand_for
from tests.support.strategies import composed

_TOO_NEW = importlib.metadata.version("triton").startswith("3.6.") and tuple(
    map(int, np.__version__.split(".")[:2])
) >= (2, 4)
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="compiled here: tests/gpu looks at what it does"),
    pytest.mark.skipif(_TOO_NEW, reason="the interpreter of triton 3.6 needs numpy before 2.4"),
]

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("how", "dim", "share"), [*FORMS, (quantiser(8, symmetric=True), 16, 2)], ids=str)
def test_the_triton_kernel_equals_dense_products(how: object, dim: int, share: int) -> None:
    products_equal_dense_ones(how, dim, share, "triton")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [*CASES, *IN_BLOCKS], ids=str)
def test_rows_with_tables_outliers_and_rotation_are_what_they_stand_for(case: Case) -> None:
    rows_are_what_they_stand_for(case, "triton")


def test_parts_of_several_blocks_are_read_to_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "PROGRAMS", FEW_PROGRAMS)
    rows_are_what_they_stand_for(Case(), "triton")


def test_streams_and_codebooks_are_read_as_they_are_held() -> None:
    streams.attention_reads_what_is_held("triton")
    kvquant.attention_is_that_on_what_is_read("triton")


def test_a_step_needs_little_room() -> None:
    a_step_needs_little_room("quantization_8bit", "triton", tokens=1024)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


@pytest.mark.shipped
def test_it_compiles_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compiling"],
        cwd=ROOT,
        env={**without, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "compiled, and refused\n"), done.stderr


def test_the_triton_kernel_says_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not("triton", CPU, torch.float32) is None  # interpreted
    assert "computes in float32, and the model in float64" in str(why_not("triton", CUDA, torch.float64))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "runs on a CUDA device, and the model is on cpu" in str(why_not("triton", CPU, torch.float32))
    assert why_not("triton", CUDA, torch.bfloat16) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs the package triton, which torch for CUDA brings" in str(why_not("triton", CUDA, torch.bfloat16))


def test_a_device_gets_its_own_kernel_or_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = composed("kivi4").codec
    assert codec.kernel_on(CUDA, torch.bfloat16) == "triton"
    assert codec.kernel_on(CUDA, torch.float64) == "reference"
    assert codec.kernel_on(torch.device("mps"), torch.float32) == "reference"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert codec.kernel_on(CUDA, torch.bfloat16) == "reference"
