"""Figures of a page: drawn by kvbench.plots, kept in it as pictures that need no other file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from io import BytesIO

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvbench.plots import decode_latency, memory_against_context, quality_against_memory, time_ratios
from kvbench.results.labels import labels

_QUALITIES = {
    "nll_delta_nats": "Loss above the full cache's against the bytes of the cache",
    "score": "Score against the bytes of the cache",
    "recall_key_value": "Values recalled against the bytes of the cache",
}
_BYTES = {
    "kv_allocated_bytes": "Bytes of the cache against the length of the prompt",
    "peak_bytes": "Peak memory above the loaded model against the length of the prompt",
}
_NO_DIFFERENCE = 1e-5  # of a quality: what float32 makes of the same sum in another order
_LINE = 0.28  # inches for a row of a picture


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What may be drawn.

    Args:
        name: that a file could have.
        title: of the picture.
        draw: on axes, and returns what was drawn.
        height: in inches.
    """

    name: str
    title: str
    draw: Callable[[Axes], pd.DataFrame]
    height: float

    def drawn(self) -> tuple[Figure, pd.DataFrame] | str:
        """Return the figure and what was drawn, or why that does not go together."""
        figure = Figure(figsize=(8, self.height), layout="constrained")
        try:
            return figure, self.draw(figure.subplots())
        except ValueError as error:
            return str(error)


def of_group(runs: pd.DataFrame) -> Iterator[Picture]:
    """Yield what the rows of one model, workload and length show."""
    good = runs[runs["status"] == "ok"]
    at_zero = (good["arm"] == "baseline") & good["nll_delta_nats"].isna() & good["nll_nats"].notna()
    good = good.assign(nll_delta_nats=good["nll_delta_nats"].mask(at_zero, 0.0))  # from which it is measured
    for column, title in _QUALITIES.items():
        asked = good[good[column].notna() & good["kv_allocated_bytes"].notna()]
        if labels(asked).nunique() > 1 and asked[column].max() - asked[column].min() > _NO_DIFFERENCE:
            yield Picture(name=f"{column}_by_bytes", title=title, draw=_of_quality(good, column), height=4.2)
    for column, what in (("ratio", "A decode step"), ("ttft_ratio", "The prefill")):
        rows = int((good["arm"].eq("strategy") & good[column].notna() & good[f"{column}_low"].notna()).sum())
        if rows:
            yield Picture(
                name=column,
                title=f"{what} over the full cache's",
                draw=_of_ratios(good, column),
                height=1.0 + _LINE * rows,
            )


def of_lengths(runs: pd.DataFrame, steps: pd.DataFrame) -> Iterator[Picture]:
    """Yield what the rows of one model and workload show of several lengths."""
    good = runs[runs["status"] == "ok"]
    timed = steps[(steps["phase"] == "decode") & steps["is_clean"]]
    if timed["prompt_tokens"].nunique() > 1:
        title = "Time of a decode step against context"
        yield Picture(name="decode_ms_by_context", title=title, draw=_of_steps(timed), height=4.2)
    for column, title in _BYTES.items():
        if good[good[column].notna()]["prompt_tokens"].nunique() > 1:
            yield Picture(name=f"{column}_by_length", title=title, draw=_of_bytes(good, column), height=4.2)


def _of_quality(runs: pd.DataFrame, column: str) -> Callable[[Axes], pd.DataFrame]:
    return lambda ax: quality_against_memory(runs, ax, column=column)  # type: ignore[arg-type]


def _of_ratios(runs: pd.DataFrame, column: str) -> Callable[[Axes], pd.DataFrame]:
    return lambda ax: time_ratios(runs, ax, column=column)  # type: ignore[arg-type]


def _of_steps(steps: pd.DataFrame) -> Callable[[Axes], pd.DataFrame]:
    return lambda ax: decode_latency(steps, ax)


def _of_bytes(runs: pd.DataFrame, column: str) -> Callable[[Axes], pd.DataFrame]:
    return lambda ax: memory_against_context(runs, ax, column=column)  # type: ignore[arg-type]


def html_of(picture: Picture, caption: str) -> str:
    """Return a figure with its picture inside; where it cannot be drawn, the reason stands there.

    Args:
        picture: what to draw.
        caption: hardware and commit.
    """
    made = picture.drawn()
    if isinstance(made, str):
        return f'<p class="mind">{escape(picture.title)} is not drawn: {escape(made)}</p>'
    figure, table = made
    names = ", ".join(dict.fromkeys(str(name) for name in table["strategy"]))
    told = f"{picture.title}: {names}. The numbers are in the tables."
    source = base64.b64encode(_svg(figure)).decode()
    image = f'<img alt="{escape(told)}" src="data:image/svg+xml;base64,{source}">'
    return f"<figure>{image}<figcaption>{escape(picture.title)}. {escape(caption)}</figcaption></figure>"


def _svg(figure: Figure) -> bytes:
    """Return a picture; the same for the same numbers."""
    out = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "kvbench"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
