"""transformers' own generate: a second reference that can be neither interleaved nor teacher-forced."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

if TYPE_CHECKING:
    from transformers import Cache


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
    """Greedy `generate` with a cache that transformers brings, and its default attention."""

    def generate(self, model: nn.Module, prompt: Tensor, new_tokens: int, cache: Cache) -> Generated:
        """Generate greedily after a prompt [B, n], whatever token comes, with an empty cache."""
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
            past_key_values=cache,
            use_cache=True,
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
            return_dict_in_generate=True,
        )
        return Generated(
            tokens=out.sequences[:, prompt.shape[1] :],
            cache_bytes=sum(storages(cache).values()),
            step_ns=tuple(after - before for before, after in pairwise(marks)),
        )


def storages(thing: object) -> dict[int, int]:
    """Return the bytes of every tensor storage that an object leads to, by address.

    A tensor that packs others (as quanto's) has no storage of its own, and leads to theirs.
    """
    found: dict[int, int] = {}
    seen: dict[int, object] = {}  # kept alive, so that no two of them have one id
    waiting = [thing]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor) and not is_traceable_wrapper_subclass(thing):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple):
            waiting += thing
        waiting += vars(thing).values() if hasattr(thing, "__dict__") else ()
    return found
