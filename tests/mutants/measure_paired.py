"""Comparisons that break one rule each."""

from __future__ import annotations

from kvbench.measure.blocks import Block, run_block
from kvbench.measure.paired import Arm, Cell
from kvbench.measure.samples import PairedSamples


class FixedOrder(Cell):
    """Times the arms in the same order in every round, so that a drift favours the first."""

    def order(self) -> list[str]:
        """Return the arms forward."""
        return list(self.arms)


class BaselineFirst(Cell):
    """Times all blocks of one arm, then all of the next."""

    def measure(self, name: str) -> None:
        """Time an arm for every round at once, when its first comes."""
        if self.round > 0:
            return
        while self.round < self.limits.min_rounds:
            super().measure(name)
            self.round += 1
        self.round = 0

    def is_done(self) -> bool:
        """Return whether the one round is over."""
        return self.round > 0


class WarmupCounted(Cell):
    """Records the warm-up like everything else."""

    def warm_up(self) -> None:
        """Time each arm once."""
        for name in self.arms:
            self.measure(name)


class RestoreTimed(Cell):
    """Restores inside the block."""

    def _block(self, arm: Arm) -> tuple[Block, bool]:
        pending = [arm.restore]

        def step() -> None:
            while pending:
                pending.pop()()
            arm.step()

        return run_block(self.steps, step, self.clock), True


class PrefillLeaks(Cell):
    """Counts a prefill as the step before the first."""

    def _block(self, arm: Arm) -> tuple[Block, bool]:
        actions = iter([arm.restore, *[arm.step] * (self.steps - 1)])
        return run_block(self.steps, lambda: next(actions)(), self.clock), True


class DirtyAsClean(Cell):
    """Overlooks other processes."""

    def _block(self, arm: Arm) -> tuple[Block, bool]:
        return super()._block(arm)[0], True


class NeverAgain(Cell):
    """Takes a disturbed block as it is."""

    def measure(self, name: str) -> None:
        """Time one block."""
        block, is_clean = self._block(self.arms[name])
        self._record(name, block, is_clean=is_clean)


class Endless(Cell):
    """Does not look at the time."""

    def share_of_time(self) -> float:
        """Return that all time is left."""
        return 0.0


class PatientEveryTime(Cell):
    """Waits as long before every block as a whole comparison may."""

    def _wait_for_quiet(self) -> None:
        self.patience_s = self.settings.quiet_seconds
        while self.patience_s > 0 and self.host.busy_cores() > 0:
            self.host.sleep(0.1)
            self.patience_s -= 0.1


class StopsEarly(Cell):
    """Stops after the fewest rounds, however wide the interval."""

    def is_done(self) -> bool:
        """Return whether the fewest rounds are done."""
        return self.round >= self.limits.min_rounds


class Unguarded(Cell):
    """Does not ask whether work was left behind."""

    def result(self) -> PairedSamples:
        """Return what was found."""
        blocks = {name: [block._replace(left_ns=0) for block in found] for name, found in self.blocks.items()}
        self.blocks.clear()
        self.blocks.update(blocks)
        return super().result()
