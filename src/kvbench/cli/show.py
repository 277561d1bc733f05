"""`kvbench table`, `compare`, `report`, `export` and `compact`: finished runs again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from kvbench.cli.messages import FAILED, say
from kvbench.results.compact import compact as compacted
from kvbench.results.compare import compare as compared
from kvbench.results.export import export as exported
from kvbench.results.load import load
from kvbench.results.pairs import names_of, print_pairs
from kvbench.results.regressions import Limits, exceeded
from kvbench.results.table import print_table
from kvbench.results.tasks import print_tasks


def table(path: str, *, tasks: bool) -> None:
    """Print the table of a run, a sweep or a tree, or its scores task by task."""
    if tasks:
        print_tasks(load(path, samples=True), Console())
    else:
        print_table(load(path), Console(), path=Path(path))


def compare(
    a: str, b: str, *, same_strategy: bool, fail_above: float, fail_kv_above: float, fail_loss_above: float
) -> int:
    """Print how the runs of one folder did against those of another; 1 if a pair exceeds a limit, else 0."""
    limits = Limits(time=fail_above, kv=fail_kv_above, loss=fail_loss_above)
    pairs = compared(a, b, same_strategy=same_strategy)
    print_pairs(pairs, Console())
    found = exceeded(pairs, names_of(pairs), limits)
    for line in found:
        say(line)
    if limits.asked and not found:
        print(
            f"no pair of {len(pairs)} is above {', '.join(f'{flag} {limit:g}' for flag, limit in limits.asked.items())}"
        )
    return FAILED if found else 0


def export(path: str, file: str, *, steps: bool, samples: bool) -> None:
    """Write runs, their timed steps, or what was asked and answered, as csv or json."""
    frame = load(path, steps=steps, samples=samples)
    exported(frame, Path(file))
    print(f"{len(frame)} rows in {file}")


def compact(path: str) -> None:
    """Put the runs of a tree into few files, and say where they are."""
    done = compacted(Path(path))
    for sweep in done:
        print(f"{sweep.num_runs} runs in {sweep.folder}, {sweep.num_new} of them new there")
    if not done:
        print(f"nothing new below {path}")


def report(path: str, out: str) -> None:
    """Write one page about a run, a sweep or a tree."""
    from kvbench.report.page import write  # draws: the tables of a terminal do without matplotlib

    rows = write(path, Path(out))
    print(f"{rows} rows in {out}, {Path(out).stat().st_size / 2**20:.1f} MiB")
