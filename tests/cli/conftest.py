"""A runner that measures nothing and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig

from kvbench import runner
from kvbench.configuration import Checked
from kvbench.results import table
from kvbench.runner import Names, Progress, Result


@dataclass
class FakeRunner:
    """Stands in for `kvbench.runner.run` and for the table."""

    asked: list[tuple[Checked, Names]] = field(default_factory=list)
    shown: list[pd.DataFrame] = field(default_factory=list)
    refuse: Callable[[Checked], Exception | None] = lambda checked: None
    status: str = "ok"
    is_new: bool = True

    def run(self, config: DictConfig, checked: Checked, *, names: Names, progress: Progress) -> Result:
        self.asked.append((checked, names))
        progress("decode", 0.5)
        error = self.refuse(checked)
        if error is not None:
            raise error
        rows = pd.DataFrame({"arm": ["strategy"], "strategy": [names.strategy], "status": [self.status]})
        return Result(rows=rows, folder=Path(checked.runs) / checked.sweep / names.strategy, is_new=self.is_new)

    def print_table(self, frame: pd.DataFrame, console: object, *, path: Path | None = None) -> None:
        self.shown.append(frame)

    @property
    def strategies(self) -> list[str]:
        return [names.strategy for _, names in self.asked]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRunner:
    """Replace the runner and stand in an empty folder."""
    fake = FakeRunner()
    monkeypatch.setattr(runner, "run", fake.run)
    monkeypatch.setattr(table, "print_table", fake.print_table)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return fake


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of configurations outside the repository: a small model, and a strategy from a plugin."""
    folder = tmp_path_factory.mktemp("out side")
    (folder / "model").mkdir()
    (folder / "model" / "mini.yaml").write_text(MINI, encoding="utf-8")
    (folder / "strategy" / "codec").mkdir(parents=True)
    (folder / "strategy" / "codec" / "theirs.yaml").write_text("_target_: tests.cli.plugin.Theirs\n", encoding="utf-8")
    return folder


MINI = """\
# Two layers of random weights.
_target_: kvbench.models.spec.ModelSpec
name: mini
path: ""
weights: random
hub_id: ""
revision: ""
dtype: float32
device: cpu
device_map: none
architecture: {model_type: llama, vocab_size: 64, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2,
               num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16, max_position_embeddings: 256}
matched: {mha: "", mamba: "", rwkv: ""}
"""
