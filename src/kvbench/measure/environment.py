"""Which machine, software and source made a row."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from kvbench.measure import nvml
from kvbench.measure.host import LocalHost

_PACKAGE = Path(__file__).resolve().parent.parent
_CPU_CACHES = Path("/sys/devices/system/cpu")
_CPU_INFO = Path("/proc/cpuinfo")
_MEMORY_INFO = Path("/proc/meminfo")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_CACHE_PER_CORE = 16 * 2**20
_GIT_TIMEOUT_S = 10

Facts = dict[str, str | int | float | bool | None]


def environment(device: str) -> Facts:
    """Return everything that identifies where a row comes from, by the name of its column.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps".
    """
    return {
        "device": device,
        **machine(),
        **accelerator(device),
        **versions(),
        **checkout(),
        "source_hash": source_hash(),
    }


def machine() -> Facts:
    """Return the processor, the memory and the load; num_cpus are the cores this process may use."""
    import torch  # here, because the command line must not wait for it

    return {
        "cpu_model": _cpu_model(),
        "num_cpus": LocalHost().num_cpus,
        "num_threads": torch.get_num_threads(),
        "ram_bytes": _ram_bytes(),
        "load_1min": os.getloadavg()[0],
    }


def accelerator(device: str) -> Facts:
    """Return the device's name and its driver; on a CPU the processor and None.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps".
    """
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(torch.device(device))
        state = nvml.read_gpu(f"GPU-{properties.uuid}")
        return {"device_name": properties.name, "driver": None if state is None else state.driver}
    return {"device_name": _cpu_model(), "driver": None}


def versions() -> Facts:
    """Return the versions of Python and of what matters to a number; None where it is not installed."""
    names = ("torch", "transformers", "triton", "kvbench")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def checkout(folder: Path = _PACKAGE) -> Facts:
    """Return the commit that the source was checked out at, and whether it was changed since.

    Both are None for an installed package, even inside somebody's repository: only tracked source counts.

    Args:
        folder: of the source.
    """
    if not _git(folder, "ls-files", "--", "*.py"):
        return {"git_commit": None, "git_dirty": None}
    changes = _git(folder, "status", "--porcelain")
    return {
        "git_commit": _git(folder, "rev-parse", "--verify", "HEAD"),
        "git_dirty": None if changes is None else changes != "",
    }


@functools.cache
def source_hash(folder: Path = _PACKAGE) -> str:
    """Return a hash of every module's path and text.

    Args:
        folder: of the source, or its only file.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
        for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def last_level_cache_bytes(root: Path = _CPU_CACHES) -> int | None:
    """Return the size of the processor's largest cache as the system reports it; None where it does not.

    Args:
        root: folder in which the system describes its processors.
    """
    sizes = [
        _bytes((folder / "size").read_text()) for folder in root.glob("cpu0/cache/index*") if (folder / "size").exists()
    ]
    return max(sizes, default=None)


def cache_share_bytes(root: Path = _CPU_CACHES) -> int:
    """Return how much of the last-level cache this process can count on.

    A virtual machine is shown the cache of the whole chip (two cores with 480 MiB have been seen), which it shares
    with strangers: no more than 16 MiB are counted for each of its cores.

    Args:
        root: folder in which the system describes its processors.
    """
    share = LocalHost().num_cpus * _CACHE_PER_CORE
    return min(share, last_level_cache_bytes(root) or share)


def available_ram_bytes(path: Path = _MEMORY_INFO) -> int:
    """Return how much memory can be taken without swapping; half of the machine's where the system does not tell.

    Args:
        path: in which the system describes its memory.
    """
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _ram_bytes() // 2


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _bytes(text: str) -> int:
    text = text.strip()
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1] in _UNITS else int(text)


def _cpu_model() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
