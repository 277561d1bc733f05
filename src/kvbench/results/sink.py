"""Mirrors of a finished run. They come after the record and beside it: none of them can cost a run or hold it up."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args

from kvbench.results.folder import append_log

Mode = Literal["offline", "online", "disabled"]

_LONGEST_REASON = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """A mirror in Weights & Biases.

    Args:
        mode: "offline" writes files into the run's folder, "online" sends, "disabled" does nothing.
        project: in which the runs appear.
        timeout_s: after which the mirror is given up.
    """

    mode: Mode
    project: str
    timeout_s: float

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"sink.wandb.mode must be one of {', '.join(get_args(Mode))}; got {self.mode!r}.")
        if not self.project:
            raise ValueError("sink.wandb.project must be a name; got ''. To do without, set sink.wandb.mode=disabled.")
        if not self.timeout_s > 0:
            raise ValueError(f"sink.wandb.timeout_s must be above 0; got {self.timeout_s}.")


@dataclass(frozen=True, kw_only=True)
class Sink:
    """Where results go besides parquet.

    Args:
        wandb: the mirror in Weights & Biases.
    """

    wandb: Wandb

    def mirror(self, folder: Path) -> str | None:
        """Copy a finished run to where it is to be seen, and return one line for the log where that failed.

        Args:
            folder: of the run; a failure is also written to its log.
        """
        if self.wandb.mode == "disabled":
            return None
        failure = _mirror(folder, self.wandb)
        if failure is None:
            return None
        line = f"warning: not mirrored to wandb: {failure}. The run is kept; sink.wandb.mode=disabled does without."
        with contextlib.suppress(OSError):  # a full disk
            append_log(folder, line)
        return line


def _mirror(folder: Path, wandb: Wandb) -> str | None:
    if importlib.util.find_spec("wandb") is None:
        return "it is not installed (pip install wandb)"
    arguments = [str(folder), wandb.project, wandb.mode, str(wandb.timeout_s)]
    command = [sys.executable, "-m", "kvbench.report.wandb_mirror", *arguments]
    with tempfile.TemporaryFile() as said:  # a pipe would stay open for as long as wandb's own processes live
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        try:
            status = child.wait(wandb.timeout_s)
        except subprocess.TimeoutExpired:
            return f"no answer within sink.wandb.timeout_s={wandb.timeout_s:g} s"
        finally:
            _end(child)
        return None if status == 0 else _last_line(said) or f"its process ended with {status}"


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:_LONGEST_REASON].rstrip(".") if lines else ""
