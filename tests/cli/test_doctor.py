"""`kvbench doctor`: what is there is said, what is missing has its command, what is broken fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from email.message import Message
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import pytest

from kvbench.cli import doctor, main
from kvbench.cli.doctor import Finding
from kvbench.cli.requirements import requirements
from kvbench.models.spec import FAMILY
from tests.mutants import doctor as mutants


def test_a_whole_visit_finds_nothing_broken_and_names_what_each_strategy_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "not" / "there"))
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert (
        f"there is no vLLM in {tmp_path}/not/there/engines/vllm: install it with `kvbench engine install vllm`" in said
    )
    yamls = {file.stem: file.read_text() for file in Path(str(files("kvbench.conf"))).glob("model/*.yaml")}
    embedded = {name for name, text in yamls.items() if "\nweights: embedded" in text}
    (intact,) = [line for line in said.splitlines() if "intact: " in line]
    assert set(intact.rpartition("intact: ")[2].split(", ")) == embedded >= {"tiny", "tiny-mha"}
    assert "offline unless sink.wandb.mode= says else" in said
    assert "was not measured: nothing is predicted; mend it with: kvbench hardware" in said
    assert said.splitlines()[-1].startswith("in all        0 broken, ")


LINES = (
    "torch<2.14,>=2.11",
    "numpy>=2; python_version > '3'",
    "pytest>=9; extra == 'dev'",
    'hqq<0.3,>=0.2.8.post1; extra == "quantized"',
    "pywin32>=300; sys_platform == 'win32'",
)


def test_requirements_are_those_of_the_package_without_its_tools() -> None:
    found = {one.name: (str(one.limits), one.extra) for one in requirements(LINES, ("dev", "quantized"))}
    assert found == {
        "torch": ("<2.14,>=2.11", ""),
        "numpy": (">=2", ""),
        "hqq": ("<0.3,>=0.2.8.post1", "quantized"),
    }


def packages_told(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> dict[str, Finding]:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    told = Message()
    for key, value in (("Requires-Python", ">=3.11"), ("Version", "0"), ("Provides-Extra", "quantized")):
        told[key] = value
    monkeypatch.setattr(metadata, "metadata", lambda name: told)
    monkeypatch.setattr(metadata, "requires", lambda name: list(LINES))
    monkeypatch.setattr(metadata, "version", version)
    return {one.text.partition(" ")[0]: one for one in doctor.packages()}


def test_a_core_package_that_is_not_supported_is_broken_and_an_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = packages_told(monkeypatch, {"torch": "2.10.0", "numpy": "2.1"})
    assert (told["torch"].state, told["torch"].mend) == ("broken", "pip install 'torch<2.14,>=2.11'")
    assert told["torch"].text == "torch 2.10.0 is not what is supported (<2.14,>=2.11)"
    assert (told["hqq"].state, told["hqq"].mend) == ("missing", "pip install 'hqq<0.3,>=0.2.8.post1'")
    assert (told["numpy"].state, told["numpy"].text) == ("fine", "numpy 2.1")
    assert packages_told(monkeypatch, {"torch": "2.13"})["numpy"].text == "numpy is not installed"


def test_a_package_that_was_only_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", nothing)
    (one,) = doctor.packages()
    assert (one.state, one.text) == ("missing", "is not installed, only imported")


def test_a_folder_that_cannot_be_written_or_is_full_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file" / "below"))
    cache, runs = doctor.folders()
    assert (cache.state, runs.state) == ("broken", "fine")
    assert f"cannot write in {tmp_path}/file/below: Not a directory" in cache.text
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "ROOM", 2**80)
    assert [one.state for one in doctor.folders()] == ["broken", "broken"]


def check_damage_is_seen(damaged: Callable[[Path], str | None], folder: Path) -> None:
    """A model whose weights end early, has another card, or is a pointer to a file elsewhere is not intact."""
    file, card = folder / "model.safetensors", folder / "card.json"
    assert damaged(folder) is None
    whole, told = file.read_bytes(), card.read_text()
    card.write_text(told.replace('"parameters": ', '"parameters": 1'))
    assert "numbers and not" in str(damaged(folder))
    card.write_text(told)
    for content in (whole[:-100], b"version https://git-lfs.github.com/spec/v1\n", b""):
        file.write_bytes(content)
        assert "cannot be read" in str(damaged(folder))
    file.unlink()
    assert "cannot be read" in str(damaged(folder))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(FAMILY / "mqa", tmp_path / "mqa")


def test_damage_is_seen(copy: Path) -> None:
    check_damage_is_seen(doctor.damaged, copy)


@pytest.mark.parametrize("mutant", mutants.DAMAGED)
def test_oracle_catches_who_looks_away(mutant: Callable[[Path], str | None], copy: Path) -> None:
    with pytest.raises(AssertionError):
        check_damage_is_seen(mutant, copy)


def test_what_is_broken_makes_the_command_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding(topic="disk", text="is full", state="broken", mend="make room"), Finding(topic="x", text="fine")]
    monkeypatch.setattr(doctor, "LOOKS", [lambda: iter(found)])
    assert main(["doctor"]) == 1
    assert "broken: is full; mend it with: make room" in capsys.readouterr().out


def test_the_processors_flags_and_gpu_are_told() -> None:
    told = {one.topic: one.text for one in doctor.processor()}
    assert {"processor", "threads", "load", "memory", "compiler"} == set(told)
    assert " cores" in told["processor"]


def test_wandb_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    (one,) = doctor.mirror()
    assert (one.state, one.mend) == ("missing", "pip install wandb")
