"""A mirror shows what the record says, and nothing that goes wrong with it touches the run."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kvbench.results import sink as module
from kvbench.results.folder import Finished
from kvbench.results.load import load
from kvbench.results.sink import Sink, Wandb
from tests.mutants import results_sink as mutants
from tests.results.factory import baseline, row, steps, write
from tests.results.wandb_file import artifacts, read

DEFAULTS = Path(__file__).parents[2] / "conf" / "sink" / "default.yaml"
CONFIG = {"seed": 0, "strategy": {"budget": {"amount": 0.25}}, "runs": "runs"}
TIMED = [*steps([[8.0, 7.5], [8.25, 7.0]]), *steps([[12.5, 12.0]], arm="baseline")]


def sink(mode: Any = "offline", timeout_s: float = 60.0) -> Sink:
    return Sink(wandb=Wandb(mode=mode, project="kvbench", timeout_s=timeout_s))


def finished_run(runs: Path) -> Finished:
    rows = [row("h2o", config_json=json.dumps(CONFIG)), baseline(config_json=json.dumps(CONFIG))]
    return write(runs, "r0", rows, TIMED)


def mirrored(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return read(file)


def check_the_mirror_says_what_the_record_says(mirror: Callable[[Path], str | None], runs: Path) -> None:
    """Read back from wandb's own file: configuration, both arms, every step in its order, rows, figures and files."""
    folder = finished_run(runs).folder
    assert mirror(folder) is None
    config, summary, history = mirrored(folder)
    assert {name: config[name] for name in CONFIG} == CONFIG
    for one in load(folder).to_dict("records"):
        begin = "" if one["arm"] == "strategy" else "baseline/"
        for name in ("run_id", "model", "decode_p50_ms", "kv_allocated_bytes", "recall_passkey", "query_aware"):
            assert summary.get(begin + name) == one[name]
    times = {
        arm: [p[f"decode/{arm}_ms"] for p in history if f"decode/{arm}_ms" in p] for arm in ("strategy", "baseline")
    }
    assert times == {"strategy": [8.0, 7.5, 8.25, 7.0], "baseline": [12.5, 12.0]}
    assert [point["step/position"] for point in history[:4]] == [1024, 1025, 1024, 1025]
    assert [point["step/round"] for point in history[:4]] == [0, 0, 1, 1]
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/*.table.json")
    content = json.loads(table.read_text())
    shown = [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]
    assert [(line["arm"], line["strategy"]) for line in shown] == [("baseline", "baseline"), ("strategy", "h2o")]
    assert shown[1]["ratio"] == 0.614
    pictures = {key: point[key] for point in history for key in point if key.endswith(".path")}
    for name in ("nll_delta_nats_by_bytes", "ratio"):
        assert f"figures/{name}.path" in pictures
        (file,) = folder.glob(f"wandb/offline-run-*/files/{pictures[f'figures/{name}.path']}")
        assert file.read_bytes().startswith(b"\x89PNG")
    (written,) = folder.glob("wandb/offline-run-*/*.wandb")
    kept = artifacts(written)["kvbench-run"]
    assert kept == {name: str(folder / name) for name in ("config.yaml", "run.parquet", "steps.parquet")}


def test_the_mirror_says_what_the_record_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")  # the configuration decides, not the surroundings
    check_the_mirror_says_what_the_record_says(sink().mirror, tmp_path / "runs")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert "warning" not in (tmp_path / "runs" / "adhoc" / "r0" / "run.log").read_text()


def test_a_mirror_without_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    check_the_mirror_says_what_the_record_says(mutants.unchanged, tmp_path)


@pytest.mark.parametrize("mutant", mutants.MIRRORS)
def test_oracle_catches_a_mirror_that_leaves_something_out(mutant: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_the_mirror_says_what_the_record_says(mutant, tmp_path)


@contextmanager
def silent_server() -> Iterator[str]:
    """Give the address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def check_a_dead_network_costs_no_more_than_the_limit(
    mirror: Callable[[Path], str | None], runs: Path, monkeypatch: pytest.MonkeyPatch, *, limit_s: float
) -> None:
    """Online against a server that never answers: back within the limit, one line of warning, the run untouched."""
    folder = finished_run(runs).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.log"}
    with silent_server() as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        start = time.monotonic()
        said = mirror(folder)
        assert time.monotonic() - start < limit_s + 2
    assert said is not None
    assert said.startswith("warning: not mirrored to wandb: no answer within sink.wandb.timeout_s=")
    assert (folder / "run.log").read_text() == f"written by hand\n{said}\n"
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert len(load(runs)) == 2


def test_a_dead_network_costs_no_more_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = sink("online", timeout_s=4.0).mirror
    check_a_dead_network_costs_no_more_than_the_limit(mirror, tmp_path, monkeypatch, limit_s=4.0)


def test_oracle_catches_a_mirror_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        check_a_dead_network_costs_no_more_than_the_limit(mutants.patient, tmp_path, monkeypatch, limit_s=1.0)


def test_no_login_is_one_line_and_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    folder = finished_run(tmp_path / "runs").folder
    said = sink("online").mirror(folder)
    assert said is not None
    assert "API key" in said
    assert "\n" not in said
    assert said in (folder / "run.log").read_text()


def test_without_wandb_the_run_is_kept_and_its_log_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = finished_run(tmp_path).folder
    said = sink().mirror(folder)
    assert said == (
        "warning: not mirrored to wandb: it is not installed (pip install wandb). The run is kept; "
        "sink.wandb.mode=disabled does without."
    )
    assert (folder / "run.log").read_text() == f"written by hand\n{said}\n"
    assert len(load(tmp_path)) == 2


def test_disabled_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(subprocess, "Popen", refuse)
    folder = finished_run(tmp_path).folder
    assert sink("disabled").mirror(folder) is None
    assert not (folder / "wandb").exists()


def test_a_full_disk_does_not_lose_the_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(module, "append_log", fails)
    assert "it is not installed" in str(sink().mirror(finished_run(tmp_path).folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "on"}, r"sink\.wandb\.mode must be one of offline, online, disabled; got 'on'"),
        ({"project": ""}, r"sink\.wandb\.project must be a name.*sink\.wandb\.mode=disabled"),
        ({"timeout_s": 0.0}, r"sink\.wandb\.timeout_s must be above 0; got 0\.0"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wandb(**{"mode": "offline", "project": "kvbench", "timeout_s": 20.0, **values})


def test_the_yaml_is_the_only_home_of_the_defaults() -> None:
    written = OmegaConf.to_container(OmegaConf.load(DEFAULTS))
    assert isinstance(written, dict)
    assert set(written) - {"_target_"} == set(Sink.__dataclass_fields__)
    assert set(written["wandb"]) - {"_target_"} == set(Wandb.__dataclass_fields__)
    chosen = {name: value for name, value in written["wandb"].items() if name != "_target_"}
    assert Wandb(**chosen) == Wandb(mode="offline", project="kvbench", timeout_s=20.0)
