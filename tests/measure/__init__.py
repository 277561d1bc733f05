"""Tests of what knows time, on a device that only pretends."""
