"""Clocks, memory, roofline and the machine: the only code that knows time, and it knows no strategy and no model."""
