"""`kvbench list|table|compare|export|trace`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from kvbench.cli import main, trace
from kvbench.cli.catalogue import catalogue
from kvbench.cli.recommend import closed_form
from kvbench.configuration import compose, resolved
from kvbench.results.cells import plain
from kvbench.results.load import load
from tests.cli.conftest import FakeRunner

REAL = Path(__file__).parents[1] / "fixtures" / "runs"  # how it was made: tests/fixtures/README.md
HEAVY = ("torch", "hydra", "pandas", "matplotlib", "transformers", "pyarrow", "rich", "numpy")


def test_help_and_import_need_nothing_heavy() -> None:
    code = (
        (
            "import sys, kvbench.cli, kvbench\n"
            "try:\n    kvbench.cli.main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
            f"assert not {HEAVY!r} & sys.modules.keys(), sys.modules.keys()"
        )
        .replace("not (", "not set((")
        .replace(") &", ")) &")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = "run list table compare recommend report export trace doctor hardware plan engine"
    assert set(commands.split()) <= set(re.findall(r"\n    (\w+)\s", done.stdout))


def test_list_names_every_yaml_that_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    conf = Path(str(files("kvbench.conf"))).resolve()
    for file in set(conf.rglob("*/*.yaml")) - set((conf / "hydra").rglob("*.yaml")):  # which say how rows are chosen
        group = str(file.parent.relative_to(conf))
        block = out.partition(f"{group}=\n")[2].partition("\n\n")[0]
        assert f"\n  {file.stem} " in f"\n{block}", f"{group}={file.stem}"
    assert " H2O (arXiv:2306.14048): half recent tokens" in out


def test_list_can_be_asked_for_one_kind_and_for_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "strategy/scorer"]) == 0
    heading, first, *_ = capsys.readouterr().out.split("\n")
    assert heading == "strategy/scorer="
    assert first.split("  ")[1] == "attention_mass"
    assert "  Entries matter by all" in first
    assert main(["list", "engine", "--markdown"]) == 0
    assert "| `engine=eager` | Our own loop:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("list stratgy", "there is nothing called stratgy. Did you mean strategy"),
        ("table nowhere", "no folder nowhere"),
        ("recommend nowhere --memory 1GiB --max-loss 0 --context 9", "no folder nowhere"),
        ("recommend nowhere --memory 1 --max-loss 0 --context 9", "--memory= must be an amount above 0 with its unit"),
        ("recommend nowhere --memory 1GiB --max-loss 0 --context 0", "--context must be at least 1; got 0"),
        ("compare nowhere nowhere", "no folder nowhere"),
        ("export nowhere out.csv", "no folder nowhere"),
        ("trace strategy=h2oo", "Did you mean strategy=h2o?"),
    ],
)
def test_wrong_input_gives_one_message_and_status_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("kvbench: ")
    assert message in err


def test_overrides_may_come_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "smooth", "--samples", "1", "model=tinny"]) == 2
    assert "model=tinny" in capsys.readouterr().err
    for wrong in (["trace", "--layer", "1", "--lyer=2"], ["table", "--tasks", "runs", "model=tiny"]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert f"unrecognized arguments: {wrong[-1]}" in capsys.readouterr().err


def test_compare_exits_with_1_where_a_pair_is_above_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    slow, all_of_them = str(REAL / "adhoc-0430ffdc" / "a289ac48b792"), str(REAL)  # h2o at 1,024 tokens
    assert main(["compare", slow, all_of_them, "--fail-above", "1.05"]) == 1
    said = capsys.readouterr()
    assert (
        "h2o 25% over baseline: decode takes 1.081 times as long, [1.063, 1.090], above --fail-above 1.05" in said.err
    )
    assert "h2o 25% over h2o 25%" not in said.err
    assert "a takes longer" in said.out
    assert (
        main(["compare", slow, all_of_them, "--same-strategy", "--fail-above", "1.05", "--fail-loss-above", "0"]) == 0
    )
    assert "no pair of 2 is above --fail-above 1.05, --fail-loss-above 0\n" in capsys.readouterr().out
    assert main(["compare", slow, all_of_them]) == 0
    assert main(["compare", slow, all_of_them, "--fail-above", "nan"]) == 2


def test_recommend_says_what_fits_and_a_closed_form_says_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["recommend", str(REAL), "--memory", "100MiB", "--max-loss", "0.1", "--context"]
    assert main([*line, "1024"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("recommended  baseline: it needs 25.9 MiB of 100 MiB (measured at 1,024 tokens, batch 1)")
    assert "strategies have no row here, see kvbench list strategy" in " ".join(said.split())
    assert main([*line, "1024", "--memory", "1MiB"]) == 1
    assert capsys.readouterr().out.startswith("recommended  none of the 3 that were measured keeps to the limits")
    held = {row["prompt_tokens"]: row for row in plain(load(REAL)) if row["arm"] == "baseline"}
    assert closed_form(held[1024], 256, 1) == held[256]["kv_allocated_bytes"]
    assert closed_form(held[256], 1024, 1) == held[1024]["kv_allocated_bytes"]
    assert closed_form(held[256], 10**6, 1) == "the model reads at most 2,048 tokens"
    assert "another kvbench's" in str(closed_form({**held[256], "arm": "strategy"}, 512, 1))


def test_a_closed_form_knows_what_a_transform_stores_and_not_what_another_engine_does() -> None:
    told = {}
    for strategy, more in {"baseline": [], "gqa": ["strategy.transform.num_groups=2"], "transformers": []}.items():
        config = json.dumps(resolved(compose([f"strategy={strategy}", "model=tiny-mha", *more])))
        told[strategy] = closed_form({"arm": "strategy", "config_json": config, "new_tokens": 8}, 64, 1)
    full, grouped = told["baseline"], told["gqa"]
    assert isinstance(full, int)
    assert isinstance(grouped, int)
    assert grouped < 0.6 * full
    assert told["transformers"] == "it is another engine's cache, whose bytes are known where they were measured"


def test_run_is_the_command_line_of_run_py(fake: FakeRunner) -> None:
    assert main(["run", "strategy=h2o"]) == 0
    assert fake.strategies == ["h2o"]


HELD = (  # two steps, two layers, one head that holds all and two heads that hold different halves
    (torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[0, 1], [2, 3]]])),
    (torch.tensor([[[0, 1, 2, 3, 4]]]), torch.tensor([[[0, 1, -1], [2, 3, 4]]])),
)


def test_a_trace_becomes_one_row_per_entry() -> None:
    table = trace.table(HELD)
    assert len(table) == 4 + 4 + 5 + 5
    last = table[(table["step"] == 1) & (table["layer"] == 1)]
    assert list(zip(last["head"], last["position"], strict=True)) == [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)]


def test_a_drawing_shows_the_share_of_heads_that_hold_a_position() -> None:
    _, first, second = trace.drawn(trace.table(HELD), tokens=5, width=80)
    assert first == "layer  0       5 held |#####|"
    assert second == "layer  1       2 held |-----|"
    _, first, _ = trace.drawn(trace.table(HELD), tokens=10, width=4)  # 0-2 3-4 5-7 8-9 of positions 0-4 held
    assert first.endswith("|##  |")


def test_trace_draws_in_the_terminal_and_as_a_picture(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "held.png"
    line = "model=mini strategy=attention_sink workload.prompt_tokens=40 workload.new_tokens=8"
    assert main(["trace", *line.split(), "--config-dir", str(outside), "--out", str(picture)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("layer  0      10 held |#")  # a quarter of the prompt
    assert out[1].endswith("#|")
    assert picture.stat().st_size > 1000
    assert main(["trace", *line.split(), "--config-dir", str(outside), "--out", str(tmp_path / "no" / "held.png")]) == 2


def test_trace_says_what_attention_is_lost_and_writes_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "trace model=tiny workload.prompt_tokens=80 workload.new_tokens=4 measure.threads=1"
    for name, end in [
        ("h2o", r"attention lost, from the first layer to the last: (\d+\.\d%, ){3}\d+\.\d%; mean \d+\.\d%"),
        ("quest", r"attention lost: not counted, for nothing is decoded or nothing leaves for good"),
    ]:
        picture = tmp_path / f"{name}.svg"
        assert main([*line.split(), f"strategy={name}", "--layer", "1", "--out", str(picture)]) == 0
        assert re.fullmatch(end, capsys.readouterr().out.splitlines()[-2])
        drawn = picture.read_text(encoding="utf-8")
        assert ("share of attention lost" in drawn) == (name == "h2o")
        assert "share of heads that hold a token at the end" in drawn
    assert main(["trace", "model=tiny", "workload=prefill", "workload.prompt_tokens=[40]"]) == 0
    assert capsys.readouterr().out.endswith("not counted, for nothing is decoded or nothing leaves for good\n")
    assert main([*line.split(), "--layer", "4"]) == 2
    assert "--layer must be one of the model's 4 layers, from 0; got 4" in capsys.readouterr().err


def test_means_of_lost_attention_are_told_by_layer() -> None:
    lost = trace.lost_table(torch.tensor([[0.1, 0.5], [0.2, 0.3]]))
    assert lost["step"].tolist() == [1, 1, 2, 2]
    assert trace.told(lost) == "attention lost, from the first layer to the last: 15.0%, 40.0%; mean 27.5%"


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_pieces_make_up_the_text_and_unfinished_characters_wait() -> None:
    assert trace.pieces_of(Bytes(), list("a \u00e9!".encode())) == ["a", " ", "", "\u00e9", "!"]
    text = "\u20ac\U0001d11e" * 9 + "z"
    pieces = trace.pieces_of(Bytes(), list(text.encode()))
    assert "".join(pieces) == text
    assert pieces[:7] == ["", "", "\u20ac", "", "", "", "\U0001d11e"]


def test_the_catalogue_has_a_line_for_everything() -> None:
    for group, choices in catalogue():
        assert choices or group == "strategy", group
        assert all(choices.values())
