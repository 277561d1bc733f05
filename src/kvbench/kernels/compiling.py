"""C++ for this machine's processor, compiled when it is first needed and kept in the cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvbench.folders import cache_folder

STANDARD = "standard.h"  # of a folder of sources: what they use of the compiler's own headers, read once for all
LANGUAGE = ("-std=c++17", "-shared", "-fPIC", "-fopenmp", "-w")
SPEED = ("-O3", "-march=native")
SUMS = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")
FLAGS = (*LANGUAGE, *SPEED, *SUMS)  # with -ffast-math a library makes its whole process flush small numbers to 0
QUOTED = 2000  # letters of what a compiler complains of


def compiler() -> str | None:
    """Return the C++ compiler: $CXX, or the first one on the path."""
    return shutil.which(os.environ.get("CXX") or "") or shutil.which("g++") or shutil.which("clang++")


def compiled(source: Path, numbers: Mapping[str, int], mend: str) -> Path:
    """Return the library that a source makes with these numbers, compiled unless this machine has done so before.

    Args:
        source: which may include the headers of its folder.
        numbers: that are defined in it.
        mend: what a user does where it does not compile.

    Raises:
        ValueError: if it does not.
    """
    program = compiler()
    assert program is not None
    defined = [f"-D{name}={number}" for name, number in numbers.items()]
    file = _place([source, *sorted(source.parent.glob("*.h"))], program, defined).with_suffix(".so")
    if not file.is_file():
        _compile(
            [program, *FLAGS, *_standard(program, source.with_name(STANDARD), mend), *defined, str(source)], file, mend
        )
    return file


def _standard(program: str, own: Path, mend: str) -> list[str]:
    """Return what makes GCC take the standard headers as it has read them before."""
    if not own.is_file() or "clang" in Path(program).resolve().name:  # refuses what another version of it has read
        return []
    header = _place([own], program, []).with_suffix(".h")
    file = header.with_suffix(".h.gch")
    if not file.is_file():
        draft = _draft(header)
        shutil.copyfile(own, draft)
        draft.replace(header)
        _compile([program, *FLAGS, "-x", "c++-header", str(header)], file, mend)
    return ["-include", str(header)]


def _place(sources: Sequence[Path], program: str, defined: Sequence[str]) -> Path:
    """Return where what is made of sources is kept, without its ending."""
    texts = [file.read_text(encoding="utf-8") for file in sources]
    made_of = "\n".join([*texts, program, _processor(), *FLAGS, *defined])
    return cache_folder() / "native" / hashlib.sha256(made_of.encode()).hexdigest()[:20]


def _compile(command: Sequence[str], file: Path, mend: str) -> None:
    draft = _draft(file)
    done = subprocess.run([*command, "-o", str(draft)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(
            f"the native kernel did not compile; {mend}. {' '.join(command)}:\n{done.stderr.strip()[:QUOTED]}"
        )
    draft.replace(file)


def _draft(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.with_suffix(f".{os.getpid()}")


def _processor() -> str:
    """Return what the machine code depends on: the processor's extensions."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return ""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
