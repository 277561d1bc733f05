"""`kvbench hardware` and `kvbench plan`."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
import torch

from kvbench.cli import hardware, main, plan
from kvbench.cli.amounts import amount, shown
from kvbench.folders import hardware_record
from kvbench.measure.hardware import Widths
from kvbench.measure.rates import Capability
from tests.support.small import checkpoint

READ = Capability(
    name="read", device="cpu", num_threads=2, dtype="float32", num_bytes=8, shape="", unit="bytes/s", value=2e10,
    low=1e10, high=3e10,
)  # fmt: skip
GIVEN = "device_bandwidth=2TB/s device_flops=300Tflop/s link=25GB/s link_latency=10us disk_bandwidth=3GB/s launch=2ns"
ASKED = "model=tiny context=1024 batch=1,4 memory=30MB prefill_chunk=128 block=16"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep records in an empty folder, on a machine that has no GPU."""
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Measure nothing, and note what was asked for."""
    seen: list[object] = []

    def measure(device: torch.device, threads: int, *, widths: Widths | None) -> list[Capability]:
        seen.append(widths)
        return [READ]

    def of_disk(place: Path, threads: int) -> list[Capability]:
        seen.append(place)
        return []

    monkeypatch.setattr(hardware, "measure_hardware", measure)
    monkeypatch.setattr(hardware, "measure_disk", of_disk)
    return seen


def test_hardware_prints_and_keeps_what_was_measured(
    asked: list[object], capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert main(["hardware", "--device", "cpu", "--threads", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["read", "20.0", "GB/s", "(10.0", "to", "30.0)", "cpu", "float32"]
    assert [line.partition(":")[0] for line in lines[1:]] == ["links", "products of a model", "cold reads", "record"]
    assert asked == [None, folder]
    (row,) = json.loads((folder / "hardware_cpu.json").read_text(encoding="utf-8"))
    assert {key: row[key] for key in READ.record()} == READ.record()
    assert row["device_name"]
    assert datetime.fromisoformat(row["created_at"])


def test_hardware_measures_the_products_of_a_model_where_it_is_told_to(
    asked: list[object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "new" / "numbers.csv"
    assert main(["hardware", "model=tiny", "--batch", "3", "--disk", str(folder / "disk"), "--out", str(out)]) == 0
    assert asked == [Widths(hidden=192, kv_width=2 * 2 * 32, batch_size=3), folder / "disk"]
    assert pd.read_csv(out)["value"].tolist() == [2e10]
    assert "products" not in capsys.readouterr().out


def test_a_plan_of_given_numbers_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *ASKED.split(), *GIVEN.split()]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny | 1,024 tokens, 30MB | modelled, not measured | the machine whose numbers were given\n")
    assert "host_to_device 25 GB/s after 10 us (given)" in out
    assert "launch 500 Mlaunches/s (given)" in out
    assert "no limit: host=, disk=" in out
    assert "times: as if whole steps reached these rates" in out
    rows = [line for line in out.splitlines() if " % " in line]
    assert rows
    assert {row.split()[4] for row in rows} == {"1", "4"}  # batches


def test_a_checkpoint_needs_no_other_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = checkpoint(tmp_path / "mine")
    asked = f"model.path={where} context=64 batch=1 memory=30MB prefill_chunk=16 block=16"
    assert main(["plan", *asked.split(), *GIVEN.split()]) == 0
    assert capsys.readouterr().out.startswith("mine | 64 tokens, 30MB | modelled")


def test_a_plan_of_a_record_is_of_what_was_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units = {"read": 2e10, "gemm": 1e11, "launch": 1e5, "disk_read_cold_1M": 1e9, "disk_write_1M": 5e8}
    rows = [{**READ.record(), "name": name, "value": value, "device_name": "a chip"} for name, value in units.items()]
    hardware_record("cpu").write_text(json.dumps(rows), encoding="utf-8")
    assert main(["plan", *ASKED.split(), "host=1GiB"]) == 0
    out = capsys.readouterr().out
    assert "modelled, not measured | a chip\n" in out
    assert "disk_write 500 MB/s (measured)" in out
    assert "no limit: disk=" in out
    assert "no host: the device is the processor itself" in out
    # with numbers of another machine, the record of this one counts only where it is named
    assert main(["plan", *ASKED.split(), "link=25GB/s"]) == 2
    assert "nothing says how fast" in capsys.readouterr().err
    assert main(["plan", *ASKED.split(), "link=25GB/s", f"hardware={hardware_record('cpu')}"]) == 0
    out = capsys.readouterr().out
    assert "device_memory 20 GB/s (measured)" in out
    assert "host_to_device 25 GB/s (given)" in out
    assert "no host:" not in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hardware --threads 0", "--threads must be at least 1; got 0."),
        ("hardware --batch 0", "--batch must be at least 1; got 0."),
        ("hardware --device cuda", "--device=cuda is not available here"),
        ("hardware model=tinny", "Did you mean model=tiny"),
        ("plan model=tiny", "a plan needs context=, batch=, memory="),
        ("plan context", "'context' cannot be read, write key=value"),
        (f"plan {ASKED} contxt=1", "contxt: there is no such setting. Did you mean context"),
        (f"plan {ASKED} batch=2", "batch= is given twice"),
        (f"plan {ASKED}", "Run kvbench hardware, or name a record with hardware=<file>."),
        (f"plan {ASKED} link_latency=1us", "link_latency= goes with link=, such as link=25GB/s"),
        (f"plan {ASKED} {GIVEN} bits=64", "bits= must be at most the 32 that the model computes with; got 64."),
        (f"plan {ASKED} {GIVEN} steps=0", "steps= must be a whole number of at least 1; got 0."),
        (f"plan {ASKED.replace('30MB', '30')} {GIVEN}", "memory= must be an amount above 0 with its unit"),
        (f"plan {ASKED.replace('30MB', '1MB')} {GIVEN}", "nothing fits: even with 2 bits"),
        (f"plan {ASKED.replace('1024', '4096')} {GIVEN}", "model=tiny reads at most 2,048 tokens; got context=4096."),
        (f"plan {ASKED} launch=5us", "nothing says how fast"),
    ],
)
def test_wrong_input_gives_one_message_and_status_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("kvbench: ")
    assert message in err


def test_amounts_are_read_with_their_units() -> None:
    assert amount("memory", "24GiB", "B") == 24 * 2**30
    assert amount("link", "25GB/s", "B/s") == 25e9
    assert amount("launch", "5us", "s") == pytest.approx(5e-6)
    assert amount("device_flops", "1.5e3Gflop/s", "flop/s") == 1.5e12
    assert [shown(value, "s") for value in (2172.0, 2.5, 7.82e-3, 5e-6)] == ["2,172 s", "2.5 s", "7.82 ms", "5 us"]
    assert [shown(value, "B/s") for value in (25e9, 3e12, 12.0)] == ["25 GB/s", "3 TB/s", "12 B/s"]
    for wrong in ("24", "GiB", "0GB", "-1GB", "24GB/s"):
        with pytest.raises(ValueError, match=r"memory= must be an amount above 0 with its unit, such as memory=24GiB"):
            amount("memory", wrong, "B")


def test_the_record_of_a_processor_has_no_link_unless_one_is_given() -> None:
    file = hardware_record("cpu")
    file.write_text(json.dumps([{**READ.record(), "device_name": "a chip"}]), encoding="utf-8")
    assert plan.machine_from({}, "").is_host
    machine = plan.machine_from({"hardware": str(file), "link": "25GB/s"}, "")
    assert not machine.is_host
    assert machine.rate("device_memory").source == "measured"
    assert machine.rate("device_to_host").source == "given"
