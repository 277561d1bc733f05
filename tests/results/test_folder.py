"""A run is there as a whole or not at all."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvbench.results import folder
from kvbench.results.folder import DAY_S, Draft, StorageError, finished, open_draft
from kvbench.results.load import load
from tests.mutants import results_folder as mutants
from tests.results.factory import baseline, row, steps, write

ROWS = [row("h2o"), baseline()]
STEPS = steps([[3.0, 1.0, 1.0]])


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


def draft_of(kind: type[Draft], runs: Path, *, force: bool = False) -> Draft:
    return kind(runs, sweep="adhoc", run_id="r0", force=force)


def files_below(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def test_a_finished_run_has_all_its_files(tmp_path: Path) -> None:
    with open_draft(tmp_path, sweep="adhoc", run_id="r0", force=False) as draft:
        draft.log("begun")
        draft.write_text(folder.CONFIG_FILE, "seed: 0\n")
        draft.write_json(folder.ENVIRONMENT_FILE, {"python": "3.11"})
        draft.write_json(folder.TEXTS_FILE, {"strategy": ["na\u00efve"]})
        done = draft.finish(ROWS, STEPS)
        draft.log("mirrored")
    assert (done.folder, done.run_id, done.is_new) == (tmp_path / "adhoc" / "r0", "r0", True)
    names = {"config.yaml", "env.json", "run.log", "run.parquet", "steps.parquet", "texts.json"}
    assert {path.name for path in done.folder.iterdir()} == names
    assert (done.folder / "run.log").read_text() == "begun\nmirrored\n"
    assert json.loads((done.folder / "texts.json").read_text("utf-8")) == {"strategy": ["na\u00efve"]}
    assert finished(tmp_path, sweep="adhoc", run_id="r0") == done.folder
    assert finished(tmp_path, sweep="other", run_id="r0") is None


def check_a_killed_run_is_no_run(kind: type[Draft], runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between its two tables, a run is neither finished nor loaded, and its name is free."""

    def die(table: object, path: Path) -> None:
        if path.name == folder.STEPS_FILE:
            raise Killed
        pq.write_table(table, path)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_write", die)
        with pytest.raises(Killed):
            draft_of(kind, runs).finish(ROWS, STEPS)
    assert finished(runs, sweep="adhoc", run_id="r0") is None
    assert draft_of(kind, runs).finish(ROWS, STEPS).is_new
    assert len(load(runs)) == 2


def test_a_killed_run_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_a_killed_run_is_no_run(Draft, tmp_path, monkeypatch)


def test_oracle_catches_a_run_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        check_a_killed_run_is_no_run(mutants.WrittenInPlace, tmp_path, monkeypatch)


def _die_while_renaming(runs: Path) -> None:
    Path.rename = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign,return-value]
    write(runs, "r0", ROWS, STEPS)


def test_a_process_killed_at_the_last_moment_leaves_nothing_that_counts(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_die_while_renaming, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "adhoc").iterdir()
    assert (left / "run.parquet").is_file()
    assert finished(tmp_path, sweep="adhoc", run_id="r0") is None
    with pytest.raises(ValueError, match="no finished run"):
        load(tmp_path)
    write(tmp_path, "r1", ROWS)
    assert [path.name for path in (tmp_path / "adhoc").iterdir()] == ["r1"]


def draft_and(act: Callable[[Draft], object], runs: Path, run_id: str = "r0") -> None:
    with open_draft(runs, sweep="adhoc", run_id=run_id, force=False) as draft:
        act(draft)


def interrupt(draft: Draft) -> None:
    draft.log("begun")
    raise KeyboardInterrupt


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        draft_and(interrupt, tmp_path)
    assert list((tmp_path / "adhoc").iterdir()) == []


def check_the_first_to_finish_wins(kind: type[Draft], runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that looked before either was there, the first stands, to the byte, and the second is told so."""
    first, second = draft_of(kind, runs), draft_of(kind, runs)
    second.write_text("config.yaml", "seed: 2\n")
    assert first.finish(ROWS, STEPS).is_new
    before = files_below(runs / "adhoc" / "r0")
    blind = iter([None])  # what the second saw when it looked
    with monkeypatch.context() as patch:
        patch.setattr(folder, "finished", lambda *a, **k: next(blind, runs / "adhoc" / "r0"))
        late = second.finish([row("snapkv"), baseline()], [])
    second.drop()
    assert (late.run_id, late.is_new, late.folder) == ("r0", False, runs / "adhoc" / "r0")
    assert files_below(runs / "adhoc" / "r0") == before
    assert [path.name for path in (runs / "adhoc").iterdir()] == ["r0"]


def test_the_first_to_finish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_the_first_to_finish_wins(Draft, tmp_path, monkeypatch)


@pytest.mark.parametrize("mutant", [mutants.Overwriting, mutants.Merging])
def test_oracle_catches_a_loser_that_writes(
    mutant: type[Draft], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError):
        check_the_first_to_finish_wins(mutant, tmp_path, monkeypatch)


def check_repeats_lie_side_by_side(kind: type[Draft], runs: Path) -> None:
    """Forced repeats begun together each get a number of their own, which their rows carry."""
    drafts = [draft_of(kind, runs, force=True) for _ in range(3)]
    names = [draft.finish(ROWS, STEPS).run_id for draft in drafts]
    assert names == ["r0", "r0-2", "r0-3"]
    for table in (load(runs), load(runs, steps=True)):
        assert sorted(table["run_id"].unique()) == ["r0", "r0-2", "r0-3"]
    for name in names:
        assert load(runs / "adhoc" / name)["run_id"].unique().tolist() == [name]


def test_forced_repeats_lie_side_by_side(tmp_path: Path) -> None:
    check_repeats_lie_side_by_side(Draft, tmp_path)


@pytest.mark.parametrize("mutant", [mutants.NumberedAtTheStart, mutants.NamedAfterTheFirst])
def test_oracle_catches_a_wrong_number(mutant: type[Draft], tmp_path: Path) -> None:
    with pytest.raises((AssertionError, StorageError)):
        check_repeats_lie_side_by_side(mutant, tmp_path)


def _finish_together(runs: Path, gate: Barrier) -> None:
    with open_draft(runs, sweep="adhoc", run_id="r0", force=True) as draft:
        gate.wait(60)
        draft.finish(ROWS, STEPS)


def test_processes_that_finish_together_all_find_a_place(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(4)
    children = [context.Process(target=_finish_together, args=(tmp_path, gate)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert sorted(load(tmp_path)["run_id"].unique()) == ["r0", "r0-2", "r0-3", "r0-4"]
    assert len(load(tmp_path)) == 8


def leftover(place: Path, host: str, pid: int, age_s: float) -> Path:
    draft = place / f".draft-{host}-{pid}-0a1b"
    draft.mkdir(parents=True)
    (draft / "run.log").write_text("begun\n")
    for path in (draft / "run.log", draft):
        os.utime(path, (time.time() - age_s,) * 2)
    return draft


def check_only_leftovers_go(kind: type[Draft], runs: Path) -> None:
    """What a process still writes stays, here and on other machines; what nobody writes any more goes."""
    here, dead = socket.gethostname(), 2**22 + 1  # above the largest process number of Linux
    place = runs / "adhoc"
    gone = [leftover(place, here, dead, 0), leftover(place, "far-away", 1, 1.1 * DAY_S)]
    kept = [leftover(place, here, os.getppid(), 60), leftover(place, "far-away", dead, 60)]
    strangers = [place / ".draft-of-a-letter", place / "notes"]
    for stranger in strangers:
        stranger.mkdir()
    draft_of(kind, runs).drop()
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept + strangers)


def test_only_leftovers_go(tmp_path: Path) -> None:
    check_only_leftovers_go(Draft, tmp_path)


@pytest.mark.parametrize("mutant", [mutants.Tidy, mutants.Untidy])
def test_oracle_catches_a_wrong_broom(mutant: type[Draft], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_only_leftovers_go(mutant, tmp_path)


def fails(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTS: list[Callable[[Draft], object]] = [
    lambda draft: draft.finish(ROWS, STEPS),
    lambda draft: draft.write_text("config.yaml", "seed: 0\n"),
    lambda draft: draft.log("begun"),
]


@pytest.mark.parametrize("act", ACTS)
def test_a_full_disk_says_so_and_loses_nothing_there(
    act: Callable[[Draft], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = write(tmp_path, "r0", ROWS, STEPS)
    before = files_below(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_write", fails)
        patch.setattr(folder, "append_log", fails)
        patch.setattr(Path, "write_text", fails)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            draft_and(act, tmp_path, "r1")
    assert str(caught.value) == (
        f"cannot write results below {tmp_path}: No space left on device. Make room or give access there, or choose "
        f"another place with runs=<folder>; finished runs are untouched."
    )
    assert files_below(tmp_path) == before
    assert load(done.folder)["run_id"].tolist() == ["r0", "r0"]


def finish_on_a_full_disk(draft: Draft) -> None:
    (draft.folder / folder.STEPS_FILE).symlink_to("/dev/full")
    draft.finish(ROWS, STEPS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_really_full_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"[Nn]o space left"):
        draft_and(finish_on_a_full_disk, tmp_path)
    assert finished(tmp_path, sweep="adhoc", run_id="r0") is None


@pytest.mark.parametrize("runs", ["file", "file/below"])
def test_a_place_that_is_no_folder_is_refused_before_anything_runs(runs: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write results below .*file.*runs=<folder>"):
        Draft(tmp_path / runs, sweep="adhoc", run_id="r0", force=False)


def test_a_place_without_access_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # whoever runs the tests may write anywhere

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"Permission denied.*give access.*runs=<folder>"):
        Draft(tmp_path, sweep="adhoc", run_id="r0", force=False)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_stranger_in_the_way_is_named_and_left_alone(kind: str, tmp_path: Path) -> None:
    way = tmp_path / "adhoc" / "r0"
    note = way / "note" if kind == "folder" else way
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    with pytest.raises(StorageError, match="r0 is in the way and is no finished run: move it, or set runs="):
        write(tmp_path, "r0", ROWS)
    assert note.read_text() == "mine"
    assert write(tmp_path, "r0", ROWS, force=True).run_id == "r0-2"


def test_a_finished_run_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        done = write(tmp_path, "r0", ROWS)
    finally:
        os.umask(before)
    assert done.folder.stat().st_mode & 0o777 == 0o755
