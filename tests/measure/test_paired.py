"""A comparison times steps and nothing else, treats its arms alike, and ends."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from kvbench.measure import paired
from kvbench.measure.blocks import WorkLeftRunning
from kvbench.measure.paired import Cell
from kvbench.measure.statistics import round_ratios
from tests.measure.fake_device import (
    MS,
    FakeArm,
    FakeDevice,
    FakeHost,
    FakeHostClock,
    FakeQueueClock,
    default_settings,
    run,
)
from tests.mutants import measure_paired as mutants

Check = Callable[[], None]
BASELINE_MS, STRATEGY_MS = [9, 3, 3, 4], [8, 2, 2, 1]


def two_arms(device: FakeDevice) -> dict[str, FakeArm]:
    """Return a baseline and a strategy with known steps."""
    works = {"baseline": BASELINE_MS, "h2o": STRATEGY_MS}
    return {name: FakeArm(device, lambda index, work=work: work[index] * MS) for name, work in works.items()}  # type: ignore[misc]


def check_exact_times() -> None:
    """Each block of each arm holds the arm's own steps, to the nanosecond, and no restore, warm-up or prefill."""
    device = FakeDevice(launch_ns=0)
    arms = two_arms(device)
    result = run(arms, FakeQueueClock(device), default_settings(min_rounds=3, max_rounds=3))
    works = {"baseline": BASELINE_MS, "baseline_again": BASELINE_MS, "h2o": STRATEGY_MS}
    for name, work in works.items():
        samples = [sample for sample in result.samples if sample.arm == name]
        assert [round(sample.ms * 1e6) for sample in samples] == [ms * MS for ms in work] * 3
        assert [sample.index_in_block for sample in samples] == [0, 1, 2, 3] * 3
        assert [sample.round for sample in samples] == sorted([0, 1, 2] * 4)
    assert [sample.block for sample in result.samples] == sorted([*range(9)] * 4)
    assert arms["h2o"].num_restored == 3 + 2  # two blocks of warm-up


def test_samples_are_the_steps_of_each_arm_and_nothing_else() -> None:
    check_exact_times()


def check_drift() -> None:
    """On a machine that slows down by a percent a block, equal arms are equal."""
    device = FakeDevice()

    def work_ns(index: int) -> int:
        return round(MS * (1 + 0.01 * device.now_ns / (4 * MS)))

    arms = {name: FakeArm(device, work_ns, on_host=True) for name in ("baseline", "h2o")}
    for arm in arms.values():
        arm.restore = lambda arm=arm: setattr(arm, "index", 0)  # type: ignore[method-assign,misc]
    result = run(arms, FakeHostClock(device), default_settings(max_rounds=10))
    ratios = sorted(round_ratios(result.samples, "h2o", "baseline", "median"))
    assert abs((ratios[4] + ratios[5]) / 2 - 1) < 0.001


def test_a_drift_of_the_machine_falls_on_all_arms_alike() -> None:
    check_drift()


def test_rounds_go_forward_and_backward_and_enter_the_baseline_twice() -> None:
    device = FakeDevice()
    result = run(two_arms(device), FakeQueueClock(device), default_settings(min_rounds=2, max_rounds=2))
    order = [sample.arm for sample in result.samples if sample.index_in_block == 0]
    assert order == ["baseline", "h2o", "baseline_again", "baseline_again", "h2o", "baseline"]


def check_garbage() -> None:
    """Python collects no garbage while steps are timed."""
    device = FakeDevice()
    arms = two_arms(device)
    seen = set[bool]()
    work_ns = arms["h2o"].work_ns

    def watched(index: int) -> int:
        seen.add(gc.isenabled())
        return work_ns(index)

    arms["h2o"].work_ns = watched
    run(arms, FakeQueueClock(device), default_settings(max_rounds=10))
    assert seen == {False}


def test_no_garbage_is_collected_while_steps_are_timed() -> None:
    frozen = gc.get_freeze_count()
    assert frozen > 0, "tests freeze what was imported"
    check_garbage()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen // 2, "some may have died by themselves, and nothing is thawed"


def test_oracle_catches_garbage_that_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "garbage_kept", nullcontext)
    with pytest.raises(AssertionError):
        check_garbage()


def test_garbage_is_collected_again_after_an_arm_has_failed() -> None:
    device = FakeDevice()
    arms = two_arms(device)
    arms["h2o"].work_ns = lambda index: 1 // index
    with pytest.raises(ZeroDivisionError):
        run(arms, FakeQueueClock(device), default_settings())
    assert gc.isenabled()


def disturbed(device: FakeDevice, is_disturbed: Callable[[int], bool]) -> tuple[dict[str, FakeArm], FakeHost]:
    """Return arms on a processor, of which h2o loses its core twice in each block for which the rule says so."""
    arms = {name: FakeArm(device, lambda index: MS, on_host=True) for name in ("baseline", "h2o")}
    host, h2o = FakeHost(device), arms["h2o"]

    def work_ns(index: int) -> int:
        if index == 0 and is_disturbed(h2o.num_restored):
            host.num_switches += 2
            return 30 * MS
        return MS

    h2o.work_ns = work_ns
    return arms, host


def check_retry() -> None:
    """A disturbed block is kept, marked, and done again."""
    device = FakeDevice()
    arms, host = disturbed(device, lambda number: number in (3, 4, 6))  # 1 and 2 are warm-up
    settings = default_settings(min_rounds=2, max_rounds=2)
    result = run(arms, FakeHostClock(device), settings, host=host)
    blocks = [sample for sample in result.samples if sample.arm == "h2o" and sample.index_in_block == 0]
    assert [(sample.round, sample.is_clean) for sample in blocks] == [
        (0, False),
        (0, False),
        (0, True),
        (1, False),
        (1, True),
    ]
    assert all(sample.is_clean for sample in result.samples if sample.arm != "h2o")


def test_a_disturbed_block_is_recorded_and_timed_again() -> None:
    check_retry()


def test_a_block_is_timed_at_most_seven_times() -> None:
    device = FakeDevice()
    arms, host = disturbed(device, lambda number: True)
    result = run(arms, FakeHostClock(device), default_settings(min_rounds=2, max_rounds=2), host=host)
    blocks = [sample for sample in result.samples if sample.arm == "h2o" and sample.index_in_block == 0]
    assert [sample.round for sample in blocks] == [0] * 7 + [1] * 7


def test_the_filter_is_for_processors_alone() -> None:
    device = FakeDevice()
    arms, host = disturbed(device, lambda number: True)
    result = run(arms, FakeQueueClock(device), default_settings(max_rounds=10), host=host)
    assert all(sample.is_clean for sample in result.samples)


def check_end() -> None:
    """Beside a busy neighbour that disturbs everything, a run ends in its time and a bounded overrun."""
    device = FakeDevice()
    arms, host = disturbed(device, lambda number: True)
    host.busy = 2.0
    settings = default_settings(cell_seconds=8.0, quiet_seconds=2.0, max_rounds=40)
    run(arms, FakeHostClock(device), settings, host=host)
    round_s = 3 * 7 * (0.050 + 0.034)  # three arms, seven blocks, a prefill and four steps each
    assert host.now_s() <= 8.0 + round_s
    assert host.slept_s <= 2.1


def test_a_run_beside_a_busy_neighbour_ends() -> None:
    check_end()


def test_an_arm_slower_than_the_whole_time_is_timed_twice() -> None:
    device = FakeDevice()
    arms = {name: FakeArm(device, lambda index: 5_000 * MS, on_host=True) for name in ("baseline", "h2o")}
    result = run(arms, FakeHostClock(device), default_settings(cell_seconds=8.0))
    assert len(result.samples) == 2 * 3 * 4
    assert [arm.num_restored for arm in arms.values()] == [2 + 2 * 2, 2 + 2]


@pytest.mark.parametrize(("rounds_seconds", "rounds"), [(60.0, 10), (22.0, 5), (0.0, 2)])
def test_slow_arms_have_their_rounds_while_that_is_allowed(rounds_seconds: float, rounds: int) -> None:
    device = FakeDevice()
    arms = {name: FakeArm(device, lambda index: 300 * MS, on_host=True) for name in ("baseline", "h2o")}
    settings = default_settings(cell_seconds=8.0, rounds_seconds=rounds_seconds)
    samples = run(arms, FakeHostClock(device), settings).samples
    assert max(sample.round for sample in samples) == rounds - 1


def test_a_disturbed_block_is_not_timed_again_when_the_time_is_over() -> None:
    device = FakeDevice()
    arms, host = disturbed(device, lambda number: True)
    run(arms, FakeHostClock(device), default_settings(cell_seconds=0.01), host=host)
    assert arms["h2o"].num_restored == 2 + 10


def check_extension() -> None:
    """Rounds are added while the interval is wide, and not when it is narrow."""
    device = FakeDevice()
    arms = two_arms(device)
    settings = default_settings(min_rounds=10, max_rounds=30)
    assert max(sample.round for sample in run(arms, FakeQueueClock(device), settings).samples) == 9
    noisy = arms["h2o"]
    noisy.work_ns = lambda index: MS * (1 + noisy.num_restored % 3)
    assert max(sample.round for sample in run(arms, FakeQueueClock(device), settings).samples) == 29


def test_rounds_are_added_until_the_interval_is_narrow() -> None:
    check_extension()


def check_guard() -> None:
    """An arm that hides its work on a side stream is refused."""
    device = FakeDevice()
    arms = two_arms(device)

    def hidden_work(index: int) -> int:
        device.launch(5 * MS, stream="side")
        return MS

    arms["h2o"].work_ns = hidden_work
    with pytest.raises(WorkLeftRunning, match="h2o leaves work"):
        run(arms, FakeQueueClock(device), default_settings(max_rounds=10))


def test_an_arm_that_hides_work_on_a_side_stream_is_refused() -> None:
    check_guard()


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (mutants.WarmupCounted, check_exact_times),
        (mutants.RestoreTimed, check_exact_times),
        (mutants.PrefillLeaks, check_exact_times),
        (mutants.FixedOrder, check_drift),
        (mutants.BaselineFirst, check_drift),
        (mutants.DirtyAsClean, check_retry),
        (mutants.NeverAgain, check_retry),
        (mutants.Endless, check_end),
        (mutants.PatientEveryTime, check_end),
        (mutants.StopsEarly, check_extension),
        (mutants.Unguarded, check_guard),
    ],
)
def test_oracle_catches_a_broken_comparison(mutant: type[Cell], check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "Cell", mutant)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()


def test_progress_rises_from_nothing_to_all_between_blocks() -> None:
    device = FakeDevice()
    arms = two_arms(device)
    seen: list[float] = []
    is_inside: list[bool] = []

    def progress(done: float) -> None:
        seen.append(done)
        is_inside.append(arms["h2o"].index not in (0, 4) or arms["baseline"].index not in (0, 4))

    run(arms, FakeQueueClock(device), default_settings(max_rounds=10), progress=progress)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert len(seen) == 2 + 3 * 10
    assert not any(is_inside)


def test_an_arm_alone_is_timed_without_a_baseline() -> None:
    device = FakeDevice()
    arms = {"h2o": two_arms(device)["h2o"]}
    result = run(arms, FakeQueueClock(device), default_settings(min_rounds=10), baseline=None)
    assert len(result.samples) == 10 * 4
    assert {sample.arm for sample in result.samples} == {"h2o"}


def test_energy_is_that_of_an_arms_own_clean_blocks() -> None:
    device = FakeDevice()

    class Counted(FakeHostClock):
        def joules(self) -> float | None:
            return self.device.now_ns / 1e9 * 20 + 7  # 20 W, whatever runs

    arms, host = disturbed(device, lambda index: index == 3)
    settings = default_settings(min_rounds=2, max_rounds=2)
    result = run(arms, Counted(device), settings, host=host)
    for name in arms:
        clean = [sample for sample in result.samples if sample.arm == name and sample.is_clean]
        seconds = sum(sample.ms for sample in clean) / 1e3
        assert result.energy[name].steps == len(clean)
        assert result.energy[name].seconds == pytest.approx(seconds)
        assert result.energy[name].joules == pytest.approx(20 * seconds)
    assert not all(sample.is_clean for sample in result.samples)
    assert run(two_arms(device), FakeHostClock(device), settings).energy == {}


def test_a_devices_rate_is_read_after_each_block() -> None:
    device = FakeDevice()

    class Rated(FakeQueueClock):
        def rate_mhz(self) -> int | None:
            return 1980

    result = run(two_arms(device), Rated(device), default_settings(min_rounds=2, max_rounds=2))
    assert result.rates_mhz == {name: (1980, 1980) for name in ("baseline", "h2o", "baseline_again")}
