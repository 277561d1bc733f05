"""A block's times are the device's, to the nanosecond, and hidden work is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvbench.measure.blocks import Block, WorkLeftRunning, assert_quiet, run_block
from kvbench.measure.clock import Clock, Event
from tests.measure.fake_device import FakeDevice, FakeHostClock, FakeQueueClock
from tests.mutants import measure_blocks as mutants

Runner = Callable[[int, Callable[[], None], Clock], Block]


def work_ns(block: Block) -> list[int]:
    """Return the device's times."""
    return [round(duration.ms * 1e6) for duration in block.durations]


def check_exact_times(make_clock: Callable[[FakeDevice], FakeQueueClock], runner: Runner = run_block) -> None:
    """Launches of 100, 10, 10, 10 behind other work take just that, block after block."""
    device = FakeDevice(launch_ns=3)
    clock = make_clock(device)
    for _ in range(2):
        device.launch(5_000)  # a prefill, in nobody's time
        work = iter([100, 10, 10, 10])
        block = runner(4, lambda work=work: device.launch(next(work)), clock)  # type: ignore[misc]
        # the host needs 3 to launch the first; after that the device is behind it
        assert work_ns(block) == [103, 10, 10, 10]
        assert [duration.wall_ns for duration in block.durations] == [3, 3, 3, 3]


def test_a_block_gives_the_devices_own_times() -> None:
    check_exact_times(FakeQueueClock)


@pytest.mark.parametrize("mutant", mutants.CLOCKS)
def test_oracle_catches_a_broken_clock(mutant: type[FakeQueueClock]) -> None:
    with pytest.raises(AssertionError):
        check_exact_times(mutant)


def test_oracle_catches_a_block_that_settles_every_step() -> None:
    with pytest.raises(AssertionError):
        check_exact_times(FakeQueueClock, mutants.block_that_settles_every_step)


def test_a_processors_times_are_the_hosts() -> None:
    device = FakeDevice()

    def step() -> None:
        device.now_ns += 7

    block = run_block(3, step, FakeHostClock(device))
    assert [tuple(duration) for duration in block.durations] == [(7, None)] * 3
    assert block.left_ns == 0


def test_nothing_but_the_step_happens_between_two_marks() -> None:
    calls: list[str] = []

    class Spy(FakeQueueClock):
        def __getattribute__(self, name: str) -> object:
            if name in {"settle", "mark", "reach", "durations"}:
                calls.append(name)
            return super().__getattribute__(name)

    run_block(3, lambda: calls.append("step"), Spy(FakeDevice()))
    assert calls == ["settle", "mark", *["step", "mark"] * 3, "reach", "settle", "durations"]


def test_blocks_use_the_same_events_again() -> None:
    made: list[Event] = []

    class Spy(FakeQueueClock):
        def new_event(self) -> Event:
            made.append(super().new_event())
            return made[-1]

    device = FakeDevice()
    clock = Spy(device)
    for _ in range(3):
        run_block(4, lambda: device.launch(10), clock)
    assert len(made) == 5


def check_side_stream(runner: Runner) -> None:
    """Work on a stream that nothing waits for is caught."""
    device = FakeDevice()

    def step() -> None:
        device.launch(100)
        device.launch(400, stream="side")

    block = runner(4, step, FakeQueueClock(device))
    with pytest.raises(WorkLeftRunning, match=r"h2o leaves work .* Join its side streams"):
        assert_quiet([block], "h2o")


def test_work_left_on_a_side_stream_is_caught() -> None:
    check_side_stream(run_block)


def test_oracle_catches_a_block_that_settles_before_it_looks() -> None:
    with pytest.raises(pytest.fail.Exception):
        check_side_stream(mutants.block_that_settles_before_it_looks)


def test_a_side_stream_that_is_joined_is_allowed_and_timed() -> None:
    device = FakeDevice(launch_ns=0)

    def step() -> None:
        device.launch(100)
        device.launch(400, stream="side")
        device.join("side")

    block = run_block(4, step, FakeQueueClock(device))
    assert work_ns(block) == [400] * 4
    assert_quiet([block], "h2o")


def test_one_block_in_which_the_host_was_held_up_does_not_condemn_an_arm() -> None:
    device = FakeDevice()
    blocks = [run_block(4, lambda: device.launch(100), FakeQueueClock(device)) for _ in range(3)]
    assert_quiet([blocks[0], blocks[1], blocks[2]._replace(left_ns=10**9)], "h2o")


@pytest.mark.parametrize(("launch_ns", "is_starving"), [(200, True), (20, False)])
def test_a_device_that_starves_is_not_behind_the_host(launch_ns: int, is_starving: bool) -> None:
    device = FakeDevice(launch_ns=launch_ns)
    block = run_block(10, lambda: device.launch(100), FakeQueueClock(device))
    assert (block.behind_ns <= 100) == is_starving
