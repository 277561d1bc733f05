"""transformers' own generate: a second reference that can be neither interleaved nor teacher-forced."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn


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

    def generate(self, model: nn.Module, prompt: Tensor, new_tokens: int) -> tuple[Tensor, list[int]]:
        """Return the tokens [B, new_tokens] and a host mark [ns] at the start and after each of them."""
        from transformers.generation.streamers import BaseStreamer

        marks: list[int] = []

        class Marks(BaseStreamer):  # type: ignore[misc]
            """Notes the time of the prompt's and of every token's arrival."""

            def put(self, value: Tensor) -> None:
                marks.append(time.perf_counter_ns())

            def end(self) -> None:
                """Do nothing."""

        settings: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        streamer = Marks() if prompt.shape[0] == 1 else None
        out = model.generate(prompt, streamer=streamer, use_cache=True, pad_token_id=0, **settings)  # type: ignore[operator]
        return out[:, prompt.shape[1] :], marks
