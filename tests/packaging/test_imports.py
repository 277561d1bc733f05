"""Imports go one way. A part may import what stands beside it here and nothing else of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants import packaging as mutants

SOURCE = Path(__file__).parents[2] / "src" / "kvbench"
MAY_IMPORT = {
    "types": set[str](),
    "folders": set[str](),
    "calibrated": {"folders", "types"},
    "kernels": {"folders"},
    "measure": set[str](),
    "planning": set[str](),
    "results": set[str](),
    "cache": {"calibrated", "kernels", "types"},
    "strategies": {
        "cache",
        "calibrated",
        "folders",
        "models",
        "planning",
        "types",
    },  # models: for hooks
    "models": {"kernels", "types"},
    "workloads": {"folders", "types"},
    "engines": {"cache", "folders", "kernels", "models", "strategies", "types"},
    "quality": {"engines", "measure", "types", "workloads"},
    "plots": {"results"},
    "report": {"plots", "results"},
}
NEVER = {  # a method cannot time itself, results can be read anywhere, requests are data
    "results": {"torch", "transformers", "hydra"},
    "plots": {"torch", "transformers", "hydra"},
    "report": {"torch", "transformers", "hydra"},
    "strategies": {"hydra", "omegaconf", "wandb"},
    "cache": {"hydra", "omegaconf", "wandb"},
    "workloads": {"transformers", "hydra", "torch"},
    "kernels": {"transformers", "hydra"},
    "planning": {"torch", "transformers", "hydra"},
}


def imports(text: str) -> Iterator[str]:
    """Yield the modules that a text imports, anywhere in it."""
    for statement in ast.walk(ast.parse(text)):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module == "kvbench":
            yield from (f"kvbench.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield statement.module or ""


def check_imports(part: str, text: str) -> None:
    """Fail if a text of a part imports what it may not."""
    for module in imports(text):
        top, _, rest = module.partition(".")
        if top == "kvbench":
            assert rest.partition(".")[0] in MAY_IMPORT[part] | {part}, f"{part} imports {module}"
        assert top not in NEVER.get(part, set()), f"{part} imports {module}"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_it_may(part: str) -> None:
    files = [SOURCE / f"{part}.py"] if (SOURCE / f"{part}.py").is_file() else sorted((SOURCE / part).rglob("*.py"))
    assert files
    for file in files:
        check_imports(part, file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("part", "text"), mutants.FORBIDDEN_IMPORTS)
def test_the_check_of_imports_catches(part: str, text: str) -> None:
    with pytest.raises(AssertionError):
        check_imports(part, text)
