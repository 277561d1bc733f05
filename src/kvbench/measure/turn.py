"""One measurement at a time on each device of a machine, whichever launcher starts them."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VISIBLE = ("SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")  # the first numbers the GPUs of a node as all its jobs do


@contextmanager
def own_turn() -> Iterator[None]:
    """Wait until no other process of this user measures on the devices that this one sees; then keep others waiting.

    The system ends the turn of whoever is killed.
    """
    visible = next((os.environ[name] for name in _VISIBLE if os.environ.get(name)), "all")
    name = re.sub(r"\W+", "_", f"kvbench_{os.getuid()}_{visible}")
    with (Path(tempfile.gettempdir()) / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
