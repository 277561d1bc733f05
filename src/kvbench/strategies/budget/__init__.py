"""How many entries stay."""
