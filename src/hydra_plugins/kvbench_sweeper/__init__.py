"""Hydra finds sweepers in this namespace only."""
