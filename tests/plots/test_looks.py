"""Strategies look the same in every picture and unlike each other."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
from matplotlib.colors import to_rgb

from kvbench.plots.looks import looks, tokens_axis
from tests.plots.drawing import axes

NAMES = ["baseline", "attention_sink", "h2o", "knorm", "random_eviction", "sliding_window", "snapkv", "tova"]


def names(labels: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(labels, columns=["strategy", "label"])


def test_every_strategy_looks_unlike_the_others_and_budgets_share_its_colour() -> None:
    labels = [(name, f"{name} {budget}%") for name in NAMES[1:] for budget in (25, 50)]
    found = looks(names([*labels, ("baseline", "baseline")]))
    assert next(iter(found)) == "baseline"
    assert len(set(found.values())) == len(found)
    assert found["h2o 25%"].color == found["h2o 50%"].color
    assert found["h2o 25%"].marker == found["h2o 50%"].marker
    assert found["baseline"].color == "black"


def test_order_of_rows_changes_no_look() -> None:
    labels = [(name, name) for name in NAMES]
    assert looks(names(labels)) == looks(names(labels[::-1]))


def test_colours_differ_in_brightness_from_white_paper() -> None:
    for look in looks(names([(name, name) for name in NAMES])).values():
        red, green, blue = to_rgb(look.color)
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.75


def test_lengths_are_marked_as_far_as_they_fit() -> None:
    ax = axes()
    tokens_axis(ax, pd.Series([256, 512, 1024, 8192], dtype="Int64"))
    assert ax.get_xticks().tolist() == [8192, 1024, 256]


def test_results_and_plots_never_import_torch() -> None:
    code = (
        "import sys, kvbench.plots, kvbench.results.compare, kvbench.results.export, kvbench.results.sink\n"
        "import kvbench.results.table, kvbench.report.wandb_mirror\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules or 'wandb' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
