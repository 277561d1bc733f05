"""Broken variants, each of which an oracle must catch."""
