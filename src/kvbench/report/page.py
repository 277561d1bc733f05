"""The page itself."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import pandas as pd

from kvbench.report import figures, tables
from kvbench.results.cells import Row, plain
from kvbench.results.load import load
from kvbench.results.table import Shown, groups_of, heading_of, names_of, notes_of, parts_of

_LENGTHS = ["model", "weights", "dtype", "workload", "batch_size", "query_aware", "device_name", "evidence"]
_VERSIONS = ("python", "torch", "transformers", "triton", "vllm", "kvbench")
_PLAIN = ("run_id", "created_at", "model", "workload", "seed")  # columns of a run that need no words


def write(path: str | Path, file: Path) -> int:
    """Write a page about a tree of runs, and return how many rows there are.

    Args:
        path: of a run, a sweep or a whole tree.
        file: to write.

    Raises:
        ValueError: if there is nothing to show, or the file cannot be written.
    """
    runs = load(path)
    text = "\n".join(page(runs, load(path, steps=True), title=str(path)))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}. Give another file with -o.") from error
    return len(runs)


def page(runs: pd.DataFrame, steps: pd.DataFrame, *, title: str) -> Iterator[str]:
    """Yield a page, a piece at a time.

    Args:
        runs: as `kvbench.load` returns them.
        steps: as `kvbench.load(path, steps=True)` returns them.
        title: what the runs are called.
    """
    groups = list(groups_of(runs))
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "sort.js"))
    allowed = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>kvbench: {escape(title)}</title><style>{style}</style></head><body>"
    yield f"<header><h1>kvbench: {escape(title)}</h1>"
    yield from _summary(plain(runs))
    yield "</header><nav aria-label='Sections'><ul>"
    yield from (f'<li><a href="#g{at}">{escape(heading_of(one.known).plain)}</a></li>' for at, one in enumerate(groups))
    yield '<li><a href="#lengths">Lengths</a></li><li><a href="#origin">Where the numbers come from</a></li></ul></nav>'
    yield "<main>"
    for at, group in enumerate(groups):
        yield from _section(f"g{at}", group, runs)
    yield from _lengths(runs, steps)
    yield from _origin(plain(runs))
    yield f"</main><script>{script}</script></body></html>"


def _hash(text: str) -> str:
    """Return what a browser compares a style or a script with before it is used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    ours = [row for row in rows if row["arm"] == "strategy"]
    ended = Counter(str(row["status"]).replace("_", " ") for row in ours)
    counts = sorted(ended.items(), key=lambda one: (-one[1], one[0]))
    count = ", ".join(f"{number} {status}" for status, number in counts)
    yield f"<p>{len(ours)} runs: {escape(count)}. Click a heading to sort; what a column is stands below its table.</p>"
    changed = sorted({str(row["git_commit"])[:12] for row in ours if row["git_dirty"]})
    if changed:
        yield f'<p class="mind">Made with changes that no commit has, at {escape(", ".join(changed))}.</p>'
    hashes = {row["source_hash"] for row in ours}
    if len(hashes) > 1:
        yield f'<p class="mind">{len(hashes)} versions of the sources made these: see where the numbers come from.</p>'


def _section(name: str, group: Shown, runs: pd.DataFrame) -> Iterator[str]:
    named = list(zip(group.rows, names_of(group), strict=True))
    yield f'<section id="{name}" aria-labelledby="{name}-head"><h2 id="{name}-head">'
    yield f"{escape(heading_of(group.known).plain)}</h2>"
    for part in (tables.main_part(named), *parts_of(named)):
        yield from tables.html_of(part)
    yield from tables.notes(list(notes_of(group)))
    ours = {(row["sweep"], row["run_id"]) for row in group.rows}
    mine = runs[[pair in ours for pair in zip(runs["sweep"], runs["run_id"], strict=True)]]
    yield '<div class="figures">'
    yield from (figures.html_of(picture, _made_on(group.rows)) for picture in figures.of_group(mine))
    yield "</div></section>"


def _lengths(runs: pd.DataFrame, steps: pd.DataFrame) -> Iterator[str]:
    """Yield pictures of what was measured at several lengths."""
    yield '<section id="lengths" aria-labelledby="lengths-head"><h2 id="lengths-head">Lengths</h2>'
    yield '<div class="figures">'
    drawn = 0
    for kind, mine in runs[runs["status"] == "ok"].groupby(_LENGTHS, sort=False, dropna=False):
        timed = steps[steps["run_id"].isin(mine["run_id"]) & steps["sweep"].isin(mine["sweep"])]
        for picture in figures.of_lengths(mine, timed):
            drawn += 1
            yield figures.html_of(picture, f"{kind[0]}, {kind[3]}. {_made_on(plain(mine))}")
    if not drawn:
        yield "<p>Nothing was measured at several lengths.</p>"
    yield "</div></section>"


def _made_on(rows: Sequence[Row]) -> str:
    """Return hardware and commit, for a caption."""
    machines = dict.fromkeys(str(row["device_name"] or row["device"]) for row in rows if row["status"] == "ok")
    commits = dict.fromkeys(f"commit {_commit(row)}" for row in rows if row["git_commit"])
    return ", ".join([*machines, *commits]) + "."


def _commit(row: Row) -> str:
    return f"{str(row['git_commit'])[:12]}{' with changes' if row['git_dirty'] else ''}" if row["git_commit"] else "-"


def _origin(rows: Sequence[Row]) -> Iterator[str]:
    yield '<section id="origin" aria-labelledby="origin-head"><h2 id="origin-head">Where the numbers come from</h2>'
    titles = ("strategy", "status", "run", "begun", "model", "workload", "seed", "weights", "command", "commit")
    more = ("sources", "device", "threads", "driver", "load", "versions", "configuration")
    heads = [tables.head(title, is_number=title in ("seed", "threads", "load")) for title in (*titles, *more)]
    ours = [row for row in rows if row["arm"] == "strategy"]
    yield from tables.table("runs", heads, (_origin_cells(row) for row in ours))
    yield "</section>"


def _origin_cells(row: Row) -> list[str]:
    known = [str(row[name]) for name in _PLAIN]
    versions = ", ".join(f"{name} {row[name]}" for name in _VERSIONS if row[name])
    weights = " ".join(str(row[name]) for name in ("weights", "model_revision", "network") if row[name])
    config = json.dumps(json.loads(row["config_json"]), indent=1)
    return [
        f'<th scope="row">{escape(str(row["strategy"]))}</th>',
        tables.cell(str(row["status"]).replace("_", " "), False),
        *(tables.cell(text, name == "seed") for name, text in zip(_PLAIN, known, strict=True)),
        tables.cell(weights, False),
        f"<td><code>python run.py {escape(str(row['overrides'] or ''))}</code></td>",
        tables.cell(_commit(row), False),
        tables.cell(str(row["source_hash"])[:12], False),
        tables.cell(str(row["device_name"] or row["device"]), False),
        tables.cell(str(row["num_threads"] or ""), True),
        tables.cell(str(row["driver"] or ""), False),
        tables.cell("" if row["load_1min"] is None else f"{row['load_1min']:.2f}", True),
        tables.cell(versions, False),
        f"<td><details><summary>{escape(str(row['config_hash']))}</summary><pre>{escape(config)}</pre></details></td>",
    ]
