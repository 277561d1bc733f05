"""A file of the hub is found where the hub keeps it, and what is not there is named."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError

from kvbench.workloads.hub import hub_file

REVISION = "0" * 40


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of the hub's cache of one data set, where nothing is fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "datasets--someone--texts" / "snapshots"


def test_a_file_that_was_fetched_is_found_offline(offline: Path) -> None:
    file = offline / REVISION / "data" / "rows.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}", encoding="utf-8")
    assert hub_file("someone/texts", REVISION, "data/rows.jsonl").read_text(encoding="utf-8") == "{}"


def test_a_file_that_is_missing_is_named_with_the_key(offline: Path) -> None:
    (offline / ("1" * 40)).mkdir(parents=True)
    (offline / ("1" * 40) / "rows.jsonl").write_text("of another revision", encoding="utf-8")
    message = (
        rf"rows\.jsonl of the hub's data set someone/texts at revision {REVISION} is not in the local cache and cannot "
        rf"be fetched \(.*\)\. .*`hf download someone/texts rows\.jsonl --repo-type dataset --revision {REVISION}` "
        r"brings it; or set workload\.path=<the file, or a folder"
    )
    with pytest.raises(ValueError, match=message):
        hub_file("someone/texts", REVISION, "rows.jsonl")


@pytest.mark.parametrize("error", [OSError, ConnectionError, EntryNotFoundError])
def test_a_hub_that_fails_is_a_file_that_is_missing(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **kwargs: object) -> str:
        raise error("no")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing)
    with pytest.raises(ValueError, match=rf"cannot be fetched \({error.__name__}\)"):
        hub_file("someone/texts", REVISION, "rows.jsonl")
