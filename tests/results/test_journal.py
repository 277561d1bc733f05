"""A journal keeps every record whose line was ended, and is written by one process at a time."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from kvbench.results.journal import Journal


def rows_of(path: Path) -> list[dict[str, object]]:
    """Return what a journal that is opened finds."""
    with Journal(path) as journal:
        return journal.rows


def test_records_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    every = [{"number": n, "answer": "ä\n"} for n in range(6)]
    for number in range(3):
        with Journal(path) as journal:
            assert journal.rows == every[: 2 * number]
            journal.add([every[2 * number : 2 * number + 1], every[2 * number + 1 : 2 * number + 2]])
    assert rows_of(path) == every
    assert len(path.read_text().splitlines()) == 6


@pytest.mark.parametrize("cut", [1, 5, 24, 30])
def test_a_line_that_was_cut_is_as_if_it_had_never_been(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.add([[{"number": 0}], [{"number": 1, "turn": 0}, {"number": 1, "turn": 1, "answer": "long enough"}]])
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert journal.rows == [{"number": 0}]
        journal.add([[{"number": 1}]])
    assert rows_of(path) == [{"number": 0}, {"number": 1}]


def _write(path: Path) -> None:
    with Journal(path) as journal:
        journal.add([[{"number": len(journal.rows)}]])


def test_who_comes_second_waits_and_finds_what_the_first_wrote(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.add([[{"number": 0}]])
        child = multiprocessing.get_context("spawn").Process(target=_write, args=(path,))
        child.start()
        child.join(3)
        assert child.is_alive()
        assert len(path.read_bytes().splitlines()) == 1
    child.join(60)
    assert child.exitcode == 0
    assert rows_of(path) == [{"number": 0}, {"number": 1}]
