"""An installed kvbench finds its configuration, its embedded model and its sweeper."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("src", "conf", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what is in a wheel built from a copy of the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
            )
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(copy / done.stdout.splitlines()[-1]) as archive:
        return archive.namelist()


def test_every_yaml_is_in_the_wheel_and_nothing_of_the_tests(wheel: list[str]) -> None:
    want = {f"kvbench/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert want <= set(wheel)
    assert {name.partition("/")[0] for name in wheel if ".dist-info" not in name} == {"kvbench", "hydra_plugins"}


def test_sources_that_are_compiled_later_are_in_the_wheel(wheel: list[str]) -> None:
    kernels = ROOT / "src" / "kvbench" / "kernels"
    want = {
        f"kvbench/kernels/{file.relative_to(kernels)}" for file in kernels.rglob("*") if file.suffix in (".cpp", ".h")
    }
    assert want
    assert want <= set(wheel)


def test_what_a_page_is_made_of_is_in_the_wheel(wheel: list[str]) -> None:
    assert {"kvbench/report/page.css", "kvbench/report/sort.js"} <= set(wheel)


def test_what_another_environment_runs_is_in_the_wheel(wheel: list[str]) -> None:
    assert {"kvbench/engines/vllm_pins.txt", "kvbench/engines/vllm_worker.py"} <= set(wheel)


def test_published_prompts_are_in_the_wheel(wheel: list[str]) -> None:
    assert {"kvbench/workloads/longbench.json", "kvbench/workloads/ruler/published.json"} <= set(wheel)


def test_models_types_and_licences_are_in_the_wheel(wheel: list[str]) -> None:
    models = ROOT / "src" / "kvbench" / "models"
    files = (file for file in models.glob("*/**/*") if file.is_file() and file.suffix != ".pyc")
    want = {f"kvbench/models/{file.relative_to(models)}" for file in files}
    assert {*want, "kvbench/py.typed", "kvbench/conf/__init__.py", "hydra_plugins/kvbench_sweeper/sweeper.py"} <= set(
        wheel
    )
    assert {name.rpartition("/")[2] for name in wheel if "/licenses/" in name} == {"LICENSE", "NOTICE"}
