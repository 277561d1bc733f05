"""How one entry is written: what a layout keeps its keys and values in."""
