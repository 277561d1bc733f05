"""A text shows what is held of it: every token where it stands, as dark as the heads that hold it are many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle

from kvbench.plots import held_text
from kvbench.plots.text import COLUMNS, MOST_TOKENS, height_of
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes
from tests.plots.test_trace import HELD

PIECES = ["The ", "end", ".\n", "Now"]
SHARES = [0.25, 0.0, 0.0, 0.75]  # of the four heads of HELD's last step


def boxes(ax: Axes) -> list[tuple[int, float, int, tuple[float, ...]]]:
    """Return the column, the line from the top, the characters and the colour of each box, in order."""
    found = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    height = found[0].get_height()
    return [
        (round(box.get_x()), box.get_y() / height, round(box.get_width()), box.get_facecolor())  # type: ignore[misc]
        for box in found
    ]


def held(*positions: int) -> pd.DataFrame:
    """Return a trace of one head."""
    return pd.DataFrame([(0, 0, 0, at) for at in positions], columns=["step", "layer", "head", "position"])


def check_tokens_have_their_colours(plot: Callable[..., pd.DataFrame]) -> None:
    """What one of four heads holds at the end of the second step is a quarter dark, where its letters are."""
    ax = axes()
    table = plot(HELD, PIECES, ax, prompt_tokens=3)
    assert table["piece"].tolist() == PIECES
    assert table["share"].tolist() == SHARES
    places = [(0, 0, 4), (4, 0, 3), (7, 0, 2), (0, 1, 3)]
    colours = [colormaps["Blues"](share) for share in SHARES]
    assert boxes(ax) == [(*place, colour) for place, colour in zip(places, colours, strict=True)]


def test_tokens_have_their_colours() -> None:
    check_tokens_have_their_colours(held_text)


@pytest.mark.parametrize("mutant", mutants.TEXTS)
def test_oracle_catches_other_colours(mutant: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(AssertionError):
        check_tokens_have_their_colours(mutant)


def test_a_bar_stands_where_the_prompt_ends() -> None:
    ax = axes()
    held_text(HELD, PIECES, ax, prompt_tokens=2)
    (bar,) = ax.get_lines()
    assert set(np.asarray(bar.get_xdata())) == {7.0}
    ax = axes()
    held_text(HELD, PIECES, ax, prompt_tokens=4)
    assert not ax.get_lines()


def test_words_stay_whole_and_lines_end_where_the_text_does() -> None:
    words = [f"{'w' * (1 + at % 7)} " for at in range(100)]
    ax = axes()
    held_text(held(0), words, ax, prompt_tokens=1)
    lines: dict[float, str] = {}
    for (column, line, size, _), word in zip(boxes(ax), words, strict=True):
        assert size == len(word), "a word is broken"
        assert column == len(lines.get(line, ""))
        lines[line] = lines.get(line, "") + word
    assert [*lines] == [float(line) for line in range(len(lines))]
    assert all(COLUMNS - 9 < len(line) <= COLUMNS for line in [*lines.values()][:-1])
    assert height_of(words, 2.0) == pytest.approx(len(lines) * height_of(["one line"], 2.0))


def test_a_word_longer_than_a_line_is_broken() -> None:
    ax = axes()
    held_text(held(1), ["short ", "x" * (2 * COLUMNS + 1)], ax, prompt_tokens=1)
    assert [box[:3] for box in boxes(ax)] == [(0, 0, 6), (0, 1, COLUMNS), (0, 2, COLUMNS), (0, 3, 1)]


def test_of_a_long_text_the_middle_is_left_out() -> None:
    pieces = [f"{at} " for at in range(MOST_TOKENS + 10)]
    ax, half = axes(), MOST_TOKENS // 2
    table = held_text(held(half - 1, half, half + 10), pieces, ax, prompt_tokens=2)
    assert table["position"].tolist() == [*range(half), *range(half + 10, MOST_TOKENS + 10)]
    assert table["share"].sum() == 2  # the one between is not shown
    assert len(boxes(ax)) == MOST_TOKENS
    assert len(held_text(held(0), pieces[:MOST_TOKENS], axes(), prompt_tokens=2)) == MOST_TOKENS


@pytest.mark.parametrize(
    "pieces", [["\u4e2d", "\u6587"], ["\t", "x"], ["", "x"], [" ", "\n"], ["_", "-"]], ids=["no glyph", *"tebr"]
)
def test_whatever_a_tokenizer_says_can_be_drawn(pieces: Sequence[str]) -> None:
    """Warnings are errors here: of a glyph that the font lacks matplotlib would warn."""
    ax = axes()
    held_text(held(0), pieces, ax, prompt_tokens=1)
    assert len(boxes(ax)) == sum(map(bool, pieces))
    letters = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
    assert len(letters) == sum(bool(piece.replace("\n", "-").strip()) for piece in pieces)


def test_nothing_held_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw: no entry is held"):
        held_text(HELD.iloc[:0], PIECES, axes(), prompt_tokens=3)
