"""A page shows every row, needs nothing beside itself, and takes nothing that it is told for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from kvbench.cli import main
from kvbench.plots import memory_against_context
from kvbench.report.figures import Picture, html_of
from kvbench.report.page import page, write
from kvbench.results.load import load
from tests.mutants import report as mutants
from tests.plots.drawing import tree
from tests.report.reading import read
from tests.results.factory import baseline, failed, row
from tests.results.factory import write as write_run

EVIL = "<script>alert('&lt;')</script>"
REASON = 'a <b>bold</b> reason & "more" of it, which is long enough to be a paragraph of its own'


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two strategies at two lengths, two runs that ended early, one of random weights, one that asked."""
    folder = tmp_path_factory.mktemp("runs")
    tree(folder)
    dirty: dict[str, object] = {"git_commit": "abcdef0123456789", "git_dirty": True, "source_hash": "other"}
    write_run(folder, "evil", [row(EVIL, overrides="strategy=x a=<i>", **dirty), baseline()], sweep="nasty")
    write_run(folder, "late", [failed("h2o", "out_of_memory", REASON)], sweep="nasty")
    write_run(folder, "gone", [failed("vllm", "unavailable", "not installed", prompt_tokens=512)], sweep="nasty")
    write_run(folder, "asked", [row("snapkv", score=0.5, score_delta=-0.1, asked_samples=8), baseline(score=0.6)])
    return folder


@pytest.fixture(scope="module")
def text(runs: Path) -> str:
    return "\n".join(page(load(runs), load(runs, steps=True), title="runs & <more>"))


def check_page(text: str, frame: pd.DataFrame) -> None:
    """Well formed, every run of the frame in it twice, nothing from elsewhere, no markup but its own."""
    found = read(text)
    names = [said["id"] for _, said in found.tags if "id" in said]
    assert len(names) == len(set(names))
    assert {said["href"] for tag, said in found.tags if tag == "a"} == {f"#{name}" for name in names if "-" not in name}
    assert all(said["src"].startswith("data:image/svg+xml;base64,") for _, said in found.tags if "src" in said)
    assert not re.search(r"https?:|@import|url\(|//[a-z]", text.replace(" // what says nothing", ""))
    assert {tag for tag, _ in found.tags} <= mutants.TAGS
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not [name for _, said in found.tags for name in said if name.startswith("on") or name == "style"]
    told = {said.get("content", "") for tag, said in found.tags if tag == "meta"}
    for part, said in found.texts.items():
        digest = base64.b64encode(hashlib.sha256(said.encode()).digest()).decode()
        assert part == "title" or any(f"{part}-src 'sha256-{digest}'" in content for content in told)
    ours = frame[frame["arm"] == "strategy"]
    *tables, origin = found.tables
    assert sorted(line[2].text for line in origin[1:]) == sorted(ours["run_id"])
    rows = [line for table in tables for line in table[1:]]
    first = {id(table): [cell.text for cell in table[0]] for table in tables}
    status = [line[1].text for table in tables for line in table[1:] if first[id(table)][1] == "status"]
    assert not Counter(ours["status"].str.replace("_", " ")) - Counter(status)
    check_numbers([cell for line in rows for cell in line])


def check_numbers(cells: list[object]) -> None:
    """What a cell sorts by is the number that stands in it."""
    seen = 0
    for cell in cells:
        value = cell.said.get("data-value")  # type: ignore[attr-defined]
        if value is not None:
            assert float(value) == float(re.sub(r"[^-\d.,].*|[\[,]", "", cell.text.lstrip("[+")) or "nan")  # type: ignore[attr-defined]
            seen += 1
    assert seen > 20


def test_the_page_shows_every_row_and_needs_nothing_else(text: str, runs: Path) -> None:
    check_page(text, load(runs))


@pytest.mark.parametrize("mutant", mutants.PAGES)
def test_oracle_catches_another_page(mutant: Callable[[str], str], text: str, runs: Path) -> None:
    changed = mutant(text)
    assert changed != text
    with pytest.raises(AssertionError):
        check_page(changed, load(runs))


def test_what_ended_early_says_why_and_what_is_told_stays_text(text: str) -> None:
    found = read(text)
    cells = [cell.text for table in found.tables for line in table for cell in line]
    assert REASON in cells
    assert f"{EVIL} 25%" in cells
    assert "python run.py strategy=x a=<i>" in cells
    assert found.texts["title"] == "kvbench: runs & <more>"
    assert "6 runs: 4 ok, 1 out of memory, 1 unavailable." in found.text
    assert "Made with changes that no commit has, at abcdef012345." in found.text
    assert "2 versions of the sources made these" in found.text


def test_numbers_have_their_units_in_the_heading_and_sort_as_numbers(text: str) -> None:
    heads = {cell.text: cell for table in read(text).tables for cell in table[0]}
    assert {"KV MiB", "TTFT ms", "TPOT p50 ms", "loss nats", "recall %", "score %", "over full points"} <= set(heads)
    assert heads["KV MiB"].said == {"scope": "col", "aria-sort": "none", "class": "number"}
    assert "class" not in heads["verdict"].said


def test_what_the_table_says_of_its_numbers_stands_below_it(text: str) -> None:
    said = read(text).text
    assert "nats per token above the full cache's loss" in said
    assert f"h2o 25%: {REASON}" in said
    assert "embedded: a small model trained by kvbench and shipped with it" in said


def test_figures_say_what_they_show_on_what_it_was_measured(text: str) -> None:
    found = read(text)
    told = [said["alt"] for tag, said in found.tags if tag == "img"]
    for title in (
        "Loss above the full cache's against the bytes of the cache: ",
        "A decode step over the full cache's: ",
        "Time of a decode step against context: baseline, h2o 25%.",
        "Bytes of the cache against the length of the prompt: ",
    ):
        assert any(one.startswith(title) for one in told), title
    assert "against the bytes of the cache. AMD EPYC, commit abcdef012345 with changes." in found.text
    svg = base64.b64decode(next(said["src"] for tag, said in found.tags if tag == "img").partition(",")[2])
    assert svg.startswith(b"<?xml")
    assert b"<script" not in svg


def test_the_configuration_of_each_run_is_in_it(text: str, runs: Path) -> None:
    config = json.dumps(json.loads(load(runs)["config_json"].iloc[0]), indent=1)
    assert config in read(text).text


def test_what_cannot_be_drawn_says_why(runs: Path) -> None:
    frame = load(runs)
    two = pd.concat([frame, frame.assign(device_name="<H100>")])
    picture = Picture(name="bytes", title="Bytes", draw=lambda ax: memory_against_context(two, ax), height=3.0)
    said = html_of(picture, "")
    assert said.startswith(
        '<p class="mind">Bytes is not drawn: one device_name to a picture; got AMD EPYC, &lt;H100&gt;'
    )


def test_the_command_writes_the_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    assert main(["report", str(runs / "nasty"), "-o", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"4 rows in {file}, ")
    check_page(file.read_text(encoding="utf-8"), load(runs / "nasty"))
    with pytest.raises(ValueError, match=r"cannot write .*no/page.html: No such file.*\. Give another file with -o\."):
        write(runs / "nasty", tmp_path / "no" / "page.html")
