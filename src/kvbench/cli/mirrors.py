"""`kvbench wandb sync`: sends what runs left for W&B while they were offline."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvbench.cli.messages import FAILED
from kvbench.configuration.errors import ConfigError

AT_ONCE = 100  # runs to a process, whose command line has an end


def main(action: str, path: str, *, dry_run: bool, project: str, entity: str) -> int:
    """Send every offline mirror below a folder; 1 if wandb could not send one.

    Args:
        action: "sync".
        path: of a run, a sweep or a whole tree.
        dry_run: whether wandb only says what it would send.
        project: to send to, in place of that which was configured; "" for that.
        entity: to send to; "" for the user's own.
    """
    found = list(offline(Path(path)))
    if not found:
        raise ConfigError(
            f"no offline mirror below {path}: give the folder that runs= named; runs of sink.wandb.mode=disabled or "
            f"online left none."
        )
    print(f"offline mirrors below {path}: {len(found)}", flush=True)  # wandb speaks next
    options = ["--dry-run"] if dry_run else []
    options += ["--project", project] if project else []
    options += ["--entity", entity] if entity else []
    ended = [_sync(part, options) for part in _parts(found)]
    return FAILED if any(ended) else 0


def offline(root: Path) -> Iterator[Path]:
    """Yield the folders that wandb left, in the order of their runs' names."""
    for folder in sorted(root.rglob("offline-run-*")):
        if folder.parent.name == "wandb" and any(folder.glob("*.wandb")):
            yield folder


def _sync(folders: Sequence[Path], options: Sequence[str]) -> int:
    command = [sys.executable, "-m", "wandb", "sync", "--yes", *options, *map(str, folders)]
    return subprocess.run(command, check=False).returncode


def _parts(folders: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for first in range(0, len(folders), AT_ONCE):
        yield folders[first : first + AT_ONCE]
