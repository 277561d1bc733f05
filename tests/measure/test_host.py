"""The machine around a measurement, and how much of it others may use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kvbench.measure import host as module
from kvbench.measure.host import LocalHost
from kvbench.measure.paired import others_allowed, switches_allowed


def test_the_machine_knows_its_cores_and_its_own_work() -> None:
    host = LocalHost()
    assert host.num_cpus >= 1
    assert host.switches() >= 0
    assert host.busy_cores() >= 0
    before = host.now_s()
    host.sleep(0.0)
    assert host.now_s() >= before


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the system's counters, to be set: seconds, busy core seconds, of them this process's."""
    values = {"now": 0.0, "busy": 0.0, "own": 0.0}
    ticks = os.sysconf("SC_CLK_TCK")

    def stat() -> float:
        path = tmp_path / "stat"
        path.write_text(f"cpu  {int(values['busy'] * ticks)} 0 0 99999 99999 0 0 0 0 0\ncpu0 1 1 1 1\n")
        monkeypatch.setattr(module, "_STAT", path)
        return read()

    read = module._busy_s
    monkeypatch.setattr(module, "_busy_s", stat)
    monkeypatch.setattr(time, "monotonic", lambda: values["now"])
    monkeypatch.setattr(time, "process_time", lambda: values["own"])
    return values


def test_what_is_busy_besides_this_process_are_the_others(counters: dict[str, float]) -> None:
    host = LocalHost()
    counters.update(now=2.0, busy=3.0, own=1.0)
    assert host.busy_cores() == 1.0
    counters.update(now=2.05, busy=9.0)
    assert host.busy_cores() == 1.0  # too soon to say
    counters.update(now=4.0, busy=5.0, own=3.0)
    assert host.busy_cores() == 0.0


def test_without_counters_others_are_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STAT", tmp_path / "nowhere")
    assert module._busy_s() == 0.0


@pytest.mark.parametrize(
    ("block_ms", "threads", "num_cpus", "allowed"), [(8, 1, 2, 1), (400, 1, 2, 4), (400, 2, 2, 80), (8, 2, 2, 1.6)]
)
def test_longer_blocks_and_wide_pools_may_lose_their_core_more_often(
    block_ms: float, threads: int, num_cpus: int, allowed: float
) -> None:
    assert switches_allowed(block_ms, threads, num_cpus) == allowed


@pytest.mark.parametrize(("threads", "num_cpus", "allowed"), [(1, 2, 0.95), (2, 2, 0.3), (1, 1, 0.3), (4, 16, 11.95)])
def test_other_processes_may_use_the_cores_that_are_left(threads: int, num_cpus: int, allowed: float) -> None:
    assert others_allowed(threads, num_cpus) == pytest.approx(allowed)
