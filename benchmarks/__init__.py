"""Timings, each with its command, hardware and parquet. Nothing here is a test."""
