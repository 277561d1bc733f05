"""What was compacted reads as before, whoever is killed meanwhile, and counts as finished."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvbench.cli import main
from kvbench.results import compact as module
from kvbench.results.compact import compact
from kvbench.results.folder import Draft, finished, open_draft
from kvbench.results.load import load
from tests.mutants import results_compact as mutants
from tests.results.factory import baseline, failed, row, steps, write

Compact = Callable[[Path], object]
PARTS: tuple[dict[str, bool], ...] = ({}, {"steps": True}, {"requests": True}, {"samples": True})
SAMPLE = {"arm": "strategy", "task": "t", "number": 0, "turn": 0, "answer": "yes", "score": 1.0}
COUNTS = dict.fromkeys(("context_tokens", "question_tokens", "answer_tokens"), 3)


def tree(runs: Path, first: int = 0) -> None:
    """Write two sweeps that share the names of their runs."""
    for number in range(first, first + 2):
        stamp = f"2026-01-0{number + 1}"
        timed = [*steps([[3.0 + number, 1.0]]), *steps([[2.0]], arm="baseline")]
        again = steps([[2.0]], arm="baseline_again")
        rows = [row("h2o", created_at=stamp, seed=number), baseline(created_at=stamp, seed=number)]
        write(runs, f"r{number}", rows, [*timed, *again])
        with open_draft(runs, sweep="survey", run_id=f"r{number}", force=False) as draft:
            draft.write_text("texts.json", f'"{number}"')
            lost = [failed("tova", "timeout", "600 s", created_at=stamp)]
            done = draft.finish(lost, steps([[5.0]]), samples=[{**SAMPLE, **COUNTS, "question_tokens": number}])
        (done.folder / "wandb").mkdir()
        (done.folder / "wandb" / "steps.parquet").write_text("not ours")


def read(runs: Path) -> list[pd.DataFrame]:
    """Return all that a tree says; steps come run by run, in no order of runs."""
    rows, *parts = (load(runs, **part) for part in PARTS)
    by_run = [part.sort_values(["sweep", "run_id"], kind="stable", ignore_index=True) for part in parts]
    return [rows, *by_run]


def check_same(runs: Path, before: list[pd.DataFrame]) -> None:
    """Fail unless a tree says what it said."""
    for old, new in zip(before, read(runs), strict=True):
        pd.testing.assert_frame_equal(old, new)


def check_one_bundle(runs: Path) -> None:
    """Fail unless each sweep is one bundle and nothing else."""
    for sweep in ("adhoc", "survey"):
        (bundle,) = (runs / sweep).iterdir()
        assert bundle.name.startswith("compact-")


def test_what_was_compacted_reads_as_before_and_takes_more(tmp_path: Path) -> None:
    tree(tmp_path)
    before = read(tmp_path)
    assert [(done.num_runs, done.num_new) for done in compact(tmp_path)] == [(2, 2), (2, 2)]
    check_same(tmp_path, before)
    check_one_bundle(tmp_path)
    assert compact(tmp_path) == []
    tree(tmp_path, first=2)
    before = read(tmp_path)
    assert len(before[0]) == 12
    assert [(done.num_runs, done.num_new) for done in compact(tmp_path)] == [(4, 2), (4, 2)]
    check_same(tmp_path, before)
    check_one_bundle(tmp_path)


def test_a_compacted_run_is_finished_and_keeps_its_name(tmp_path: Path) -> None:
    tree(tmp_path)
    before = load(tmp_path / "adhoc" / "r1")
    compact(tmp_path / "adhoc")
    folder = finished(tmp_path, sweep="adhoc", run_id="r1")
    assert folder == tmp_path / "adhoc" / "r1"
    pd.testing.assert_frame_equal(load(folder), before)
    assert load(folder, steps=True)["wall_ns"].tolist() == [4_000_000, 1_000_000, 2_000_000, 2_000_000]
    assert finished(tmp_path, sweep="adhoc", run_id="r2") is None
    again = write(tmp_path, "r1", [row("h2o")])
    assert (again.is_new, again.folder) == (False, folder)
    assert write(tmp_path, "r1", [row("h2o")], force=True).run_id == "r1-2"
    assert len(load(tmp_path / "adhoc")) == 5


def test_files_that_are_no_tables_are_kept_in_an_archive(tmp_path: Path) -> None:
    for first in (0, 2):
        tree(tmp_path, first)
        compact(tmp_path)
    (archive,) = tmp_path.glob("survey/compact-*/files.zip")
    with zipfile.ZipFile(archive) as files:
        kept = {name: files.read(name) for name in files.namelist()}
    names = {f"r{number}/{name}" for number in range(4) for name in ("texts.json", "wandb/steps.parquet")}
    assert set(kept) == names
    assert kept["r3/texts.json"] == b'"3"'


class Killed(BaseException):
    """Stands for the end of the process: nothing after it happens."""


def die_at(moment: int, patch: pytest.MonkeyPatch) -> None:
    """End this process, as far as files know, before the given one of its acts on them."""
    left = iter(range(moment))

    def watched(act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*arguments: Any, **settings: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return act(*arguments, **settings)

        return acted

    def remove(folder: Path, **_: object) -> None:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()

    patch.setattr(os, "getpid", lambda: 2**22 + 1)  # above the largest process number of Linux
    patch.setattr(shutil, "rmtree", remove)
    patch.setattr(pq, "write_table", watched(pq.write_table))
    for name in ("rename", "unlink", "rmdir", "mkdir"):
        patch.setattr(Path, name, watched(getattr(Path, name)))


def check_nothing_is_lost(doing: Compact, place: Path) -> None:
    """Killed at any moment, what is there reads as before, and the next to compact ends what was begun."""
    for name in ("r0", "r1"):
        write(place / "whole", name, [row("h2o"), baseline()], steps([[3.0, 1.0]]))
    before = load(place / "whole", steps=True)
    for moment in range(100):
        runs = Path(shutil.copytree(place / "whole", place / str(moment)))
        is_killed = False
        with pytest.MonkeyPatch.context() as patch:
            die_at(moment, patch)
            try:
                doing(runs)
            except Killed:
                is_killed = True
        assert finished(runs, sweep="adhoc", run_id="r1") == runs / "adhoc" / "r1"
        pd.testing.assert_frame_equal(load(runs, steps=True), before)
        doing(runs)
        pd.testing.assert_frame_equal(load(runs, steps=True), before)
        (bundle,) = (runs / "adhoc").iterdir()
        assert bundle.name.startswith("compact-")
        if not is_killed:
            break
    assert moment > 15


def test_whoever_is_killed_loses_nothing(tmp_path: Path) -> None:
    check_nothing_is_lost(compact, tmp_path)


@pytest.mark.parametrize("mutant", mutants.HASTY)
def test_oracle_catches_who_removes_too_early_or_too_little(
    mutant: mutants.Break, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, OSError)):
        check_nothing_is_lost(compact, tmp_path)


def test_a_run_with_another_name_stays_where_it_is(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "adhoc" / "r1").rename(tmp_path / "adhoc" / "mine")
    before = read(tmp_path)
    compact(tmp_path)
    check_same(tmp_path, before)
    assert (tmp_path / "adhoc" / "mine").is_dir()


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    tree(tmp_path)
    before = read(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", fails)
        with pytest.raises(OSError, match=r"No space left on device.*finished runs are untouched"):
            compact(tmp_path)
    check_same(tmp_path, before)
    assert not list(tmp_path.glob("*/.draft-*"))


@pytest.mark.parametrize(
    ("place", "message"), [("adhoc/r0", "r0 is a run; give the folder of its sweep"), ("none", "no finished run below")]
)
def test_what_cannot_be_compacted_says_why(place: str, message: str, tmp_path: Path) -> None:
    tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        compact(tmp_path / place)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path)
    assert main(["compact", str(tmp_path / "adhoc")]) == 0
    (bundle,) = (tmp_path / "adhoc").iterdir()
    assert capsys.readouterr().out == f"2 runs in {bundle}, 2 of them new there\n"
    assert main(["compact", str(tmp_path / "adhoc")]) == 0
    assert capsys.readouterr().out == f"nothing new below {tmp_path / 'adhoc'}\n"


def test_whoever_was_measuring_finds_the_run_of_the_first(tmp_path: Path) -> None:
    late = Draft(tmp_path, sweep="adhoc", run_id="r0", force=False)
    tree(tmp_path)
    compact(tmp_path)
    assert late.folder.is_dir()  # of a living process
    assert not late.finish([row("h2o")], []).is_new
    late.drop()
