"""A text, token by token, and how much of it a cache still holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.textpath import TextPath, text_to_path
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Affine2D

from kvbench.plots.trace import shares

COLUMNS: Final = 90  # characters to a line
MOST_TOKENS: Final = 320  # that are written out; of longer texts the beginning and the end
_LINE_HEIGHT = 2.2  # characters' widths
_FONT = FontProperties(family="DejaVu Sans Mono", size=100)  # comes with matplotlib
_SIZE = 100 / text_to_path.get_text_width_height_descent("0", _FONT, False)[0]  # at which a character is 1 wide
_MAP = colormaps["Blues"]
_LEFT_OUT = -1  # stands for the tokens that are


class _Run(NamedTuple):
    """Characters of one token on one line."""

    line: int
    column: int
    text: str
    token: int


def held_text(held: pd.DataFrame, pieces: Sequence[str], ax: Axes, *, prompt_tokens: int) -> pd.DataFrame:
    """Write a text and colour each token: the darker, the more heads of all layers hold it at the end.

    Of a text of more than `MOST_TOKENS` tokens the middle is left out. Lines of the text stay lines.

    Args:
        held: one row per entry: step, layer, head, position; of the steps the last one counts.
        pieces: what each token adds to the text.
        ax: to draw on.
        prompt_tokens: how many of them are the prompt; a bar stands behind it.

    Returns:
        The plotted table: position, piece, share (of heads that hold it).
    """
    end = shares(held[held["step"] == held["step"].max()], "step")
    table = pd.DataFrame({"position": range(len(pieces)), "piece": pieces})
    table["share"] = table["position"].map(end.set_index("position")["share"]).fillna(0.0)
    runs = list(_runs(pieces))
    for run in runs:
        _write(run, 0.0 if run.token == _LEFT_OUT else table["share"][run.token], ax)
        if run.token >= prompt_tokens > 0:
            top, prompt_tokens = run.line * _LINE_HEIGHT, 0
            ax.plot([run.column] * 2, [top, top + _LINE_HEIGHT], color="#D55E00", linewidth=2.5)
    ax.set(xlim=(-0.5, COLUMNS + 0.5), ylim=(_LINE_HEIGHT * (runs[-1].line + 1), 0), aspect="equal")
    ax.set_axis_off()
    ax.figure.colorbar(
        ScalarMappable(cmap=_MAP),
        ax=ax,
        label="share of heads that hold a token at the end; the bar is where the prompt ends",
        format=PercentFormatter(1, decimals=0),
        location="bottom",
        shrink=0.5,
        aspect=40,
    )
    return table[_is_shown(len(pieces))].reset_index(drop=True)


def height_of(pieces: Sequence[str], width: float) -> float:
    """Return how high a text is that is written so wide."""
    return width / COLUMNS * _LINE_HEIGHT * (1 + max(run.line for run in _runs(pieces)))


def _is_shown(tokens: int) -> np.ndarray:
    at, half = np.arange(tokens), MOST_TOKENS // 2
    return (at < half) | (at >= tokens - half) | (tokens <= MOST_TOKENS)


def _runs(pieces: Sequence[str]) -> Iterator[_Run]:
    """Yield what stands where, in order."""
    for _, group in groupby(_cells(pieces), key=lambda cell: (cell.line, cell.token)):
        cells = list(group)
        yield cells[0]._replace(text="".join(cell.text for cell in cells))


def _cells(pieces: Sequence[str]) -> Iterator[_Run]:
    """Yield every character that is shown: words stay whole where they fit, and lines end where the text's do."""
    owned = [(token, character) for token, piece in enumerate(pieces) for character in piece]
    shown = _is_shown(len(pieces))
    if not shown.all():
        first, last = (int(at) for at in np.flatnonzero(~shown)[[0, -1]])
        note = [(_LEFT_OUT, character) for character in f"\n... {last - first + 1} tokens ...\n"]
        owned = [cell for cell in owned if cell[0] < first] + note + [cell for cell in owned if cell[0] > last]
    line = column = 0
    for word in re.finditer(r"\s|\S+", "".join(character for _, character in owned)):
        if column + len(word[0]) > COLUMNS and column > 0:
            line, column = line + 1, 0
        for token, character in owned[word.start() : word.end()]:
            if column == COLUMNS:
                line, column = line + 1, 0
            yield _Run(line, column, character, token)
            line, column = (line + 1, 0) if character == "\n" else (line, column + 1)


def _write(run: _Run, share: float, ax: Axes) -> None:
    """Draw characters on what says how much of their token is held, as shapes that scale with it."""
    top = run.line * _LINE_HEIGHT
    if run.token != _LEFT_OUT:
        box = Rectangle((run.column, top), len(run.text), _LINE_HEIGHT, facecolor=_MAP(share), edgecolor="white")
        ax.add_patch(box)
    text = "".join(map(_visible, run.text if run.token != _LEFT_OUT else run.text.strip()))
    if not text.strip():  # matplotlib makes no shapes of nothing
        return
    ink = "white" if share > 0.68 else "0.05" if share > 0 else "0.45"  # whichever stands out more
    letters = TextPath((0, 0), text, size=_SIZE, prop=_FONT)
    turned = Affine2D().scale(1, -1).translate(run.column, top + 0.7 * _LINE_HEIGHT)  # y goes down
    ax.add_patch(PathPatch(turned.transform_path(letters), facecolor=ink, lw=0, zorder=2, snap=False))


def _visible(character: str) -> str:
    """Return what stands for a character: itself, if the font has it."""
    if character.isspace():
        return "\u21b5" if character == "\n" else " "
    return character if _font().get_char_index(ord(character)) else "\u25a1"


@cache
def _font() -> FT2Font:
    return get_font(findfont(_FONT))
