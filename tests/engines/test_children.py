"""What a measuring process dies of becomes a status."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvbench import children

HERE = "tests.support.dying"


def call(name: str, timeout_s: float = 60.0) -> children.Outcome:
    """Call a function of the support module in a child."""
    return children.call(f"{HERE}:{name}", 3, timeout_s=timeout_s, progress=lambda stage, share: None)


def test_value_and_progress_come_back() -> None:
    seen: list[tuple[str, float]] = []
    outcome = children.call(f"{HERE}:double", 3, timeout_s=60, progress=lambda *report: seen.append(report))
    assert (outcome.status, outcome.value) == ("ok", 6)
    assert seen == [("half", 0.5)]


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("refuse", "error", "set workload.x"),
        ("stumble", "error", "ZeroDivisionError: division by zero"),
        ("eat", "out_of_memory", "weights of 9 GiB"),
        ("vanish", "error", "exit code 7"),
        ("killed", "out_of_memory", "killed by the system"),
        ("cut_off", "out_of_memory", "killed by the system"),
    ],
)
def test_each_death_has_its_status_and_reason(name: str, status: str, reason: str) -> None:
    outcome = call(name)
    assert outcome.status == status
    assert reason in outcome.reason


def test_a_process_that_hangs_is_ended() -> None:
    outcome = call("hang", timeout_s=1.0)
    assert outcome.status == "timeout"
    assert "measure.timeout_s=1" in outcome.reason


def test_the_traceback_of_an_error_is_kept_for_the_log() -> None:
    assert "stumble" in call("stumble").log


@pytest.mark.parametrize(("renews", "status"), [(True, "ok"), (False, "timeout")])
def test_time_begins_again_with_every_report_where_that_is_asked_for(renews: bool, status: str) -> None:
    outcome = children.call(f"{HERE}:plod", 5, timeout_s=2.0, progress=lambda stage, share: None, renews=renews)
    assert outcome.status == status


def _wait_for(note: Path) -> None:
    children.PRELOAD.clear()  # of this process alone: what a measurement needs is not needed here
    children.call(f"{HERE}:outlives", str(note), timeout_s=600, progress=lambda stage, share: None)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _soon(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    return happened()


def test_a_measuring_process_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    parent = multiprocessing.get_context("spawn").Process(target=_wait_for, args=(note,))
    parent.start()
    assert _soon(lambda: note.is_file() and note.read_text() != "")
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    assert _soon(lambda: _is_gone(int(note.read_text())))
