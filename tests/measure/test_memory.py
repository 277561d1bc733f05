"""A peak is exact to the kernel's own counters, or it is not reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvbench.measure.memory import PROC, MemoryMeter
from tests.mutants import measure_memory as mutants

CPU = torch.device("cpu")
BLOCK = 96 * 2**20
SLACK = 8 * 2**20  # the kernel counts pages in batches per core; the interpreter itself takes a little
STATUS = "Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell a peak")


def touch() -> None:
    """Take a block of memory, write to it, and give it back."""
    torch.ones(BLOCK // 4)


def check_peak(meter_class: type[MemoryMeter]) -> None:
    """A block that lived for a moment is in the peak, and a reset ends it."""
    meter = MemoryMeter(CPU) if meter_class is MemoryMeter else meter_class(CPU)
    touch()
    meter.settle()
    meter.reset()
    held, peak = meter.held_bytes(), meter.peak_bytes()
    assert held is not None
    assert peak is not None
    assert abs(peak - held) < SLACK  # not the block before the reset
    touch()
    peak = meter.peak_bytes()
    assert peak is not None
    assert abs(peak - held - BLOCK) < SLACK


@needs_proc
def test_a_block_that_lived_for_a_moment_is_in_the_peak() -> None:
    check_peak(MemoryMeter)


@needs_proc
@pytest.mark.parametrize("mutant", mutants.PEAKS)
def test_oracle_catches_another_peak(mutant: type[MemoryMeter]) -> None:
    code = f"from tests.measure.test_memory import *; check_peak(mutants.{mutant.__name__})"
    root = Path(__file__).parents[2]  # in a process of its own: what other tests left may be given back meanwhile
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert "AssertionError" in done.stderr, done.stderr


@needs_proc
def test_what_is_held_follows_what_is_used() -> None:
    meter = MemoryMeter(CPU)
    meter.settle()
    before = meter.held_bytes()
    block = torch.ones(BLOCK // 4)
    during = meter.held_bytes()
    del block
    meter.settle()
    after = meter.held_bytes()
    assert before is not None
    assert during is not None
    assert after is not None
    assert abs(during - before - BLOCK) < SLACK
    assert abs(after - before) < SLACK


def fake_proc(folder: Path, *, is_writable: bool) -> Path:
    """Return a folder that describes a process, whose peak can or cannot be reset."""
    (folder / "status").write_text(STATUS)
    if is_writable:
        (folder / "clear_refs").write_text("")
    else:
        (folder / "clear_refs").mkdir()  # root may write to any file
    return folder


def check_no_guess(meter_class: type[MemoryMeter], folder: Path) -> None:
    """Without a reset there is no peak, though the process's own could be read."""
    meter = meter_class(CPU, fake_proc(folder, is_writable=False))
    meter.reset()
    assert meter.peak_bytes() is None
    assert meter.held_bytes() == 1024 * 1024


def test_where_the_peak_cannot_be_reset_there_is_none(tmp_path: Path) -> None:
    check_no_guess(MemoryMeter, tmp_path)


def test_oracle_catches_a_guess(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_no_guess(mutants.Guessing, tmp_path)


def test_before_the_first_reset_there_is_no_peak(tmp_path: Path) -> None:
    assert MemoryMeter(CPU, fake_proc(tmp_path, is_writable=True)).peak_bytes() is None


def test_the_systems_kibibytes_become_bytes(tmp_path: Path) -> None:
    meter = MemoryMeter(CPU, fake_proc(tmp_path, is_writable=True))
    meter.reset()
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert meter.peak_bytes() == 2048 * 1024
    assert meter.resident_bytes() == 1024 * 1024
    assert meter.reserved_bytes() is None


def test_a_system_that_tells_nothing_gives_nothing(tmp_path: Path) -> None:
    meter = MemoryMeter(CPU, tmp_path / "nowhere")
    meter.reset()
    assert (meter.peak_bytes(), meter.held_bytes(), meter.resident_bytes()) == (None, None, None)


def test_the_process_described_is_this_one() -> None:
    assert Path("/proc/self") == PROC
