"""transformers' own generate: a second reference that can be neither interleaved nor teacher-forced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kvbench.engines import continuous
from kvbench.engines.black_box import BlackBoxEngine, Generated, Session
from kvbench.engines.storages import host_bytes, storages
from kvbench.models.load import Loaded
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.black_box import BlackBox
from kvbench.types import RunShape

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True, kw_only=True)
class Stock(BlackBoxEngine):
    """Greedy `generate` with a cache and an attention that transformers brings.

    Args:
        variant: dynamic: a DynamicCache, which grows at every step, or the cache that the strategy names; static: a
            StaticCache as long as the run; compiled: the same, with decode steps compiled by torch (on a CPU as well,
            where generate does not do so by itself); continuous: batching of requests over a pool of pages.
        attention: what transformers calls the implementation.
    """

    variant: Literal["dynamic", "static", "compiled", "continuous"]
    attention: Literal["sdpa", "eager", "flash_attention_2"]

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process holds the model: no."""
        return False

    def check(self, strategy: CacheStrategy) -> None:
        """Refuse a strategy that does not name a cache of transformers', or another one than the variant's.

        Raises:
            ValueError: with the keys to change.
        """
        if not isinstance(strategy, BlackBox) or strategy.engine != "transformers":
            raise ValueError(
                "engine=transformers brings its own cache, which strategy=transformers or strategy=hf_* names: the two "
                "go together and with nothing else. Leave engine= out."
            )
        if self.variant != "dynamic" and type(strategy) is not BlackBox:
            raise ValueError(
                f"engine.variant={self.variant} has a cache of its own, and strategy= names another one; set "
                f"engine.variant=dynamic or strategy=transformers."
            )

    def unavailable(self) -> str | None:
        """Return what has to be installed first, or None."""
        if self.attention != "flash_attention_2" or find_spec("flash_attn") is not None:
            return None
        return "engine.attention=flash_attention_2 needs the package flash-attn and a GPU; use engine.attention=sdpa"

    def unsupported(self, loaded: Loaded) -> str | None:
        """Return why a model cannot be run, or None."""
        if self.variant in ("static", "compiled") and any(layer.donor is not None for layer in loaded.view.layers):
            return "layers of this model share keys and values, but not a StaticCache; set engine.variant=dynamic"
        return None

    @contextmanager
    def opened(self, loaded: Loaded, strategy: CacheStrategy, run: RunShape) -> Iterator[Session]:
        """Yield generate, or the manager of requests, for one model and one shape."""
        assert isinstance(strategy, BlackBox)
        if self.variant == "continuous":
            with continuous.opened(loaded.model, run) as session:
                yield session
            return
        config, named = loaded.model.config, strategy.own_cache

        def generate(prompt: Tensor) -> Generated:
            cache = named(config, run)
            return self.generate(loaded.model, prompt, run, self.cache(config, run) if cache is None else cache)

        with _alone() if self.variant == "compiled" else nullcontext():
            yield Session(generate=generate, facts={"attention": self.attention})

    def cache(self, config: Any, run: RunShape) -> Cache:
        """Return the variant's empty cache; the last new token is never written.

        Args:
            config: the model's, as transformers has it.
            run: what it will be used for.
        """
        from transformers import DynamicCache, StaticCache

        text = config.get_text_config(decoder=True)
        if self.variant == "dynamic":
            return DynamicCache(config=text)
        return StaticCache(config=text, max_cache_len=run.prompt_tokens + (run.new_tokens or 1) - 1)

    def generate(self, model: nn.Module, prompt: Tensor, run: RunShape, cache: Cache) -> Generated:
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
            max_new_tokens=run.new_tokens or 1,
            eos_token_id=None,  # no token ends the row, and none is kept from coming
            pad_token_id=0,
            return_dict_in_generate=True,
            **self._compilation(),
        )
        held = storages(cache)
        return Generated(
            tokens=out.sequences[:, prompt.shape[1] :],
            step_ns=tuple(after - before for before, after in pairwise(marks)),
            cache_bytes=sum(held.values()),
            used_bytes=sum(held.values()),
            host_bytes=host_bytes(cache, prompt.device),
        )

    def _compilation(self) -> dict[str, Any]:
        """Return what generate is told of compiling: with a static cache on a GPU it would do so unasked."""
        if self.variant != "compiled":
            return {"disable_compile": True} if self.variant == "static" else {}
        from transformers import CompileConfig

        config = CompileConfig()
        vars(config)["_compile_all_devices"] = True
        return {"compile_config": config}


def _alone() -> AbstractContextManager[None]:
    """Let torch compile in this process: others of its would be there while it is timed, and after it."""
    from torch._inductor import config

    patch: AbstractContextManager[None] = config.patch(compile_threads=1)
    return patch
