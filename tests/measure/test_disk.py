"""A disk is written in order and read in no order, each part once while it is cold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kvbench.measure import disk
from kvbench.measure.disk import BLOCKS, REPEATS, measure_disk
from tests.mutants import measure_disk as mutants

KIB = 2**10
Span = tuple[int, int]  # offset, length


def spans(monkeypatch: pytest.MonkeyPatch, file: Path, *, forgets: bool) -> dict[str, list[Span]]:
    """Return what each way touched of a file, in order."""
    found: dict[str, list[Span]] = {}
    way = ""
    monkeypatch.setattr(disk, "dropped", lambda handle: forgets)
    write, read = os.pwrite, os.pread

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        found.setdefault(way, []).append((offset, len(data)))
        return write(handle, data, offset)

    def pread(handle: int, length: int, offset: int) -> bytes:
        found.setdefault(way, []).append((offset, length))
        return read(handle, length, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pread", pread)
    for name, operation in disk._ways(file, 4 * KIB, 64 * KIB):
        way = name
        for _ in range(REPEATS + 1):
            operation()
        way = "between"
    return found


def check_parts(touched: Callable[[], dict[str, list[Span]]]) -> None:
    """Each way touches every block of the file once; what is written lies in order, what is read does not."""
    found = touched()
    whole = [(offset, 4 * KIB) for offset in range(0, (REPEATS + 1) * 64 * KIB, 4 * KIB)]
    assert found["disk_write"] == whole
    for name in ("disk_read_cold", "disk_read_warm"):
        assert sorted(found[name]) == whole
        assert found[name] != whole


def test_every_part_is_touched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_parts(lambda: spans(monkeypatch, tmp_path / "data", forgets=True))


@pytest.mark.parametrize(("name", "mutant"), mutants.WAYS)
def test_oracle_catches_other_parts(name: str, mutant: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, name, mutant)
    with pytest.raises(AssertionError):
        check_parts(lambda: spans(monkeypatch, tmp_path / "data", forgets=True))


def test_a_file_that_is_not_forgotten_is_only_read_warm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = spans(monkeypatch, tmp_path / "data", forgets=False)
    assert found.keys() == {"disk_write", "between", "disk_read_warm"}
    assert found["between"] == found["disk_write"]  # read once, so that memory has it


def test_each_block_has_its_rows_and_nothing_is_left(tmp_path: Path) -> None:
    found = measure_disk(tmp_path / "new", 1, region_bytes=64 * KIB)
    names = {one.name for one in found}
    assert {f"{name}_{block}" for name in ("disk_write", "disk_read_warm") for block in BLOCKS} <= names
    assert {one.num_bytes for one in found} == {64 * KIB, 2**20}
    for one in found:
        assert 0 < one.low <= one.value <= one.high
    assert list((tmp_path / "new").iterdir()) == []


def test_what_memory_does_not_forget_is_not_cold() -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("no file system in memory here")
    file = shared / f"kvbench-{os.getpid()}"
    with disk._opened(file) as handle:
        try:
            os.pwrite(handle, b"kept", 0)
            assert not disk.dropped(handle)
        finally:
            file.unlink()
