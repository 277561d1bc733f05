"""Tests of pictures: what is drawn is what is returned, and what is returned is what was measured."""
