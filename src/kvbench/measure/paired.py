"""Arms timed in blocks side by side in one process: the only kind of speed that is compared.

Rounds go forward and backward in turn, so that a slow drift of the machine falls on all arms alike. The baseline is
entered twice under two names: what lies between it and itself is noise. Waiting and repeating end with the time
allowed; rounds go on after it only until there are enough for a verdict, and no longer than is allowed for that.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Protocol

from kvbench.measure.blocks import Block, assert_quiet, run_block
from kvbench.measure.clock import Clock
from kvbench.measure.host import Host
from kvbench.measure.samples import Energy, PairedSamples, Sample, again
from kvbench.measure.settings import Settings
from kvbench.measure.statistics import Statistic, ratio_interval

MAX_WARMUP_BLOCKS = 10
WARMUP_DRIFT = 0.02  # between two blocks, below which an arm is warm
WARMUP_SHARE = 1 / 3  # of the time, after which an arm must do as it is
FEWEST_ROUNDS = 2  # without which there is no ratio
RETRIES = 6  # of a disturbed block
NAP_S = 0.1


class Arm(Protocol):
    """Something to be timed, again and again from the same state."""

    def restore(self) -> None:
        """Go back to the state before the first step; untimed."""

    def step(self) -> None:
        """Do one step; timed."""


def measure_paired(
    arms: Mapping[str, Arm],
    *,
    baseline: str | None,
    steps: int,
    statistic: Statistic,
    settings: Settings,
    clock: Clock,
    host: Host,
    progress: Callable[[float], None],
) -> PairedSamples:
    """Time arms in interleaved blocks until their ratios are known well enough or the time is over.

    Args:
        arms: by name; one alone where nothing is compared.
        baseline: name of the arm the others are compared with, or None.
        steps: per block; 1 for a whole prefill, at least a period for an arm with periodic work.
        statistic: of a block, that the ratio is made of.
        settings: how long and how carefully.
        clock: of the device that does the work.
        host: the machine around it.
        progress: told between blocks how much is done, from 0 to 1.
    """
    assert baseline is None or baseline in arms
    cell = Cell(arms, baseline=baseline, steps=steps, statistic=statistic, settings=settings, clock=clock, host=host)
    progress(0.0)
    with garbage_kept():
        cell.warm_up()
        while not cell.is_done():
            for name in cell.order():
                cell.measure(name)
                progress(cell.share_done())
            cell.round += 1
    progress(1.0)
    return cell.result()


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Keep Python from collecting garbage, which would stop the clock's steps; what is frozen stays so."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def switches_allowed(block_ms: float, threads: int, num_cpus: int) -> float:
    """Return how often a clean block may be made to give up a core.

    Args:
        block_ms: length of the block.
        threads: that the block uses; a pool as wide as the machine takes cores from itself.
        num_cpus: cores of the machine.
    """
    return max(1.0, block_ms / (100 if threads < num_cpus else 5))


def others_allowed(threads: int, num_cpus: int) -> float:
    """Return how many cores other processes may keep busy before a block begins."""
    return max(0.3, num_cpus - threads - 0.05)


class Cell:
    """One comparison while it runs."""

    def __init__(
        self,
        arms: Mapping[str, Arm],
        *,
        baseline: str | None,
        steps: int,
        statistic: Statistic,
        settings: Settings,
        clock: Clock,
        host: Host,
    ) -> None:
        """Begin the comparison's time."""
        self.arms = dict(arms) if baseline is None else {**arms, again(baseline): arms[baseline]}
        self.baseline, self.steps, self.statistic = baseline, steps, statistic
        self.settings, self.clock, self.host = settings, clock, host
        self.limits = settings.limits(clock.device_type)
        self.start_s = host.now_s()
        self.patience_s = settings.quiet_seconds
        self.warmup_s = 0.0
        self.round = 0
        self.num_blocks = 0
        self.samples: list[Sample] = []
        self.blocks: defaultdict[str, list[Block]] = defaultdict(list)
        self.rates: defaultdict[str, list[int]] = defaultdict(list)
        self.energy: dict[str, Energy] = {}

    def share_of_time(self) -> float:
        """Return how much of the time is over."""
        return self._spent_s() / self.settings.cell_seconds

    def share_done(self) -> float:
        """Return how much is done, by rounds or by time."""
        by_time = min(self.share_of_time(), (self.round + 1) / self.limits.min_rounds)
        return min(1.0, max(by_time, self.round / self.settings.max_rounds))

    def order(self) -> list[str]:
        """Return the arms forward in even rounds and backward in odd ones."""
        return list(self.arms) if self.round % 2 == 0 else list(self.arms)[::-1]

    def warm_up(self) -> None:
        """Run each arm until two blocks agree."""
        for arm in {id(arm): arm for arm in self.arms.values()}.values():
            last: float | None = None
            for number in range(1, MAX_WARMUP_BLOCKS + 1):
                value = median(duration.ms for duration in self._block(arm)[0].durations)
                is_warm = last is not None and abs(value - last) <= WARMUP_DRIFT * last
                if number >= self.settings.warmup_blocks and (is_warm or self.share_of_time() > WARMUP_SHARE):
                    break
                last = value
        self.warmup_s = self.host.now_s() - self.start_s

    def measure(self, name: str) -> None:
        """Time one block of an arm, again if it was disturbed and there is time."""
        for _ in range(1 + RETRIES):
            self._wait_for_quiet()
            block, is_clean = self._block(self.arms[name])
            self._record(name, block, is_clean=is_clean)
            if is_clean or self.share_of_time() >= 1:
                return

    def is_done(self) -> bool:
        """Return whether every ratio is known well enough, or it is time to stop."""
        if self.round < FEWEST_ROUNDS:
            return False
        if self.round >= self.settings.max_rounds:
            return True
        if self.round < self.limits.min_rounds:
            return self._spent_s() >= max(self.settings.cell_seconds, self.settings.rounds_seconds)
        return self.share_of_time() >= 1 or self._is_narrow()

    def result(self) -> PairedSamples:
        """Return what was found, unless an arm hides work."""
        for name, blocks in self.blocks.items():
            assert_quiet(blocks, name)
        return PairedSamples(
            samples=tuple(self.samples),
            baseline=self.baseline,
            warmup_s=self.warmup_s,
            rates_mhz={name: tuple(rates) for name, rates in self.rates.items()},
            steps_behind={name: self._steps_behind(blocks) for name, blocks in self.blocks.items() if self._is_queued},
            energy=self.energy,
        )

    @property
    def _is_queued(self) -> bool:
        return self.clock.device_type != "cpu"

    def _steps_behind(self, blocks: list[Block]) -> float:
        return median(block.behind_ns / 1e6 / (block.ms / self.steps) for block in blocks)

    def _spent_s(self) -> float:
        return self.host.now_s() - self.start_s

    def _is_narrow(self) -> bool:
        if self.baseline is None:
            return True
        names = [name for name in self.arms if name != self.baseline]
        found = [ratio_interval(self.samples, name, self.baseline, self.statistic) for name in names]
        return all(interval is not None and interval.half_width <= self.limits.half_width for interval in found)

    def _block(self, arm: Arm) -> tuple[Block, bool]:
        arm.restore()
        before = self.host.switches()
        block = run_block(self.steps, arm.step, self.clock)
        switches = self.host.switches() - before
        allowed = switches_allowed(block.ms, self.settings.threads, self.host.num_cpus)
        return block, self._is_queued or switches <= allowed

    def _wait_for_quiet(self) -> None:
        if self._is_queued:
            return
        allowed = others_allowed(self.settings.threads, self.host.num_cpus)
        while self.patience_s > 0 and self.share_of_time() < 1 and self.host.busy_cores() >= allowed:
            self.host.sleep(NAP_S)
            self.patience_s -= NAP_S

    def _record(self, name: str, block: Block, *, is_clean: bool) -> None:
        rate = self.clock.rate_mhz()
        if rate is not None:
            self.rates[name].append(rate)
        self.blocks[name].append(block)
        if is_clean and block.joules is not None:
            known = self.energy.get(name, Energy(joules=0.0, seconds=0.0, steps=0))
            seconds, steps = known.seconds + block.ms / 1e3, known.steps + self.steps
            self.energy[name] = Energy(joules=known.joules + block.joules, seconds=seconds, steps=steps)
        self.samples += [
            Sample(
                arm=name,
                round=self.round,
                block=self.num_blocks,
                index_in_block=index,
                wall_ns=duration.wall_ns,
                event_ms=duration.event_ms,
                is_clean=is_clean,
            )
            for index, duration in enumerate(block.durations)
        ]
        self.num_blocks += 1
