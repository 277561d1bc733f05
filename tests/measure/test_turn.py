"""Two jobs that see the same device never measure at once."""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

import pytest

from kvbench.measure.turn import own_turn


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be alone on a machine without GPUs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def waits(machine: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether whoever comes now has to wait."""
    taken = fcntl.flock
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda file, kind: taken(file, kind | fcntl.LOCK_NB))
        try:
            with own_turn():
                return False
        except BlockingIOError:
            return True


def test_whoever_comes_second_waits_for_the_first_to_end(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_turn():
        assert waits(machine, monkeypatch)
    assert not waits(machine, monkeypatch)


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"])
def test_jobs_that_see_other_devices_do_not_wait(machine: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0,1")
    with own_turn():
        assert waits(machine, monkeypatch)
        monkeypatch.setenv(name, "2")
        assert not waits(machine, monkeypatch)


def test_slurms_numbers_come_first_where_each_job_counts_its_own_from_zero(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("SLURM_JOB_GPUS", "3")
    with own_turn():
        assert waits(machine, monkeypatch)
        monkeypatch.setenv("SLURM_JOB_GPUS", "4")
        assert not waits(machine, monkeypatch)
