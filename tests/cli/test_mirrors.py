"""`kvbench wandb sync`: every offline mirror of a tree is handed to wandb, in words that it knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvbench.cli import main

MANY = 230


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree of runs with mirrors, and with what looks like one."""
    for number in range(MANY):
        place = tmp_path / "sweep" / f"r{number:03}" / "wandb" / f"offline-run-20261123_{number:06}-r{number:03}"
        place.mkdir(parents=True)
        (place / f"run-r{number:03}.wandb").touch()
    (tmp_path / "sweep" / "r000" / "wandb" / "run-20261123_000000-online").mkdir()
    (tmp_path / "sweep" / "r001" / "wandb" / "offline-run-20261123_000001-empty").mkdir()
    (tmp_path / "sweep" / "mine" / "offline-run-notes").mkdir(parents=True)
    (tmp_path / "sweep" / "mine" / "offline-run-notes" / "x.wandb").touch()
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Send nothing, and note what wandb was asked; of the last runs it fails."""
    seen: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> SimpleNamespace:
        seen.append(command)
        return SimpleNamespace(returncode=int(len(seen) == 3))

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_every_mirror_is_sent_once_and_a_failure_is_told(
    tree: Path, asked: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["wandb", "sync", str(tree), "--dry-run", "--project", "p", "--entity", "us"]) == 1
    assert capsys.readouterr().out == f"offline mirrors below {tree}: {MANY}\n"
    head = [sys.executable, "-m", "wandb", "sync", "--yes", "--dry-run", "--project", "p", "--entity", "us"]
    assert [command[: len(head)] for command in asked] == [head] * 3
    sent = [Path(folder).name for command in asked for folder in command[len(head) :]]
    assert sent == [f"offline-run-20261123_{number:06}-r{number:03}" for number in range(MANY)]


def test_one_run_alone_can_be_sent(tree: Path, asked: list[list[str]]) -> None:
    assert main(["wandb", "sync", str(tree / "sweep" / "r007")]) == 0
    assert [Path(command[-1]).name for command in asked] == ["offline-run-20261123_000007-r007"]
    assert asked[0][3:5] == ["sync", "--yes"]


def test_a_tree_without_mirrors_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wandb", "sync", str(tmp_path)]) == 2
    assert f"no offline mirror below {tmp_path}: give the folder that runs= named" in capsys.readouterr().err


def test_wandb_knows_the_words_that_it_is_asked_with() -> None:
    from wandb.cli.cli import cli  # where wandb keeps its command line

    known = {option for parameter in cli.commands["sync"].params for option in parameter.opts}
    assert {"--yes", "--dry-run", "--project", "--entity"} <= known
