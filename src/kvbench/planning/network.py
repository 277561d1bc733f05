"""The sizes of a network that bytes and operations depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

SCALE_BYTES = 4  # a group's scale and offset, two bytes each
LOGIT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Network:
    """A causal language model without its weights.

    Args:
        windows: tokens that each layer sees; 0 for a layer that sees all.
        hidden: width of a token between the layers.
        intermediate: width inside the feed-forward parts.
        vocabulary: tokens there are.
        query_heads: of a layer.
        kv_heads: of a layer.
        key_dim: width of a key.
        value_dim: width of a value.
        number_bytes: of a number as the model computes.
        weights_bytes: that the model holds.
        read_parameters: weights that a token is multiplied with, those of the logits included.
        launches: kernels of a decode step.
    """

    windows: tuple[int, ...]
    hidden: int
    intermediate: int
    vocabulary: int
    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    number_bytes: int
    weights_bytes: int
    read_parameters: int
    launches: int

    @property
    def kv_width(self) -> int:
        """Numbers of a token's keys and values in a layer."""
        return self.kv_heads * (self.key_dim + self.value_dim)

    @property
    def activation_bytes(self) -> int:
        """Bytes of a token's input of a layer's attention."""
        return self.hidden * self.number_bytes

    @property
    def recompute_flops(self) -> int:
        """Operations that make a token's keys and values of a layer from that input."""
        return 2 * self.hidden * self.kv_width

    def kv_bytes(self, bits: int, group: int) -> float:
        """Return the bytes of a token's keys and values in a layer.

        Args:
            bits: per number; with 16 and more there are no scales.
            group: packed numbers that share a scale and an offset.
        """
        return self.kv_width * (bits / 8 + (SCALE_BYTES / group if bits < 16 else 0))

    def num_full(self, context: int) -> int:
        """Return the layers that hold every token: those which a placement is about."""
        return sum(not 0 < window < context for window in self.windows)

    def held_tokens(self, context: int) -> int:
        """Return the tokens that all layers hold together."""
        return sum(min(context, window) if window else context for window in self.windows)


class Widths(Protocol):
    """What activations depend on."""

    @property
    def hidden(self) -> int:
        """Width of a token between the layers."""

    @property
    def intermediate(self) -> int:
        """Width inside the feed-forward parts."""

    @property
    def vocabulary(self) -> int:
        """Tokens there are."""


def activations_bytes(widths: Widths, number_bytes: int, batch_size: int, tokens: int) -> int:
    """Return what a pass needs beside weights and cache: a layer's activations and one row of logits each.

    Args:
        widths: of the model.
        number_bytes: of a number as it computes.
        batch_size: rows.
        tokens: of the pass, per row; attention keeps no square of them.
    """
    width = 10 * widths.hidden + 2 * widths.intermediate
    return batch_size * (tokens * width * number_bytes + widths.vocabulary * LOGIT_BYTES)
