"""A row names the machine, the software and the very source that made it."""

from __future__ import annotations

import importlib.metadata
import itertools
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kvbench.measure.environment import (
    accelerator,
    available_ram_bytes,
    cache_share_bytes,
    checkout,
    environment,
    last_level_cache_bytes,
    source_hash,
    versions,
)
from kvbench.measure.host import LocalHost
from tests.mutants import measure_environment as mutants

COLUMNS = {
    *("device", "device_name", "cpu_model", "num_cpus", "num_threads", "ram_bytes", "driver", "load_1min"),
    *("python", "torch", "transformers", "triton", "kvbench", "git_commit", "git_dirty", "source_hash"),
}
Checkout = Callable[[Path], Mapping[str, object]]

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def test_an_environment_has_the_columns_of_a_row() -> None:
    found = environment("cpu")
    assert found.keys() == COLUMNS
    assert found["device"] == "cpu"
    assert found["driver"] is None
    assert found["device_name"] == found["cpu_model"] == accelerator("cpu")["device_name"]
    assert all(isinstance(found[name], int) for name in ("num_cpus", "num_threads", "ram_bytes"))


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    whole = str(torch.__version__)  # torch knows what it was built for, its package may not
    assert versions()["torch"] in (whole, whole.partition("+")[0])
    monkeypatch.setattr(importlib.metadata, "version", _not_installed)
    assert versions()["torch"] is None


def _not_installed(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody."""
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def check_checkout(check: Checkout, folder: Path) -> None:
    """Only source that a repository holds has its commit; a change makes it dirty."""
    source, installed = folder / "src", folder / "venv"
    for path in (source, installed):
        path.mkdir()
        (path / "clock.py").write_text("TIME = 1\n")
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("venv\n")
    git(folder, "add", ".gitignore")
    git(folder, "commit", "--quiet", "-m", "first")
    assert check(source) == {"git_commit": None, "git_dirty": None}  # not yet in it
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "second")
    commit = git(folder, "rev-parse", "HEAD")
    assert check(source) == {"git_commit": commit, "git_dirty": False}
    assert check(installed) == {"git_commit": None, "git_dirty": None}  # surrounded by it, not in it
    (source / "clock.py").write_text("TIME = 2\n")
    assert check(source) == {"git_commit": commit, "git_dirty": True}


@needs_git
def test_a_commit_is_that_of_the_source(tmp_path: Path) -> None:
    check_checkout(checkout, tmp_path)


@needs_git
@pytest.mark.parametrize("mutant", mutants.CHECKOUTS)
def test_oracle_catches_another_commit(mutant: Checkout, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_checkout(mutant, tmp_path)


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout(tmp_path) == {"git_commit": None, "git_dirty": None}


def check_hash(hashing: Callable[[Path], str], folder: Path) -> None:
    """Each tree of sources has a hash of its own, wherever it lies."""
    trees: list[dict[str, str]] = [
        {"a.py": "x", "b.py": "y"},
        {"a.py": "x", "b.py": "z"},
        {"a.py": "x", "c.py": "y"},
        {"a.py": "xy", "b.py": ""},
        {"a.py": "x"},
        {"a.py": "xb.pyy"},
        {"a.py": "x", "sub/b.py": "y"},
    ]
    hashes = []
    for number, tree in enumerate(trees):
        for name, text in tree.items():
            path = folder / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        hashes.append(hashing(folder / str(number)))
    for one, other in itertools.combinations(hashes, 2):
        assert one != other
    shutil.copytree(folder / "0", folder / "elsewhere")
    assert hashing(folder / "elsewhere") == hashes[0]


def test_each_source_tree_has_its_own_hash(tmp_path: Path) -> None:
    check_hash(source_hash, tmp_path)


@pytest.mark.parametrize("mutant", mutants.HASHES)
def test_oracle_catches_a_hash_that_two_trees_share(mutant: Callable[[Path], str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_hash(mutant, tmp_path)


def fake_caches(folder: Path, sizes: list[str]) -> Path:
    """Return a folder that describes a processor's caches."""
    for index, size in enumerate(sizes):
        path = folder / "cpu0" / "cache" / f"index{index}"
        path.mkdir(parents=True)
        (path / "size").write_text(f"{size}\n")
    return folder


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    assert last_level_cache_bytes(fake_caches(tmp_path, ["48K", "64K", "2048K", "32M"])) == 32 * 2**20
    assert last_level_cache_bytes(tmp_path / "nowhere") is None


def test_a_cache_shared_with_strangers_counts_by_core(tmp_path: Path) -> None:
    num_cpus = LocalHost().num_cpus
    assert cache_share_bytes(fake_caches(tmp_path, ["1G", "2G"])) == min(2 * 2**30, num_cpus * 16 * 2**20)
    assert cache_share_bytes(tmp_path / "nowhere") == num_cpus * 16 * 2**20
    assert cache_share_bytes(fake_caches(tmp_path / "small", ["4096K"])) == 4 * 2**20


def test_available_memory_is_the_systems_own_figure(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  4000 kB\nMemAvailable:  1000 kB\n")
    assert available_ram_bytes(path) == 1000 * 1024
    assert available_ram_bytes(tmp_path / "nowhere") > 0
