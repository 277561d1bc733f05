"""How long and how carefully to measure."""

from __future__ import annotations

import math
from dataclasses import dataclass

FEWEST_TOKENS = 5  # of a block of slow steps: four of them count, forty in ten rounds
SLOW_BLOCK_MS = 500.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a comparison must reach before it may claim anything.

    Args:
        half_width: of the ratio's interval.
        aa_limit: gap between the baseline and itself.
        min_rounds: rounds with a clean block of both arms.
    """

    half_width: float
    aa_limit: float
    min_rounds: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Length, repeats and limits of a timed comparison.

    Args:
        threads: CPU threads of both arms.
        block_tokens: steps of one block on a CPU; down to five where they are slow.
        gpu_block_tokens: least steps of one block on a GPU.
        gpu_block_ms: least length of one block on a GPU.
        warmup_blocks: least blocks of each arm that are thrown away.
        min_rounds: rounds below which there is no verdict.
        max_rounds: rounds after which to stop.
        cell_seconds: time for one comparison; what has begun is finished.
        rounds_seconds: time for one comparison that has fewer than min_rounds by then; two rounds are always timed.
        quiet_seconds: time to wait for other processes in one comparison, in all.
        half_width: of the ratio's 95% interval at which to stop, on a CPU.
        gpu_half_width: the same on a GPU.
        aa_limit: gap between the baseline and itself beyond which a comparison is void, on a CPU.
        gpu_aa_limit: the same on a GPU.
        timeout_s: time after which a measuring process is ended.
    """

    threads: int
    block_tokens: int
    gpu_block_tokens: int
    gpu_block_ms: float
    warmup_blocks: int
    min_rounds: int
    max_rounds: int
    cell_seconds: float
    rounds_seconds: float
    quiet_seconds: float
    half_width: float
    gpu_half_width: float
    aa_limit: float
    gpu_aa_limit: float
    timeout_s: float

    def __post_init__(self) -> None:
        """Refuse values that cannot measure anything."""
        for name, least in {
            "threads": 1,
            "block_tokens": 2,
            "gpu_block_tokens": 2,
            "warmup_blocks": 1,
            "min_rounds": 2,
        }.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"measure.{name} must be at least {least}; got {value}. Set measure.{name}.")
        for name in ("cell_seconds", "half_width", "gpu_half_width", "aa_limit", "gpu_aa_limit", "timeout_s"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"measure.{name} must be above 0; got {value}. Set measure.{name}.")
        for name in ("gpu_block_ms", "quiet_seconds", "rounds_seconds"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"measure.{name} must not be negative; got {value}. Set measure.{name}.")
        if self.max_rounds < self.min_rounds:
            raise ValueError(
                f"measure.max_rounds must be at least measure.min_rounds; got max_rounds={self.max_rounds}, "
                f"min_rounds={self.min_rounds}. Set measure.max_rounds."
            )

    def check_threads(self, num_cpus: int) -> None:
        """Refuse more threads than the machine has cores: they would time each other.

        Args:
            num_cpus: cores this process may use.
        """
        if self.threads > num_cpus:
            raise ValueError(
                f"measure.threads must be at most the {num_cpus} cores of this machine; got {self.threads}. "
                f"Set measure.threads."
            )

    def steps_per_block(self, device_type: str, step_ms: float) -> int:
        """Return how many decode steps one block takes.

        Args:
            device_type: "cpu", "cuda" or "mps".
            step_ms: about how long a step lasts.
        """
        if device_type == "cpu":
            return min(self.block_tokens, max(FEWEST_TOKENS, math.ceil(SLOW_BLOCK_MS / step_ms)))
        return max(self.gpu_block_tokens, math.ceil(self.gpu_block_ms / step_ms))

    def limits(self, device_type: str) -> Limits:
        """Return what a comparison on this kind of device must reach."""
        on_cpu = device_type == "cpu"
        return Limits(
            half_width=self.half_width if on_cpu else self.gpu_half_width,
            aa_limit=self.aa_limit if on_cpu else self.gpu_aa_limit,
            min_rounds=self.min_rounds,
        )
