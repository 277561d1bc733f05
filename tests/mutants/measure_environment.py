"""Identities that mistake one source for another."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path


def commit_of_whatever_surrounds(folder: Path) -> dict[str, str | bool | None]:
    """Report the commit of any repository around the source, even if it does not hold it."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if changes is None else changes != ""}


def always_clean(folder: Path) -> dict[str, str | bool | None]:
    """Overlook changes."""
    return commit_of_whatever_surrounds(folder) | {"git_dirty": False}


def hash_of_the_texts(folder: Path) -> str:
    """Forget the names and where one text ends."""
    texts = [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def hash_of_the_names(folder: Path) -> str:
    """Forget the texts."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


CHECKOUTS = (commit_of_whatever_surrounds, always_clean)
HASHES = (hash_of_the_texts, hash_of_the_names)
