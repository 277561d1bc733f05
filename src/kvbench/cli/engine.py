"""`kvbench engine`: environments of engines that cannot share kvbench's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from kvbench.configuration.errors import ConfigError, hint
from kvbench.engines.vllm import PINS, installed
from kvbench.folders import engine_folder

ENGINES = ("vllm",)
WITHOUT_A_GPU = "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"


def main(action: str, name: str, *, environment: str) -> None:
    """List which engines are installed, or install one.

    Args:
        action: "list" or "install".
        name: of the engine to install.
        environment: folder of its environment; "" for one in the cache folder.
    """
    if action == "list":
        for each in ENGINES:
            print(_line(each, Path(environment) if environment else engine_folder(each)))
        return
    if name not in ENGINES:
        raise ConfigError(f"there is no engine {name!r} to install. {hint(name, ENGINES, label='Engines')}")
    folder = Path(environment) if environment else engine_folder(name)
    if installed(folder) is None:
        install(folder)
    print(_line(name, folder))


def install(folder: Path) -> None:
    """Make an environment with what vLLM is pinned to; one that cannot be completed is removed.

    Raises:
        ConfigError: if the folder is in use.
        OSError: if it cannot be made.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already, without vLLM; name another --environment=, or remove it.")
    python = folder / "bin" / "python"
    try:
        _run([sys.executable, "-m", "venv", str(folder)], "make an environment")
        _run([str(python), "-m", "pip", "install", "--no-deps", "--requirement", str(PINS)], "install what is pinned")
        _run(
            [str(python), "-I", "-c", "import vllm"], f"import vllm: on Linux pip needs {WITHOUT_A_GPU} for this torch"
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _line(name: str, folder: Path) -> str:
    version = installed(folder)
    return f"{name}  {version} in {folder}" if version else f"{name}  not installed: kvbench engine install {name}"


def _run(command: list[str], what: str) -> None:
    if subprocess.run(command, check=False).returncode:
        raise OSError(f"could not {what}; what went wrong stands above.")
