"""Token ids, spans and the order of forward passes: pure data."""
