"""What to keep where, worked out from what a machine can do: pure functions, nothing is measured or allocated here."""
