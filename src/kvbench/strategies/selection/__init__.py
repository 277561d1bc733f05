"""Which entries stay: scorers and selectors."""
