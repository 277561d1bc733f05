"""What the README has people write is run as it stands there."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvbench import runner
from kvbench.cache.views import PromptView
from kvbench.cli.run import main
from kvbench.configuration import Checked
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.budget.base import Uniform
from tests.support.checks import uniform
from tests.support.drive import drive
from tests.support.models import ids, model

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FILES = {"python": "loud_values.py", "yaml": "mine/strategy/loud_values.yaml"}
TOKENS, KEPT, RECENT = 60, 20, 16


def block(kind: str) -> str:
    """Return the only block of the README in a language."""
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CacheStrategy]:
    """Return what the README's command runs, where its files are what the README says."""
    for kind, name in FILES.items():
        assert f"`{name}`" in README
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(block(kind), encoding="utf-8")
    asked: list[CacheStrategy] = []

    def run(config: object, checked: Checked, **others: Any) -> None:
        asked.append(checked.strategy)
        raise OSError("nothing is measured here")

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    python, script, *line = shlex.split(block("sh"))
    assert (python, script) == ("python", "run.py")
    main(line)
    return asked


def test_the_readmes_method_keeps_entries_with_large_values(
    composed: list[CacheStrategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_random, mine = composed
    assert type(at_random.scorer).__name__ == "RandomScore"
    assert isinstance(mine.budget, Uniform)
    values: list[Tensor] = []
    score = type(mine.scorer).prompt

    def watched(scorer: Any, view: PromptView) -> Tensor:
        values.append(view.values)
        return score(scorer, view)

    monkeypatch.setattr(type(mine.scorer), "prompt", watched)
    limited = replace(mine, budget=replace(mine.budget, unit="tokens", amount=KEPT))
    held = drive(model("llama_gqa"), limited, ids(0, 1, TOKENS + 1), uniform(prompt=TOKENS, new=1)).held[0]
    recent = list(range(TOKENS - RECENT, TOKENS))
    for stored, value in zip(held, values, strict=True):
        size = torch.linalg.vector_norm(value[0, :, : TOKENS - RECENT], dim=-1)
        loud = size.topk(KEPT - RECENT, dim=-1).indices.tolist()
        assert [sorted(row) for row in stored[0].tolist()] == [sorted(row + recent) for row in loud]
