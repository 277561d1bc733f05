"""The command line of kvbench, a command at a time. Every command imports what it needs itself."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from math import inf
from typing import Any, TypeAlias

from kvbench.cli.messages import complain

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_RUN = "measure what overrides ask for: kvbench run [-m] [group=choice] [group.key=value]; the same as python run.py"


def entry() -> None:
    """Be the console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; return the exit status.

    Args:
        arguments: the command and what follows it.
    """
    if arguments and arguments[0] == "run":  # Hydra reads what follows
        from kvbench.cli import run

        return run.main(arguments[1:])
    parsed = _parsed(_parser(), arguments)
    module, _, function = parsed.pop("home").partition(":")
    try:
        status: int | None = getattr(import_module(f"kvbench.cli.{module}"), function)(**parsed)
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        return complain(error)
    else:
        return status or 0
    return 0


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what was given, overrides behind options with those before them; argparse gives up there."""
    found, rest = parser.parse_known_args(list(arguments))
    behind = [each for each in rest if "=" in each and not each.startswith("-")]
    if behind != rest or (rest and "overrides" not in found):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed = vars(found)
    return parsed | {"overrides": [*parsed["overrides"], *behind]} if behind else parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvbench", description="Which KV-cache strategy, and is that claim true?")
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("run", help=_RUN, add_help=False)

    listing = _add(
        commands, "list", "catalogue:main", "name the models, strategies, parts, workloads and engines there are"
    )
    listing.add_argument("kind", nargs="?", default="", help="only this kind, such as strategy or strategy/scorer")
    listing.add_argument("--markdown", action="store_true", help="as a page for the documentation")
    _of_results(commands)
    _of_models(commands)
    return parser


def _of_results(commands: _Commands) -> None:
    """Add what reads finished runs, and the doctor."""
    table = _add(commands, "table", "show:table", "show the table of any tree of runs again")
    table.add_argument("path", nargs="?", default="runs", help="a run, a sweep or a whole tree (default: runs)")

    table.add_argument("--tasks", action="store_true", help="scores of what was asked, task by task")

    compare = _add(commands, "compare", "show:compare", "set the runs of one folder against those of another")
    compare.add_argument("a", help="folder of a run or of many")
    compare.add_argument("b", help="folder of a run or of many")
    compare.add_argument(
        "--same-strategy", action="store_true", help="only runs of one strategy with the same settings"
    )
    compare.add_argument(
        "--fail-above",
        type=float,
        default=inf,
        metavar="RATIO",
        help="exit with 1 if a pair's time, by the lower end of its interval, is more times b's: 1.05",
    )
    compare.add_argument(
        "--fail-kv-above", type=float, default=inf, metavar="RATIO", help="the same of the cache's bytes"
    )
    compare.add_argument(
        "--fail-loss-above", type=float, default=inf, metavar="NATS", help="the same of a's loss less b's, per token"
    )

    recommend = _add(
        commands,
        "recommend",
        "recommend:main",
        "say which strategy keeps to a memory, a loss and a length, from measured rows, and what was not measured",
    )
    recommend.add_argument("path", help="a sweep or a whole tree")
    recommend.add_argument("--memory", required=True, help="for weights, cache and the rest of the peak: 16GiB")
    recommend.add_argument(
        "--max-loss", type=float, required=True, metavar="NATS", help="per token, above the full cache's: 0.02"
    )
    recommend.add_argument("--context", type=int, required=True, metavar="TOKENS", help="of the prompt: 32768")
    recommend.add_argument("--batch", type=int, default=1, help="prompts at once (default: 1)")
    recommend.add_argument(
        "--max-slowdown", type=float, default=inf, metavar="RATIO", help="of a decode step, over the full cache's: 1.1"
    )
    recommend.add_argument("--query-aware", action="store_true", help="the question is known before compression")
    recommend.add_argument(
        "--prefer", choices=("speed", "memory", "loss"), default="speed", help="of what fits (default: speed)"
    )
    recommend.add_argument("--model", default="", help="the only one that counts, where the tree has several")

    report = _add(
        commands,
        "report",
        "show:report",
        "write one page with sortable tables, figures and where the numbers come from",
    )
    report.add_argument("path", help="a run, a sweep or a whole tree")
    report.add_argument("-o", "--out", default="report.html", help="file (default: report.html)")

    export = _add(commands, "export", "show:export", "write results as csv or json")
    export.add_argument("path", help="a run, a sweep or a whole tree")
    export.add_argument("file", help="ends in .csv or .json")
    export.add_argument("--steps", action="store_true", help="every timed step instead of one row per arm")
    export.add_argument("--samples", action="store_true", help="every question and its answer instead")

    sweep = _add(
        commands, "sweep", "sweep:main", "say which rows of a sweep are done: kvbench sweep status runs/survey"
    )
    sweep.add_argument("action", choices=("status",))
    sweep.add_argument("path", nargs="?", default="runs", help="a sweep or a whole tree (default: runs)")

    compact = _add(commands, "compact", "show:compact", "put the runs of a sweep into few files, which load at once")
    compact.add_argument("path", help="a sweep or a whole tree")

    _add(
        commands,
        "doctor",
        "doctor:main",
        "say what this machine has, what is missing for which strategy, and what mends it",
    )


def _of_models(commands: _Commands) -> None:
    """Add what looks into models and machines."""
    trace = _add(commands, "trace", "trace:main", "draw which positions each layer held: kvbench trace strategy=snapkv")
    trace.add_argument("overrides", nargs="*", help="as for run")
    trace.add_argument("--config-dir", help="folder with more configurations")
    trace.add_argument("--out", default="", help="picture over the text to write (.png, .svg or .pdf)")
    trace.add_argument("--layer", type=int, help="the only one whose entries the picture shows (default: all)")

    calibrate = _add(
        commands,
        "calibrate",
        "calibrate:main",
        "measure a model once: kvbench calibrate headkv model=tiny",
    )
    calibrate.add_argument(
        "what", help="a strategy, or what to measure: retrieval, gate, repetition, smooth, codebooks, bits, moments"
    )
    calibrate.add_argument("overrides", nargs="*", help="as for run; model= and seed= matter")
    calibrate.add_argument("--config-dir", help="folder with more configurations")
    calibrate.add_argument("--samples", type=int, default=0, help="texts (default: the kind's own number)")
    calibrate.add_argument("--tokens", type=int, default=0, help="per text (default: the kind's own number)")
    calibrate.add_argument(
        "--out", default="", help="json file or folder (default: $KVBENCH_CACHE or ~/.cache/kvbench)"
    )

    train = _add(
        commands,
        "train",
        "train:main",
        "train an embedded model, or go on with it: kvbench train family=gqa out=runs/family/gqa threads=1",
    )
    train.add_argument(
        "settings",
        nargs="+",
        help="family= name of the recipe, out= folder, threads= of the CPU; from= a member to begin as, align=, share=",
    )

    hardware = _add(
        commands,
        "hardware",
        "hardware:main",
        "measure memory, products, launches, the disk and the links to a GPU: kvbench hardware model=llama-3.1-8b",
    )
    hardware.add_argument("overrides", nargs="*", help="model=, whose products are measured too")
    hardware.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    hardware.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    hardware.add_argument("--batch", type=int, default=1, help="rows of a decode step (default: 1)")
    hardware.add_argument("--disk", default="", help="folder on the disk to measure (default: the cache folder)")
    hardware.add_argument(
        "--out", default="", help=".csv or .json file (default: in $KVBENCH_CACHE or ~/.cache/kvbench)"
    )

    plan = _add(
        commands,
        "plan",
        "plan:main",
        "predict where a cache should be kept: kvbench plan model=llama-3.1-8b context=32768 batch=4 memory=24GiB",
    )
    plan.add_argument(
        "settings",
        nargs="+",
        help="key=value: model=, model.*=, context=, batch= (one or several, 1,4,16), memory= (of the device, 24GiB); "
        "limits host=, disk=; what is tried bits=, prefill_chunk=, block=, group=, steps=; a record hardware=, or the "
        "numbers of another machine device_bandwidth=, device_flops=, link=, link_latency=, disk_bandwidth=, launch=",
    )

    wandb = _add(commands, "wandb", "mirrors:main", "send offline mirrors of runs to W&B: kvbench wandb sync runs")
    wandb.add_argument("action", choices=("sync",))
    wandb.add_argument("path", nargs="?", default="runs", help="a run, a sweep or a whole tree (default: runs)")
    wandb.add_argument("--dry-run", action="store_true", help="say what would be sent")
    wandb.add_argument("--project", default="", help="in place of the one that was configured")
    wandb.add_argument("--entity", default="", help="user or team to send to")

    engine = _add(commands, "engine", "engine:main", "install an engine beside kvbench: kvbench engine install vllm")
    engine.add_argument("action", choices=("list", "install"))
    engine.add_argument("name", nargs="?", default="vllm", help="of the engine to install (default: vllm)")
    engine.add_argument(
        "--environment",
        default="",
        help="folder, as engine.environment= (default: in $KVBENCH_CACHE or ~/.cache/kvbench)",
    )


def _add(commands: _Commands, name: str, home: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(home=home)
    return parser
