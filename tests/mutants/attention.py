"""Attention that is not the model's."""

from __future__ import annotations

from typing import Any

from kvbench.kernels.attend import attend_one


def without_scale(query: Any, tiles: Any, scale: float, **keywords: Any) -> Any:
    """Attend with logits that are not scaled."""
    return attend_one(query, tiles, 1.0, **keywords)
