"""Where the stand-in computes."""

from __future__ import annotations

from types import SimpleNamespace

current_platform = SimpleNamespace(device_type="cpu")
