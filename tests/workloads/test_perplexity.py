"""The text of workload=perplexity: from a file, from the hub at one commit, or embedded."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvbench.configuration import check, compose
from kvbench.workloads import source
from kvbench.workloads.perplexity import DATASETS, Perplexity
from kvbench.workloads.source import TokenSource, read_text

LINE = ["workload=perplexity"]


def workload(*overrides: str) -> Perplexity:
    """Return the workload of a command line."""
    made = check(compose([*LINE, *overrides])).workload
    assert isinstance(made, Perplexity)
    return made


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data set of three texts, one of them missing."""
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"title": ["a", "b", "c"], "text": ["one\n", None, "three"]}), path)
    return path


def test_windows_are_prompt_and_continuation_spread_over_the_text() -> None:
    text = TokenSource(prefix=(1,), text=tuple(range(10, 110)), vocabulary=200, seed=0, name="a text", tasks=None)
    made = workload("workload.prompt_tokens=8", "workload.new_tokens=4", "workload.windows=3", "workload.batch_size=2")
    windows = made.scored(text)
    assert [len(window) for window in windows] == [12, 12, 12]
    assert [window[:2] for window in windows] == [[1, 10], [1, 54], [1, 99]]
    (run,) = made.runs()
    assert made.ids(text, run) == [windows[0], windows[2]]


def test_rows_of_a_parquet_file_stand_an_empty_line_apart(rows: Path) -> None:
    assert read_text(str(rows)) == "one\n\n\n\n\nthree"
    assert workload(f"workload.path={rows}").text_path == str(rows)


def test_a_long_parquet_file_is_read_as_far_as_anybody_scores(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_MOST_CHARACTERS", 10)
    assert read_text(str(rows)) == "one\n\n\n\n\nth"


def test_a_data_set_is_asked_for_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def fetched(*names: str) -> Path:
        asked.append(names)
        return Path("somewhere.parquet")

    monkeypatch.setattr("kvbench.workloads.perplexity.hub_file", fetched)
    assert workload("workload.dataset=pg19").text_path == "somewhere.parquet"
    own = ["workload.dataset=me/texts", "workload.revision=abc", "workload.file=a/b.txt"]
    assert workload(*own).text_path == "somewhere.parquet"
    assert workload().text_path == ""
    assert asked == [DATASETS["pg19"], ("me/texts", "abc", "a/b.txt")]
    assert all(len(revision) == 40 for _, revision, _ in DATASETS.values())


def test_a_data_set_in_the_local_cache_is_read_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Path
) -> None:
    name, revision, file = DATASETS["wikitext2"]
    place = tmp_path / f"datasets--{name.replace('/', '--')}" / "snapshots" / revision / file
    place.parent.mkdir(parents=True)
    place.write_bytes(rows.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_text(workload("workload.dataset=wikitext2").text_path).startswith("one")
    with pytest.raises(ValueError, match=r"data/test-00000.*emozilla/pg19.*workload\.path="):
        workload("workload.dataset=pg19").text_path  # noqa: B018


def no_text(folder: Path) -> str:
    """Write a table without texts and return its name."""
    pq.write_table(pa.table({"title": ["a"]}), folder / "other.parquet")
    return str(folder / "other.parquet")


def no_table(folder: Path) -> str:
    """Write a file that only says it is a table."""
    (folder / "no.parquet").write_text("text")
    return str(folder / "no.parquet")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workload.dataset=c4"], r"workload\.dataset must be held_out, wikitext2, pg19 or owner/name; got 'c4'"),
        (["workload.dataset=a/b"], r"workload\.dataset=a/b needs workload\.revision=<commit> and workload\.file="),
        (["workload.dataset=a/b", "workload.file=x.txt"], r"needs workload\.revision=<commit>"),
        (["workload.revision=abc"], r"workload\.dataset=held_out has its own"),
        (["workload.new_tokens=1"], r"workload\.new_tokens must be at least 2"),
        (["workload.windows=0"], r"workload\.windows must be at least 1"),
        (["workload.path=nowhere.txt"], r"workload\.path=nowhere\.txt is no file"),
    ],
)
def test_what_cannot_be_read_names_its_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workload(*overrides)


def test_files_without_texts_say_what_they_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no column 'text'; it has title"):
        workload(f"workload.path={no_text(tmp_path)}")
    with pytest.raises(ValueError, match="is no parquet file"):
        workload(f"workload.path={no_table(tmp_path)}")
