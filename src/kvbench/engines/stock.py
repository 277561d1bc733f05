"""transformers' own generate: a second reference that can be neither interleaved nor teacher-forced."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What one call of `generate` left behind.

    Args:
        tokens: [B, new_tokens].
        cache_bytes: storages of the cache at the end.
        step_ns: from the prompt to the first token, then from token to token; a token arrives when it is read back.
    """

    tokens: Tensor
    cache_bytes: int
    step_ns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stock:
    """Greedy `generate` with a stock cache and transformers' default attention.

    Args:
        variant: "dynamic" is DynamicCache, which grows by concatenation.
    """

    variant: Literal["dynamic"]

    def __post_init__(self) -> None:
        """Refuse variants that are not here."""
        if self.variant != "dynamic":
            raise ValueError(f"engine.variant must be dynamic; got {self.variant!r}.")

    def generate(self, model: nn.Module, prompt: Tensor, new_tokens: int) -> Generated:
        """Generate greedily after a prompt [B, n], whatever token comes."""
        from transformers.generation.streamers import BaseStreamer

        marks: list[int] = []

        class Marks(BaseStreamer):
            """Notes when the prompt and every token arrive."""

            def put(self, value: Tensor) -> None:
                marks.append(time.perf_counter_ns())

            def end(self) -> None:
                """Do nothing."""

        out = model.generate(  # type: ignore[operator]
            prompt,
            attention_mask=torch.ones_like(prompt),
            streamer=Marks(),
            use_cache=True,
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
            return_dict_in_generate=True,
        )
        held = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
        return Generated(
            tokens=out.sequences[:, prompt.shape[1] :],
            cache_bytes=sum(t.untyped_storage().nbytes() for t in held),
            step_ns=tuple(after - before for before, after in pairwise(marks)),
        )
