"""Ways for a measuring process to end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from inspect import getclosurevars
from pathlib import Path

Report = Callable[[str, float], None]


def double(number: int, report: Report) -> int:
    """Succeed."""
    report("half", 0.5)
    return 2 * number


def refuse(number: int, report: Report) -> None:
    """Raise what a user can mend."""
    raise ValueError("set workload.x")


def stumble(number: int, report: Report) -> float:
    """Raise what nobody expected."""
    return number / 0


def eat(number: int, report: Report) -> None:
    """Say that there is not enough memory."""
    raise MemoryError("weights of 9 GiB")


def vanish(number: int, report: Report) -> None:
    """End without a word."""
    os._exit(7)


def killed(number: int, report: Report) -> None:
    """End as the kernel ends a process that eats too much."""
    os.kill(os.getpid(), signal.SIGKILL)


def cut_off(number: int, report: Report) -> None:
    """End in the middle of what is said: a length of 1,000 bytes, and one of them."""
    os.write(getclosurevars(report).nonlocals["sender"].fileno(), (1000).to_bytes(4, "big") + b"x")
    os.kill(os.getpid(), signal.SIGKILL)


def hang(number: int, report: Report) -> None:
    """Never come back."""
    time.sleep(600)


def waits_in_vain(report: Report) -> None:
    """Give up waiting for somebody else."""
    raise TimeoutError("in vain")


def plod(steps: int, report: Report) -> int:
    """Report every half second."""
    for step in range(steps):
        time.sleep(0.5)
        report("on its way", step / steps)
    return steps


def outlives(note: str, report: Report) -> None:
    """Say which process this is, and go on for long without another word."""
    Path(note).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)
