"""Pictures: a table and axes in, the table of the plotted numbers out. They read no file and write none."""

from kvbench.plots.latency import decode_latency
from kvbench.plots.memory import memory_against_context
from kvbench.plots.quality import quality_against_memory
from kvbench.plots.trace import held_positions

__all__ = ["decode_latency", "held_positions", "memory_against_context", "quality_against_memory"]
