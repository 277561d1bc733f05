"""Quality measured wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def off_by_one(add: Callable[..., None]) -> Callable[..., None]:
    """Return a count that scores each token by the next one's id."""

    def wrong(self: Any, logits: Any, target: Any) -> None:
        add(self, logits, (target + 1) % logits[0].shape[-1])

    return wrong
