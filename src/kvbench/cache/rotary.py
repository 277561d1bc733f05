"""Turning rotated keys, for those who may not import kernels."""

from __future__ import annotations

from kvbench.kernels.rotary import turn

__all__ = ["turn"]
