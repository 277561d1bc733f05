"""transformers' own generate: a second reference that can be neither interleaved nor teacher-forced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

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
        host_bytes: of those, what lies in the host's memory while the model is on another device.
        step_ns: from the prompt to the first token, then from token to token; a token arrives when it is read back.
    """

    tokens: Tensor
    cache_bytes: int
    host_bytes: int
    step_ns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stock:
    """Greedy `generate` with a cache and an attention that transformers brings.

    Args:
        attention: what transformers calls the implementation.
    """

    attention: Literal["sdpa", "eager", "flash_attention_2"]

    def unavailable(self) -> str | None:
        """Return what has to be installed first, or None."""
        if self.attention != "flash_attention_2" or find_spec("flash_attn") is not None:
            return None
        return "engine.attention=flash_attention_2 needs the package flash-attn and a GPU; use engine.attention=sdpa"

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
            host_bytes=host_bytes(cache, prompt.device),
            step_ns=tuple(after - before for before, after in pairwise(marks)),
        )


def storages(thing: object) -> dict[int, int]:
    """Return the bytes of every tensor storage that an object leads to, by address."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors(thing)}


def host_bytes(thing: object, device: torch.device) -> int:
    """Return the bytes of storages in the host's memory, where that is not the device's own.

    Args:
        thing: leads to tensors.
        device: of the model.
    """
    away = [tensor for tensor in tensors(thing) if tensor.device.type == "cpu" != device.type]
    return sum(storages(away).values())


def tensors(thing: object) -> Iterator[Tensor]:
    """Yield every tensor that an object leads to.

    A tensor that packs others (as quanto's) has no storage of its own, and leads to theirs.
    """
    seen: dict[int, object] = {}  # kept alive, so that no two of them have one id
    waiting = [thing]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor) and not is_traceable_wrapper_subclass(thing):
            yield thing
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple):
            waiting += thing
        waiting += vars(thing).values() if hasattr(thing, "__dict__") else ()
