"""What codecs that keep some numbers of a token as they are have in common."""

from __future__ import annotations

from kvbench.types import ModelView

CHANNELS = 2**15  # that 16 bits tell apart


def too_many_channels(view: ModelView, codec: str) -> str | None:
    """Return why a codec cannot say which numbers of a model's tokens stay, or None."""
    most = max(layer.kv_heads * max(layer.key_dim, layer.value_dim) for layer in view.layers)
    if most <= CHANNELS:
        return None
    return (
        f"strategy/codec={codec} keeps the channel of an outlier in 16 bits, and a token of this model has {most} "
        f"numbers; use strategy/codec=kivi2 or kivi4"
    )
