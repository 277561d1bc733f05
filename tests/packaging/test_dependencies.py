"""One list of dependencies, in pyproject.toml; constraints.txt pins it and environment.yml repeats nothing."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.mutants import packaging as mutants

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
EXTRAS = [
    Requirement(line)
    for name in ("quantized", "lm_eval", "joblib", "submitit", "ray", "accelerate")
    for line in PROJECT["optional-dependencies"][name]
]
IMPORTED_AS = {"hydra-core": "hydra"}
BROUGHT = {"triton", "lm_eval", "optuna"}  # by torch for CUDA and by extras, and asked for before they are imported


def pins(text: str) -> dict[str, Version]:
    """Return the versions that a constraints file fixes."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    split = [re.fullmatch(r"([A-Za-z0-9._-]+)==([^+]+)", line) for line in lines if line]
    assert all(split), "every line pins one package to one version that an index has"
    return {canonicalize_name(found[1]): Version(found[2]) for found in split if found}


def check_pins(text: str) -> None:
    """Fail unless everything needed is pinned to a version that pyproject.toml allows."""
    pinned = pins(text)
    for requirement in (*CORE, *DEV, *EXTRAS):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not pinned"
        assert pinned[name] in requirement.specifier, f"{name} {pinned[name]} is not {requirement.specifier}"
    assert pinned["torch"] == Version("2.13.0")
    assert pinned["transformers"] == Version("5.23.0")


def needed(requirements: list[Requirement]) -> set[str]:
    """Return what requirements install here, dependencies of dependencies included."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(line) for line in metadata.requires(requirement.name) or []]
    return found


def check_environment(text: str) -> None:
    """Fail unless conda is told the same as pip, and of Python what pyproject.toml allows."""
    said: Any = OmegaConf.to_container(OmegaConf.create(text))
    assert len(said["dependencies"]) == 3
    python, pip, rest = said["dependencies"]
    assert python.startswith("python=")
    assert Version(python.partition("=")[2]) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert pip == "pip"
    assert rest == {"pip": ["-c constraints.txt", "-e .[dev]"]}


def imports(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.py"):
        for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in statement.names)
            elif isinstance(statement, ast.ImportFrom):
                yield (statement.module or "").partition(".")[0]


CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
ENVIRONMENT = (ROOT / "environment.yml").read_text(encoding="utf-8")


def test_everything_needed_is_pinned_to_an_allowed_version() -> None:
    check_pins(CONSTRAINTS)


def test_nothing_is_pinned_that_is_not_needed() -> None:
    extra = {canonicalize_name(requirement.name) for requirement in EXTRAS}  # not installed here
    assert set(pins(CONSTRAINTS)) - needed([*CORE, *DEV]) == extra


def test_conda_installs_the_same() -> None:
    check_environment(ENVIRONMENT)


@pytest.mark.parametrize("broken", [mutants.other_torch, mutants.old_transformers, mutants.unpinned])
def test_the_check_of_pins_catches(broken: mutants.Break) -> None:
    with pytest.raises(AssertionError):
        check_pins(broken(CONSTRAINTS))


@pytest.mark.parametrize("broken", [mutants.own_list, mutants.without_constraints, mutants.old_python])
def test_the_check_of_the_environment_catches(broken: mutants.Break) -> None:
    with pytest.raises(AssertionError):
        check_environment(broken(ENVIRONMENT))


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    ours = {"kvbench", "hydra_plugins", "__future__", ""}
    outside = set(imports(ROOT / "src")) - ours - set(sys.stdlib_module_names)
    assert outside - BROUGHT == {IMPORTED_AS.get(needed.name, needed.name.replace("-", "_")) for needed in CORE}


def test_makefile_and_ci_exist_as_contributors_are_told() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("run", "test", "lint", "compat", "gpu-check", "docs", "figures"):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
    ci = ROOT / ".ci" / "run"
    assert ci.stat().st_mode & 0o111
    assert "exec make test" in ci.read_text(encoding="utf-8")
    oldest = re.search(r"^COMPAT_TRANSFORMERS = (.+)$", makefile, re.MULTILINE)
    transformers = next(requirement for requirement in CORE if requirement.name == "transformers")
    assert oldest
    assert f">={oldest[1].rpartition('.')[0]}" in str(transformers.specifier)
