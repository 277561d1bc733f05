"""What lies beside kvbench is part of what a run is, where the run uses it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvbench.configuration import ConfigError, check, compose
from kvbench.configuration.plugins import places, plugin_hash
from kvbench.measure.environment import source_hash
from kvbench.runner import Names, identify, job_of
from tests.mutants import configuration as mutants

SCORER = """
from dataclasses import dataclass

from torch import Tensor

from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class Loud(ScorerDefaults):
    def prompt(self, view: PromptView) -> Tensor:
        return view.values.norm(dim=-1)
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return what writes a module of one's own."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        source_hash.cache_clear()  # a process reads sources once

    return write


def node(*targets: str) -> dict[str, Any]:
    """Return a configuration that allows two packages and uses some classes."""
    parts = [{"_target_": target} for target in targets]
    return {"plugins": ["loud_one", "pack_of"], "strategy": {"_target_": "kvbench.Any", "parts": parts}}


def check_hash(hashing: Callable[[Mapping[str, Any]], str], write: Callable[[str, str], None]) -> None:
    """Fail unless a configuration is known by the text of what it uses, and by nothing else."""
    write("loud_one.py", "a = 1")
    write("pack_of/__init__.py", "")
    write("pack_of/inner.py", "b = 1")
    asked = (node(), node("loud_one.Loud"), node("pack_of.inner.Part"), node("loud_one.Loud", "pack_of.inner.Part"))
    before = [hashing(one) for one in asked]
    assert before[0] == ""
    assert len(set(before)) == 4
    write("loud_one.py", "a = 2")
    after = [hashing(one) for one in asked]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True, False]
    write("pack_of/inner.py", "b = 2")
    assert hashing(asked[2]) != after[2]
    assert hashing(asked[1]) == after[1]


def test_a_run_is_known_by_the_text_of_the_packages_it_uses(written: Callable[[str, str], None]) -> None:
    check_hash(plugin_hash, written)


@pytest.mark.parametrize("mutant", mutants.PLUGIN_HASHES)
def test_the_check_catches(mutant: Callable[[Mapping[str, Any]], str], written: Callable[[str, str], None]) -> None:
    with pytest.raises(AssertionError):
        check_hash(mutant, written)


def test_a_class_that_was_edited_is_another_run(written: Callable[[str, str], None]) -> None:
    written("loud_two.py", SCORER)
    names = Names(strategy="mine", model="tiny", engine="eager", workload="decode", overrides="")
    found = []
    for text in (SCORER, SCORER.replace("norm(", "abs().amax("), SCORER):
        written("loud_two.py", text)
        config = compose(["strategy=snapkv", "strategy.selector.num_recent=8", "plugins=[loud_two]"])
        config.strategy.scorer = {"_target_": "loud_two.Loud"}
        row = identify(config, job_of(check(config)), names)
        found.append((row["run_id"], row["plugin_hash"]))
    assert found[0] == found[2]
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_a_package_that_does_not_exist_is_named() -> None:
    assert places("no_such_package") == places("no_such.package") == []
    with pytest.raises(ConfigError, match=re.escape("plugins: there is no package or module 'no_such_package' in ")):
        check(compose(["plugins=[no_such_package]"]))
