"""What stands below the table that people read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvbench.results import elsewhere, scores, serving
from kvbench.results.cells import Row, has_quality, label_of, loss_tokens, ratio_of
from kvbench.results.control import no_better_than_random
from kvbench.results.labels import number

TITLE_WIDTH = 13
FAR_APART = 1.1  # times the quickest baseline's step, at which that is said
UNTRAINED = 0.97  # of the loss of whoever guesses, above which weights look as if they were never trained
_NOT_THE_BASELINES = ("strategy", "sink", "runs", "force", "compare", "plugins")  # keys of the configuration

_NUMBER = re.compile(r"\d+(?:\.\d+)?%?")

Named = Sequence[tuple[Row, str]]


@dataclass(frozen=True)
class Note:
    """A line below a table.

    Args:
        title: what it is about.
        text: what it says.
        style: dim where it explains, yellow where something is to be minded.
    """

    title: str
    text: str
    style: str = "dim"

    def __rich__(self) -> RenderableType:
        """Return the line, its text beside its title."""
        line = Table.grid(padding=(0, 1))
        line.add_column(width=TITLE_WIDTH, no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(Text(self.title, self.style), Text(self.text, self.style))
        return line


def legend(rows: Sequence[Row]) -> Iterator[Note]:
    """Yield what the columns are."""
    if any(ratio_of(row) for row in rows):
        what = "the prefill" if all(row["ratio"] is None for row in rows if ratio_of(row)) else "a decode step"
        what = "serving all requests" if any(row["requests"] for row in rows) else what
        yield Note("ratio", f"time of {what} over the baseline's, below 1 is faster, with its 95% interval")
        if any(row["ceiling"] for row in rows):
            yield Note("ceiling", "the most that the bytes read allow, as a speed-up")
    if any(row["status"] == "ok" for row in rows):
        loss = f"; nats per token above the full cache's loss{_behind(rows)}" if has_quality(rows) else ""
        yield Note("KV, loss" if loss else "KV", f"all storages of the cache on the device{loss}")


def _behind(rows: Sequence[Row]) -> str:
    """Return behind how many tokens losses were measured, where that is not the prompt's length."""
    asked = [row for row in rows if row["nll_nats"] is not None]
    lengths = sorted({loss_tokens(row) for row in asked} - {row["prompt_tokens"] for row in asked})
    return f", behind {', '.join(f'{length:,}' for length in lengths)} tokens" if lengths else ""


def of_rows(named: Named) -> Iterator[Note]:
    """Yield what is to be said of rows with their names; what holds for several of them once."""
    rows = [row for row, _ in named]
    for (title, style, reason), names in _reasons(named).items():
        yield Note(title, f"{', '.join(names)}: {reason}", style=style)
    for row, name in named:
        if name.endswith(f"({row['run_id']})"):
            yield Note("overrides", f"{row['run_id']}: {row['overrides'] or 'none'}")
    for row, name in named:
        if row["network"]:
            yield Note("network", f"{name} ran on {row['network']}: {_what_counts(row)}")
        if row["stored_ratio"]:
            stored, read = row["stored_ratio"], row["runtime_ratio"]
            is_random = row["fidelity"] == "structure_only"
            lacks = "; its blocks were never trained: quality does not exist" if is_random else ""
            said = f"of the prompt {stored:.1f}x fewer bytes to store and {read:.1f}x fewer to read"
            yield Note("context", f"{name}: {said}{lacks}")
    away = [row for row in rows if elsewhere.away(row)]
    for title, text in elsewhere.notes(away) if away else ():
        yield Note(title, text)
    for title, text in serving.notes(rows) if any(row["requests"] for row in rows) else ():
        yield Note(title, text)
    for title, text, style in scores.notes(rows) if any(row["asked_samples"] for row in rows) else ():
        yield Note(title, text, style)
    if any(row["regime"] == "overhead_bound" for row in rows):
        yield Note("overhead", "all that a step reads fits in the processor's own cache: its speed allows no verdict")
    if any(row["data_dependent"] for row in rows if row["weights"] == "random"):
        yield Note("bytes", "some strategies store what the data asks for: random weights do not ask", style="yellow")
    mine = [(row, name) for row, name in named if row["status"] == "ok" and row["budget_amount"] is not None]
    going_on = [name for row, name in mine if row["decode_rule"] is not None and not row["decode_rule"]]
    if going_on:
        yield Note("budget", f"{', '.join(going_on)}: of the prompt; what is decoded is kept on top of it")
    for row, lost in no_better_than_random(rows):
        yield Note("control", f"{label_of(row)} does not beat random_eviction at the same budget in {', '.join(lost)}")


def _what_counts(row: Row) -> str:
    """Return what of a row compares with the baseline's, which ran on another network."""
    if row["fidelity"] == "structure_only":
        return "times and bytes count, quality does not exist"
    return "losses per token do not compare" if row["nll_delta_nats"] is None else "losses are of the same tokens"


def _reasons(named: Named) -> dict[tuple[str, str, str], list[str]]:
    found: dict[tuple[str, str, str], list[str]] = {}
    unsure: dict[str, list[tuple[str, str]]] = {}  # by the reason without its numbers
    for row, name in named:
        if row["status"] != "ok":
            found.setdefault((row["status"].replace("_", " "), "yellow", row["reason"]), []).append(name)
        elif row["verdict"] == "inconclusive" and row["reason"]:
            unsure.setdefault(_NUMBER.sub("", row["reason"]), []).append((row["reason"], name))
    for pairs in unsure.values():
        reasons, names = zip(*pairs, strict=True)
        found["inconclusive", "dim", _in_one(reasons)] = list(names)
    return found


def _in_one(reasons: Sequence[str]) -> str:
    """Return what reasons say that differ in nothing but numbers, these from the least to the most."""
    said = []
    for numbers in zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True):
        least, *_, most = sorted([*numbers, numbers[0]], key=lambda number: float(number.rstrip("%")))
        said.append(least if least == most else f"{least} to {most}")
    pieces = _NUMBER.split(reasons[0])
    return "".join(piece + number for piece, number in zip(pieces, [*said, ""], strict=True))


def of_weights(row: Row) -> Note:
    """Return where a row's weights come from."""
    if row["weights"] == "random":
        loud = "RANDOM, the true architecture only: times and bytes count, quality does not exist"
        return Note("weights", loud, style="bold yellow")
    if row["weights"] == "embedded":
        return Note("weights", "embedded: a small model trained by kvbench and shipped with it")
    revision = f" ({row['model_revision']})" if row["model_revision"] else ""
    origin = f"{row['weights'] or 'unknown'}{revision}"
    if row["guess_nats"] and row["nll_nats"] > UNTRAINED * row["guess_nats"]:
        loss, guess = number(row["nll_nats"]), number(row["guess_nats"])
        said = f"their loss is {loss} nats per token, and guessing has {guess}: were they trained? no quality follows"
        return Note("weights", f"{origin}; {said}", style="bold yellow")
    return Note("weights", origin)


def of_baselines(shown: Row | None, baselines: Sequence[Row]) -> Iterator[Note]:
    """Yield in what the baselines of runs differ of which one is shown."""
    configs = [_flat(_own(row)) for row in baselines]
    keys = sorted({key for config in configs for key in config})
    found = [key for key in keys if len({config[key] for config in configs if key in config}) > 1]
    differing = [key.removesuffix("._target_") for key in found]
    times = [row["decode_p50_ms"] for row in baselines if row["decode_p50_ms"] is not None]
    if differing and shown:
        yield Note(
            "baseline",
            f"each run was timed against its own, and they differ in {', '.join(differing)}; "
            f"shown is that of {shown['run_id']}",
            style="yellow",
        )
    elif shown and times and max(times) > FAR_APART * min(times):
        least, most = number(min(times)), number(max(times))
        yield Note(
            "steps",
            f"each run was timed against its own baseline, whose steps took {least} to {most} ms; shown is that of "
            f"{shown['run_id']}, and a ratio is not that of two lines",
        )


def _own(row: Row) -> dict[str, object]:
    """Return the configuration of a baseline's run, without the engine of a black box that it was not run by."""
    config: dict[str, object] = json.loads(str(row["config_json"]))
    return {key: value for key, value in config.items() if key != "engine" or row["comparison"] != "unpaired"}


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if prefix or key not in _NOT_THE_BASELINES:
            name = f"{prefix}{key}"
            flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: json.dumps(value)}
    return flat
