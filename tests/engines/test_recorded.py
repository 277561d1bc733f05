"""What engine=recorded does again says what engine=compiled says; test_cuda_graph.py has more of recorded steps."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import pytest
import torch

from kvbench.engines.recorded import Recorded
from kvbench.engines.tape import Tape
from kvbench.kernels import compiling, told
from kvbench.models.view import view_of
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.recorded import MUTANTS
from tests.support import few_rows as support
from tests.support.models import model
from tests.support.strategies import settings

SUITE = ("attention_sink", "baseline", "h2o", "kivi2", "quantization_8bit")
LEARNED = (  # from a model; test_cuda_graph.py has them
    "duoattention", "eigen_attention", "headkv", "kvquant3", "kvtuner", "palu", "qoq_kv4", "razorattention", "rotatekv",
    "skvq", "smoothquant",
)  # fmt: skip
METHODS = [
    pytest.param(name, marks=() if name in SUITE else pytest.mark.shipped)
    for name, setting in sorted(settings().items())
    if not setting.like and name not in LEARNED
]
has_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")


class Place(ctypes.Structure):
    """Where something is."""

    _fields_: ClassVar = [("it", ctypes.c_void_p)]


def forget(address: int) -> None:
    """Make two numbers 0 that lie in a place."""
    ctypes.memset(Place.from_address(address).it, 0, 16)


@has_compiler
@pytest.mark.parametrize("method", METHODS)
def test_logits_are_the_compiled_engine_s(method: str) -> None:
    support.recorded_is_compiled(method, "llama")


@has_compiler
def test_so_they_are_with_learned_positions_and_in_batches() -> None:
    support.recorded_is_compiled("h2o", "gpt2", 3)


def test_what_is_done_again_is_done_to_the_same_tensors() -> None:
    given, kept = torch.arange(6.0).view(2, 3), torch.zeros(3)
    with Tape() as tape:
        total = (given.T * 2).sum(dim=1).softmax(dim=0)  # a view, and operations that can be told where to write
        kept.add_(total)
        spread = torch.nn.functional.pad(kept.to(torch.float64), (1, 0))  # one that cannot
        told.call(
            lambda address: ctypes.memset(Place.from_address(address).it, 0, 16), Place(spread.data_ptr()), spread
        )
    before = total.clone(), spread.data_ptr()
    given[0, 2] = 9
    tape.play()
    assert not torch.equal(total, before[0])
    torch.testing.assert_close(total, (given.T * 2).sum(dim=1).softmax(dim=0))
    torch.testing.assert_close(kept, before[0] + total)
    torch.testing.assert_close(spread, torch.cat([torch.zeros(2), kept[1:]]).double())
    assert spread.data_ptr() == before[1]


def test_numbers_that_the_host_reads_are_refused() -> None:
    with pytest.raises(RuntimeError, match="reads numbers of tensors on the host"), Tape():
        torch.ones(3).argmax().item()
    assert torch.ones(3).sum().item() == 3  # nothing is noted any more


def test_what_compiled_code_cannot_read_is_refused() -> None:
    reason = Recorded(prefill_chunk=0).unsupported(view_of(model("llama_gqa")))
    assert str(reason).startswith("engine=recorded reads float32")


@has_compiler
@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)
