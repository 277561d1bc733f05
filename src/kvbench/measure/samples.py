"""What a timed comparison leaves behind: one record per step, and what is true of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


def again(baseline: str) -> str:
    """Return the name under which the baseline is timed a second time, as if it were another arm."""
    return f"{baseline}_again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timed step.

    Args:
        arm: what was timed.
        round: every arm is timed once in each; warm-up has none.
        block: number of the block within the comparison, in order of time.
        index_in_block: 0 is recorded, but counts only where it is alone.
        wall_ns: host's clock; only the launching, where there is an event_ms.
        event_ms: device's clock, or None where the host's clock tells all.
        is_clean: whether the block was left alone by other processes.
    """

    arm: str
    round: int
    block: int
    index_in_block: int
    wall_ns: int
    event_ms: float | None
    is_clean: bool

    @property
    def ms(self) -> float:
        """How long the step took [ms]."""
        return self.wall_ns / 1e6 if self.event_ms is None else self.event_ms


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What the whole device used while the clean blocks of an arm ran.

    Args:
        joules: of them all [J].
        seconds: how long they took [s].
        steps: how many steps they were.
    """

    joules: float
    seconds: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class PairedSamples:
    """A finished comparison.

    Args:
        samples: every timed step after warm-up, disturbed ones too.
        baseline: the arm the others are compared with; None where nothing is compared.
        warmup_s: how long warm-up took, compilation included [s].
        rates_mhz: per arm, the rate of the device's cores after each block; empty where nobody says.
        steps_behind: per arm, how many steps the device was behind the host at the end of a block; empty without a
            device's clock.
        energy: per arm, what the device used; empty where nobody counts it.
    """

    samples: tuple[Sample, ...]
    baseline: str | None
    warmup_s: float
    rates_mhz: Mapping[str, tuple[int, ...]]
    steps_behind: Mapping[str, float]
    energy: Mapping[str, Energy]

    def records(self) -> list[dict[str, object]]:
        """Return the samples as plain rows."""
        return [asdict(sample) for sample in self.samples]
