"""`python run.py`: what reaches the runner, and what a wrong command line says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.cli.run import main
from kvbench.configuration import Checked
from tests.cli.conftest import FakeRunner
from tests.mutants.configuration import BASIC_SWEEPER

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("strategy=h2oo", "Did you mean strategy=h2o?"),
        ("workload.promt_tokens=4", "Did you mean workload.prompt_tokens"),
        ("strategy=h2o strategy.budget.amount=-1", "strategy.budget.amount"),
        ("strategy=h2o,snapkv", "add -m"),
        ("nonsense", "cannot be read, write key=value"),
        ("-m strategy=h2oo,snapkvv", "strategy=snapkvv: there is no such choice. Did you mean strategy=snapkv?"),
        ("-m strategy=h2o,snapkv workload.promt_tokens=4", "Did you mean workload.prompt_tokens"),
        ("-m strategy=h2o seed=range(1", "cannot be read, write key=value"),
        ("-m strategy=h2o seed=interval(1,2)", "does not support sweep type"),
        (
            "-m strategy=baseline strategy.budget.amount=0.5",
            "strategy.budget.amount exists with strategy/budget=adaptive,",
        ),
        ("+experiment=frist_look", "Did you mean experiment=first_look?"),
        ("+experiment=first_look +row=h2o", "Did you mean row=h2o_quarter?"),
        ("--config-dir nowhere strategy=h2o", "--config-dir=nowhere is no folder."),
    ],
)
def test_wrong_input_gives_one_message_and_status_2_before_anything_runs(
    line: str, message: str, fake: FakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("kvbench: ") == 1
    assert "Traceback" not in err
    assert (out, fake.asked, list(Path().iterdir())) == ("", [], [])


def test_a_full_error_is_a_traceback_for_those_who_ask(fake: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="no such choice"):
        main(["strategy=h2oo"])


def test_one_run_reaches_the_runner_with_its_names_and_shows_its_table(fake: FakeRunner) -> None:
    assert main(["strategy=h2o", "model=llama8", "workload=prefill", "strategy.budget.amount=0.5"]) == 0
    ((checked, names),) = fake.asked
    assert (names.strategy, names.model, names.engine, names.workload) == ("h2o", "llama8", "eager", "prefill")
    assert names.overrides == "strategy=h2o model=llama8 workload=prefill strategy.budget.amount=0.5"
    assert checked.model.name == "llama8"
    assert checked.sweep.startswith("adhoc-")
    assert len(fake.shown) == 1
    assert list(Path().iterdir()) == []  # Hydra leaves nothing behind


def test_an_experiment_is_a_sweep_without_being_told(fake: FakeRunner) -> None:
    assert main(["+experiment=first_look"]) == 0
    assert fake.strategies == ["baseline", "random_eviction", "attention_sink", "h2o", "snapkv"]
    for checked, names in fake.asked:
        assert (checked.sweep, checked.model.name) == ("first_look", "tiny")
        if names.strategy != "baseline":
            assert (checked.strategy.budget.unit, checked.strategy.budget.amount) == ("ratio", 0.25)  # type: ignore[attr-defined]
    assert [len(frame) for frame in fake.shown] == [5]
    assert [path.parent.as_posix() for path in Path().rglob("*")] == [".", "runs", "runs/first_look"]
    assert len(list(Path().glob("runs/first_look/sweep-*.json"))) == 1


def test_the_command_line_wins_over_an_experiment_and_its_rows(fake: FakeRunner) -> None:
    assert main(["+experiment=first_look", "+row=h2o_quarter,snapkv_quarter", "seed=5", "model=llama8"]) == 0
    assert fake.strategies == ["h2o", "snapkv"]
    assert {(checked.seed, checked.model.name) for checked, _ in fake.asked} == {(5, "llama8")}


def test_a_sweep_is_every_combination_wherever_the_flag_stands(fake: FakeRunner) -> None:
    assert main(["strategy=h2o,snapkv", "-m", "workload.prompt_tokens=256,512", "workload=text", "workload.path="]) == 0
    prompts = [checked.workload.prompt_tokens for checked, _ in fake.asked]  # type: ignore[union-attr]
    assert fake.strategies == ["h2o", "h2o", "snapkv", "snapkv"]
    assert prompts == [256, 512, 256, 512]
    assert len({checked.sweep for checked, _ in fake.asked}) == 1


def check_rows_alone(fake: FakeRunner, *more: str) -> None:
    """Fail unless a row that does not compose costs no other row, and the status says so."""
    line = ["-m", "strategy=baseline,h2o,snapkv", "strategy.budget.amount=0.5", *more]
    try:
        status = main(line)
    except SystemExit as end:
        status = int(str(end.code))
    assert fake.strategies == ["h2o", "snapkv"]
    assert status == 2
    assert [list(frame["strategy"]) for frame in fake.shown] == [["h2o", "snapkv"]]


def test_a_row_that_does_not_compose_is_its_own_error(fake: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    check_rows_alone(fake)
    err = capsys.readouterr().err
    assert "1 of 3 rows were not run:" in err
    assert "strategy=baseline: strategy.budget.amount: strategy.budget has no 'amount'." in err


def test_the_check_of_rows_catches_a_sweeper_that_gives_up(fake: FakeRunner) -> None:
    with pytest.raises(AssertionError):
        check_rows_alone(fake, f"hydra.sweeper._target_={BASIC_SWEEPER}")


def too_long(checked: Checked) -> Exception | None:
    return ValueError("too long") if checked.workload.prompt_tokens == 512 else None  # type: ignore[union-attr]


def test_a_row_that_the_runner_refuses_is_its_own_error(fake: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    fake.refuse = too_long
    assert main(["-m", "workload.prompt_tokens=256,512,1024"]) == 2
    assert [len(frame) for frame in fake.shown] == [2]
    assert "1 of 3 rows were not run:\nworkload.prompt_tokens=512: too long" in capsys.readouterr().err


def test_a_run_that_the_runner_refuses_ends_with_status_2(fake: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    fake.refuse = too_long
    assert main(["workload.prompt_tokens=512"]) == 2
    assert "kvbench: too long\n" in capsys.readouterr().err


@pytest.mark.parametrize("line", [[], ["-m", "seed=1,2"]])
def test_a_machine_that_cannot_write_ends_with_a_message(
    line: list[str], fake: FakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.refuse = lambda checked: OSError("no room")
    assert main(line) != 0
    err = capsys.readouterr().err
    assert "no room" in err
    assert "Traceback" not in err


def test_a_sweep_whose_folder_cannot_be_made_says_which_key_to_change(
    fake: FakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").touch()
    assert main(["-m", "runs=taken", "seed=1,2"]) == 1
    assert "runs=taken cannot be written" in capsys.readouterr().err
    assert fake.asked == []


@pytest.mark.parametrize("line", [[], ["-m", "seed=1,2"]])
def test_a_strategy_that_fails_is_shown_and_ends_with_status_1(line: list[str], fake: FakeRunner) -> None:
    fake.status = "error"
    assert main(line) == 1
    assert len(fake.shown) == 1


def test_a_strategy_that_is_unsupported_is_a_result(fake: FakeRunner) -> None:
    fake.status = "unsupported"
    assert main([]) == 0


def test_a_run_that_was_there_already_says_so(fake: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    fake.is_new = False
    assert main(["sweep=mine"]) == 0
    assert "measured before: runs/mine/baseline (force=true: again)" in capsys.readouterr().out


def test_a_folder_of_ones_own_adds_models_and_parts(
    fake: FakeRunner, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["model=mini", "strategy=h2o", "strategy/codec=theirs", "--config-dir", str(outside)]
    assert main(line) == 2
    assert "tests.cli.plugin.Theirs is not allowed" in capsys.readouterr().err
    assert main([*line, "plugins=[tests]"]) == 0
    assert main(["-m", *line, "plugins=[tests]"]) == 0
    for checked, names in fake.asked:
        assert (names.model, type(checked.strategy.codec).__name__) == ("mini", "Theirs")


def test_a_composition_can_be_looked_at(fake: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategy=h2o", "--cfg", "job"]) == 0
    assert "recent_share: 0.5" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "strategy: adakv, arch_alt_10x, arch_alt_20x, " in capsys.readouterr().out
    assert fake.asked == []


def test_a_wrong_name_is_refused_from_a_shell_before_anything_slow_is_imported(tmp_path: Path) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['run.py', 'strategy=h2oo']; script = {str(ROOT / 'run.py')!r}\n"
        "try:\n    runpy.run_path(script, run_name='__main__')\n"
        "finally:\n    print({'torch', 'pandas', 'pyarrow', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert done.stderr.startswith("kvbench: strategy=h2oo: there is no such choice. Did you mean strategy=h2o?")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
