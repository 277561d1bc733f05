"""Tests of what is written, read, compared and shown."""
