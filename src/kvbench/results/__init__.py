"""The record of a run: what its columns mean, how it is written, read, compared and shown. Knows no model, no clock."""
