"""How many tokens' keys and values to compute again while those of the others are on their way."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Literal

from kvbench.planning.machine import Rate

Mode = Literal["paper", "pipelined", "resident"]
MODES: tuple[Mode, ...] = ("paper", "pipelined", "resident")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen and why.

    Args:
        value: tokens.
        reason: in a sentence.
    """

    value: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class LayerFetch:
    """A layer's tokens that lie across a link, and what it takes to have their keys and values on the device.

    Args:
        activation_bytes: of a token's input of the attention, all rows of the batch.
        kv_bytes: of its keys and values, all rows, as they are stored.
        recompute_flops: operations that make those from that, all rows.
        link: to the device.
        compute: of the product that makes keys and values; its latency is that of a call.
        block: tokens that are moved, or computed again, at once.
        mode: "paper": activations first, then keys and values beside the computation (KVPR's order); "pipelined": a
            block of activations is computed while the next one is on its way; "resident": activations lie on the
            device.
    """

    activation_bytes: float
    kv_bytes: float
    recompute_flops: float
    link: Rate
    compute: Rate
    block: int
    mode: Mode

    def __post_init__(self) -> None:
        """Refuse what is no layer."""
        if self.mode not in MODES:
            raise ValueError(f"the mode must be one of {', '.join(MODES)}; got {self.mode!r}.")
        if self.block < 1:
            raise ValueError(f"block= must be at least 1 token; got {self.block}.")
        if min(self.activation_bytes, self.kv_bytes, self.recompute_flops) <= 0:
            raise ValueError(
                "a token must have activations, keys and values; got "
                f"{self.activation_bytes} and {self.kv_bytes} bytes, {self.recompute_flops} operations."
            )

    def seconds(self, recomputed: int, tokens: int) -> float:
        """Return how long it takes until all keys and values are on the device [s].

        Args:
            recomputed: tokens, of the first ones, whose activations come instead.
            tokens: across the link.
        """
        blocks = -(-recomputed // self.block)
        activations = recomputed * self.activation_bytes
        others = self.link.seconds((tokens - recomputed) * self.kv_bytes)
        operations = recomputed * self.recompute_flops
        if self.mode == "paper":
            return self.link.seconds(activations) + max(self.compute.seconds(operations), others)
        if self.mode == "resident":
            return max(self.compute.seconds(operations), others)
        one = min(recomputed, self.block)
        first = self.link.seconds(one * self.activation_bytes)
        came = self.link.seconds(activations, blocks)
        last = self.compute.seconds(one * self.recompute_flops)
        return max(came + others, came + last, first + self.compute.seconds(operations, blocks))


def recompute_length(tokens: int, fetch: LayerFetch) -> Choice:
    """Return how many of a layer's first tokens to compute again: a multiple of the block that takes the least time.

    Source: KVPR (Jiang et al., arXiv:2411.17089), the objective of its scheduler; "pipelined" and "resident" are not
    in it. The time is convex between the ends, so that the optimum is beside the point at which two lines cross, or at
    an end, where a latency less is paid.

    Args:
        tokens: of the layer that lie across the link.
        fetch: what they cost.
    """
    if tokens < 0:
        raise ValueError(f"a layer has at least 0 tokens across the link; got {tokens}.")
    if fetch.mode != "resident" and fetch.activation_bytes >= fetch.kv_bytes:
        return Choice(
            value=0,
            reason=f"a token's activations ({fetch.activation_bytes:,.0f} bytes) are not smaller than its keys and "
            f"values ({fetch.kv_bytes:,.0f} bytes): moving them saves nothing",
        )
    last = tokens // fetch.block * fetch.block
    near = floor(_crossing(tokens, fetch) / fetch.block) * fetch.block
    candidates = {0, fetch.block, near, near + fetch.block, last - fetch.block, last}
    best = min(
        (length for length in candidates if 0 <= length <= last),
        key=lambda length: (fetch.seconds(length, tokens), length),
    )
    if best == 0:
        return Choice(value=0, reason="computing any block again takes longer than moving its keys and values")
    ratio = fetch.seconds(0, tokens) / fetch.seconds(best, tokens)
    return Choice(
        value=best, reason=f"{fetch.mode}: {best:,} of {tokens:,} tokens computed again, {ratio:.2f}x as fast as none"
    )


def _crossing(tokens: int, fetch: LayerFetch) -> float:
    """Return the length at which moving takes as long as computing, between the ends; it may lie outside of them."""
    latency, move = fetch.link.latency_s, fetch.kv_bytes / fetch.link.per_s  # of the others, s per token
    begin, again = fetch.compute.latency_s, fetch.recompute_flops / fetch.compute.per_s
    if fetch.mode != "pipelined":  # begin + again * l = latency + move * (tokens - l)
        return (latency - begin + move * tokens) / (again + move)
    bring = fetch.activation_bytes / fetch.link.per_s
    block = begin + again * fetch.block
    steeper = block / fetch.block + move - bring - latency / fetch.block
    at_last = tokens - (block - latency) / move  # latency + move * (tokens - l) = block
    at_first = (move * tokens - bring * fetch.block) / steeper if steeper > 0 else 0.0
    return min(at_first, at_last)
