"""Quality measured wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def off_by_one(add: Callable[..., None]) -> Callable[..., None]:
    """Return a count that scores each token by the next one's id."""

    def wrong(self: Any, logits: Any, reference: Any, target: Any) -> None:
        add(self, logits, reference, (target + 1) % logits.shape[-1])

    return wrong
