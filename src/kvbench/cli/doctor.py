"""`kvbench doctor`: what this machine has, what is missing for which strategy, and the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from packaging.specifiers import SpecifierSet
from rich.console import Console

from kvbench.cli.catalogue import CONF
from kvbench.cli.messages import FAILED
from kvbench.cli.requirements import Requirement, requirements, version_of
from kvbench.folders import cache_folder, hardware_record
from kvbench.results.labels import bytes_text
from kvbench.results.notes import Note

State = Literal["fine", "mind", "missing", "broken"]

ROOM = 2**30  # bytes of a disk below which runs and compiled kernels may not fit
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve")
CALIBRATED = "some read what kvbench calibrate measures of a model once, which comes with model=tiny"
_BLACK_BOX = "kvbench.strategies.black_box."
_STYLES: dict[State, str] = {"fine": "", "mind": "yellow", "missing": "yellow", "broken": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Args:
        topic: what it is about.
        text: what was found.
        state: whether all is well, numbers suffer, something is not there that somebody may want, or nothing works.
        mend: command that mends it; "" where none does, or the text names it.
    """

    topic: str
    text: str
    state: State = "fine"
    mend: str = ""


def main() -> int:
    """Print what was found; 1 if something is broken."""
    console = Console()
    found = [finding for look in LOOKS for finding in look()]
    for one in found:
        mark = f"{one.state}: " if one.state in ("missing", "broken") else ""
        mend = f"; mend it with: {one.mend}" if one.mend else ""
        console.print(Note(one.topic, f"{mark}{one.text}{mend}", _STYLES[one.state]))
    count = {state: sum(one.state == state for one in found) for state in ("missing", "broken")}
    console.print(Note("in all", f"{count['broken']} broken, {count['missing']} missing for some", "bold"))
    return FAILED if count["broken"] else 0


def packages() -> Iterator[Finding]:
    """Yield Python and what was installed with kvbench, or was not."""
    try:
        known = metadata.metadata("kvbench")
    except metadata.PackageNotFoundError:
        yield Finding(topic="kvbench", text="is not installed, only imported", state="missing", mend="pip install -e .")
        return
    needed = known["Requires-Python"] or ""
    is_old = not SpecifierSet(needed).contains(platform.python_version(), prereleases=True)
    mend = f"another Python ({needed})" if is_old else ""
    text = f"Python {platform.python_version()}, kvbench {known['Version']}"
    yield Finding(topic="python", text=text, state="broken" if is_old else "fine", mend=mend)
    asked = list(requirements(metadata.requires("kvbench") or [], known.get_all("Provides-Extra") or []))
    good = [one for one in asked if not one.extra and one.is_met]
    yield Finding(topic="packages", text=", ".join(f"{one.name} {one.installed}" for one in good))
    yield from (_unmet(one) for one in asked if not one.is_met)


def _unmet(one: Requirement) -> Finding:
    has = "is not installed" if one.installed is None else f"{one.installed} is not what is supported ({one.limits})"
    asks = f", which the extra [{one.extra}] brings" if one.extra else ""
    state: State = "missing" if one.extra else "broken"
    return Finding(topic="packages", text=f"{one.name} {has}{asks}", state=state, mend=one.command)


def processor() -> Iterator[Finding]:
    """Yield the processor, its memory, how busy it is, and what compiles for it."""
    from kvbench.kernels.compiling import compiler
    from kvbench.measure.environment import available_ram_bytes, last_level_cache_bytes, machine

    facts = machine()
    flags = [flag for flag in FLAGS if flag in _processor_flags()]
    cached = last_level_cache_bytes()
    about = f"{facts['num_cpus']} cores, {bytes_text(cached)} of cache" if cached else f"{facts['num_cpus']} cores"
    yield Finding(topic="processor", text=f"{facts['cpu_model']}, {about}, {', '.join(flags) or 'no flags are told'}")
    omp = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding(topic="threads", text=f"torch computes with {facts['num_threads']}; OMP_NUM_THREADS is {omp}")
    load, cpus = float(facts["load_1min"] or 0), int(facts["num_cpus"] or 1)
    is_busy = load > 0.5 * cpus
    quiet = ": others compute here, and times will be inconclusive" if is_busy else ""
    yield Finding(topic="load", text=f"{load:.2f} on {cpus} cores{quiet}", state="mind" if is_busy else "fine")
    free, whole = available_ram_bytes(), int(facts["ram_bytes"] or 0)
    yield Finding(topic="memory", text=f"{bytes_text(free)} of {bytes_text(whole)} are free")
    program = compiler()
    text = f"{program} compiles the native kernels" if program else "none: packed caches are read by plain torch"
    mend = "" if program else "apt install g++, or set CXX"
    yield Finding(topic="compiler", text=text, state="fine" if program else "missing", mend=mend)


def gpu() -> Iterator[Finding]:
    """Yield the GPU and what was measured of the device that computes."""
    import torch

    from kvbench.measure.environment import accelerator

    if torch.cuda.is_available():
        one = accelerator("cuda")
        yield Finding(
            topic="GPU", text=f"{one['device_name']}, driver {one['driver'] or 'unknown'}, CUDA {torch.version.cuda}"
        )
        if version_of("triton") is None:
            yield Finding(
                topic="triton",
                text="is not installed: no kernels on the GPU",
                state="missing",
                mend="pip install triton",
            )
    else:
        yield Finding(topic="GPU", text="none that torch can use: all runs on the processor")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    file = hardware_record(kind)
    if file.is_file():
        yield Finding(topic="hardware", text=f"was measured: {file}")
    else:
        yield Finding(
            topic="hardware", text="was not measured: nothing is predicted", state="missing", mend="kvbench hardware"
        )


def _processor_flags() -> set[str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}


def folders() -> Iterator[Finding]:
    """Yield where files go, and whether they can."""
    for topic, folder, key in (
        ("cache", cache_folder(), "KVBENCH_CACHE=<folder>"),
        ("runs", Path("runs"), "runs=<folder>"),
    ):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free
        except OSError as error:
            text = f"cannot write in {folder}: {error.strerror}"
            yield Finding(topic=topic, text=text, state="broken", mend=f"another folder, {key}")
            continue
        text, is_full = f"{folder}, {bytes_text(free)} free", free < ROOM
        yield Finding(
            topic=topic,
            text=text,
            state="broken" if is_full else "fine",
            mend=f"make room, or {key}" if is_full else "",
        )


def models() -> Iterator[Finding]:
    """Yield the networks that come with kvbench, those that nobody has trained, and those that the hub has."""
    from kvbench.configuration import build_group

    intact, untrained, absent = [], [], []
    for name, node in _yamls("model"):
        spec = build_group(OmegaConf.to_container(node), "model")
        if spec.weights == "embedded":
            damage = damaged(spec.folder)
            if damage is None:
                intact.append(name)
            else:
                mend = "pip install --force-reinstall kvbench, or git lfs pull"
                yield Finding(topic="models", text=f"model={name}: {damage}", state="broken", mend=mend)
        elif spec.weights == "random" and not spec.hub_id:
            untrained.append(name)
        elif spec.hub_id and not _is_cached(spec.hub_id, spec.revision):
            absent.append(name)
    yield Finding(topic="models", text=f"intact: {', '.join(intact)}")
    if untrained:
        text = f"no weights, so random ones, whose quality is nobody's: {', '.join(untrained)}"
        yield Finding(topic="models", text=text, state="missing", mend="kvbench train, then model.path=<folder>")
    if absent:
        text = (
            f"their weights are not on this machine, and random ones where the hub does not answer: {', '.join(absent)}"
        )
        yield Finding(topic="models", text=text, state="missing", mend="hf download, or model.path=<folder>")


def damaged(folder: Path) -> str | None:
    """Return what is wrong with a model's files, or None."""
    from safetensors import SafetensorError, safe_open

    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        with safe_open(folder / "model.safetensors", framework="pt") as opened:
            sizes = [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        return f"{folder} cannot be read: {' '.join(str(error).split())}"
    count = 0
    for shape in sizes:
        product = 1
        for size in shape:
            product *= size
        count += product
    return None if count == card["parameters"] else f"{folder} has {count:,} numbers and not {card['parameters']:,}"


def _is_cached(hub_id: str, revision: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json", revision=revision or None), str)


def strategies() -> Iterator[Finding]:
    """Yield which strategies and workloads lack something, in the words of the row that they would be."""
    from kvbench.configuration import build_group, compose, resolved
    from kvbench.models.spec import FAMILY
    from kvbench.strategies.transform.crossing import FILE
    from kvbench.workloads.harness import missing

    known = dict(_yamls("strategy"))
    boxes = [name for name in known if _brings_its_own(name, known)]
    for name in boxes:
        config = resolved(compose([f"strategy={name}"]))
        told = (
            build_group(config["strategy"], "strategy").unavailable(),
            build_group(config["engine"], "engine").unavailable(),
        )
        reason = next((text for text in told if text is not None), None)
        if reason is not None:
            yield Finding(topic="strategies", text=f"strategy={name} is unavailable: {reason}", state="missing")
    lacks = missing()
    if lacks is not None:
        yield Finding(topic="workloads", text=f"workload=lm_eval is unavailable: {lacks}", state="missing")
    for name in sorted(path.name for path in FAMILY.iterdir() if path.is_dir() and (path / FILE).is_file()):
        yield Finding(topic="strategies", text=f"blocks that were trained: {name}")
    yield Finding(topic="strategies", text=f"{len(known) - len(boxes)} more need nothing but kvbench; {CALIBRATED}")


def _brings_its_own(name: str, known: dict[str, Any]) -> bool:
    """Return whether a strategy is another engine's cache, by its yaml and those it is made from."""
    node = known[name]
    target = node.get("_target_")
    if target is not None:
        return str(target).startswith(_BLACK_BOX)
    first = next((base for base in node.get("defaults", []) if base in known), None)
    return first is not None and _brings_its_own(first, known)


def _yamls(group: str) -> Iterator[tuple[str, Any]]:
    for file in sorted((files(CONF) / group).iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            yield file.name.removesuffix(".yaml"), OmegaConf.create(file.read_text(encoding="utf-8"))


def mirror() -> Iterator[Finding]:
    """Yield where W&B stands."""
    version = version_of("wandb")
    if version is None:
        yield Finding(
            topic="W&B", text="is not installed: runs are not mirrored", state="missing", mend="pip install wandb"
        )
        return
    node = OmegaConf.create((files(CONF) / "sink" / "default.yaml").read_text(encoding="utf-8"))
    key = "set" if os.environ.get("WANDB_API_KEY") else "not set"
    yield Finding(
        topic="W&B", text=f"{version}, {node.wandb.mode} unless sink.wandb.mode= says else; WANDB_API_KEY is {key}"
    )


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (packages, processor, gpu, folders, models, strategies, mirror)
