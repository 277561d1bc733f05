"""What a table says of questions that were asked and answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from kvbench.results.cells import NOTHING, Field, Row, Units

COLUMNS = (("strategy",), ("score",), ("score_interval",), ("delta",), ("delta_interval",), ("said",), ("samples",))
LENGTHS = (("strategy",), ("length",), ("length_ratio",), ("length_interval",), ("ended",), ("same",), ("samples",))
_GATE = ("at_chance", "off_reference")  # verdicts that are the baseline's, whatever the strategy
_STYLES = {"better": "green", "worse": "red"}


def notes(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Yield titles, sentences and styles that say what the columns are, and what nothing can be said of."""
    if all(row["score"] is None for row in rows):
        yield "answers", "tokens of one in the mean, and of all over the full cache's with the 95% interval", "dim"
        yield "ended", "answers that the model ended by itself; same: those that are the full cache's", "dim"
        return
    yield "score", "of answers generated through the cache: mean over tasks, with its 95% interval", "dim"
    if any(row["score_delta"] is not None for row in rows):
        yield "over full", "points above the full cache's score, sample by sample, with the 95% interval", "dim"
    for reason in sorted({row["score_reason"] for row in rows if row["score_verdict"] in _GATE}):
        yield "gate", reason, "yellow"


def columns_of(rows: Sequence[Row]) -> Sequence[tuple[str, ...]]:
    """Return what is shown: scores, or how long answers are where nothing is right or wrong."""
    return LENGTHS if all(row["score"] is None for row in rows) else COLUMNS


def _percent(column: str, form: str) -> Callable[[Row, Units], str]:
    return lambda row, units: NOTHING if row[column] is None else format(100 * row[column], form)


def _real(column: str, form: str) -> Callable[[Row, Units], str]:
    return lambda row, units: NOTHING if row[column] is None else format(row[column], form)


def _interval(column: str, form: str, times: int = 100) -> Callable[[Row, Units], str]:
    def text(row: Row, units: Units) -> str:
        ends = (row[f"{column}_low"], row[f"{column}_high"])
        return NOTHING if None in ends else f"[{', '.join(format(times * end, form) for end in ends)}]"

    return text


def _said(row: Row, units: Units) -> str | Text:
    verdict = row["score_verdict"]
    if verdict is None or verdict == "none":
        return NOTHING
    return Text(verdict.replace("_", " "), _STYLES.get(verdict, "yellow" if verdict in _GATE else ""))


FIELDS: dict[str, Field] = {
    "score": Field(title="score", unit="%", text=_percent("score", ".1f"), justify="right"),
    "score_interval": Field(title="interval", unit="", text=_interval("score", ".1f"), justify="right"),
    "delta": Field(title="over full", unit="points", text=_percent("score_delta", "+.1f"), justify="right"),
    "delta_interval": Field(title="interval", unit="", text=_interval("score_delta", "+.1f"), justify="right"),
    "said": Field(title="verdict", unit="", text=_said, justify="left"),
    "samples": Field(
        title="samples",
        unit="",
        text=lambda row, units: NOTHING if row["asked_samples"] is None else f"{row['asked_samples']:,}",
        justify="right",
    ),
    "length": Field(title="length", unit="tokens", text=_real("answer_length", ".1f"), justify="right"),
    "length_ratio": Field(title="over full", unit="ratio", text=_real("length_ratio", ".3f"), justify="right"),
    "length_interval": Field(title="interval", unit="", text=_interval("length_ratio", ".3f", 1), justify="right"),
    "ended": Field(title="ended", unit="%", text=_percent("ended_share", ".1f"), justify="right"),
    "same": Field(title="same", unit="%", text=_percent("same_share", ".1f"), justify="right"),
}
