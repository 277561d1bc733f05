"""Both sides of a layer, where each is written in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from kvbench.cache.codecs.base import Format


@dataclass(frozen=True, kw_only=True)
class LayerSides:
    """What is written of a layer whose heads do not differ, or are written together.

    Args:
        key_format: of keys.
        value_format: of values.
        writes_each_token_alone: whether an entry can be written, and overwritten, without any other.
        flush_tokens: tokens that are packed at once while decoding.
        num_sink: first slots of a row, which are written another way than the others.
        fixed_bytes: that do not depend on the number of entries.
    """

    is_exact: ClassVar[bool] = False

    key_format: Format
    value_format: Format
    writes_each_token_alone: bool
    flush_tokens: int
    num_sink: int
    fixed_bytes: int

    def of_heads(self, heads: slice) -> Self:
        """Return the codec itself."""
        return self
