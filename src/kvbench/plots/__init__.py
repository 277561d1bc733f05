"""Pictures: a table and axes in, the table of the plotted numbers out. They read no file and write none."""

from kvbench.plots.latency import decode_latency
from kvbench.plots.looks import caption
from kvbench.plots.memory import memory_against_context
from kvbench.plots.methods import by_category, bytes_held, overview, step_times, throughput, trade_off
from kvbench.plots.needles import needle_map
from kvbench.plots.pages import named_by_page, page_utilisation
from kvbench.plots.quality import quality_against_memory
from kvbench.plots.ratios import time_ratios
from kvbench.plots.text import held_text
from kvbench.plots.trace import attention_lost, held_positions

__all__ = [
    "attention_lost",
    "by_category",
    "bytes_held",
    "caption",
    "decode_latency",
    "held_positions",
    "held_text",
    "memory_against_context",
    "named_by_page",
    "needle_map",
    "overview",
    "page_utilisation",
    "quality_against_memory",
    "step_times",
    "throughput",
    "time_ratios",
    "trade_off",
]
