"""Pictures: a table and axes in, the table of the plotted numbers out. They read no file and write none."""

from kvbench.plots.compared import compared
from kvbench.plots.elsewhere import where_bytes_lie
from kvbench.plots.latency import decode_latency
from kvbench.plots.looks import caption
from kvbench.plots.memory import memory_against_context
from kvbench.plots.methods import by_category, bytes_held, overview, step_times, trade_off
from kvbench.plots.needles import needle_map
from kvbench.plots.pages import named_by_page, page_utilisation
from kvbench.plots.panels import kinds, of_kind, panels, sign
from kvbench.plots.quality import quality_against_memory
from kvbench.plots.ratios import time_ratios
from kvbench.plots.text import held_text
from kvbench.plots.throughput import throughput
from kvbench.plots.trace import attention_lost, held_positions
from kvbench.plots.waits import first_tokens

__all__ = [
    "attention_lost",
    "by_category",
    "bytes_held",
    "caption",
    "compared",
    "decode_latency",
    "first_tokens",
    "held_positions",
    "held_text",
    "kinds",
    "memory_against_context",
    "named_by_page",
    "needle_map",
    "of_kind",
    "overview",
    "page_utilisation",
    "panels",
    "quality_against_memory",
    "sign",
    "step_times",
    "throughput",
    "time_ratios",
    "trade_off",
    "where_bytes_lie",
]
