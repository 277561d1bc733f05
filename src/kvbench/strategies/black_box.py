"""Caches that an engine brings and runs itself: what to beat. None is made of parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from kvbench.strategies.base import CacheStrategy
from kvbench.types import Fidelity, ModelView, RunShape, Saving

if TYPE_CHECKING:
    from transformers import Cache

    from kvbench.cache.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class BlackBox(CacheStrategy):
    """The cache that engine=transformers has by itself; the parts say what it does: keep everything."""

    engine: ClassVar[str] = "transformers"

    def build(self, view: ModelView, run: RunShape) -> KVCache:
        """Refuse: the cache is not ours.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"this strategy is a cache of another engine, which only engine={self.engine} runs: measure it with "
            f"python run.py, or build strategy=baseline."
        )

    def own_cache(self, config: Any, run: RunShape) -> Cache | None:
        """Return an empty cache for transformers, or None for that which the engine has by itself.

        Args:
            config: the model's, as transformers has it.
            run: what it will be used for.
        """
        return None

    def unavailable(self) -> str | None:
        """Return what has to be installed first and how, or None."""
        return None

    def cannot_change(self, view: ModelView) -> str | None:
        """Return why an engine that is not ours cannot run a model, or None."""
        return NOT_RECURRENT if view.is_recurrent else None


@dataclass(frozen=True, kw_only=True)
class VllmCache(BlackBox):
    """The pool of pages that engine=vllm has by itself.

    Source: Kwon et al. (PagedAttention), arXiv:2309.06180.
    """

    engine: ClassVar[str] = "vllm"


@dataclass(frozen=True, kw_only=True)
class GroupedCache(BlackBox):
    """transformers' QuantizedCache with a scale per group, made by another package.

    Source: transformers, `QuantizedCache`.

    Deviates: it is KIVI in name only: all that was written is unpacked at every step, and packed again, from what
    unpacking gave, whenever the residual is full.

    Args:
        backend: the package that packs.
        bits: per number: 2 or 4 with quanto; 1, 2, 3, 4 or 8 with hqq.
        axis_key: of keys [B, G, T, D], the side that groups do not cross: 0 or -1 with quanto, 0 or 1 with hqq.
        axis_value: the same of values.
        group: numbers that share a scale.
        residual: latest tokens of the decoding that stay exact until there are so many.
    """

    backend: Literal["quanto", "hqq"]
    bits: int
    axis_key: int
    axis_value: int
    group: int
    residual: int

    def __post_init__(self) -> None:
        """Refuse what the package cannot do."""
        package = _PACKAGES[self.backend]
        if self.bits not in package.bits:
            raise ValueError(f"strategy.bits of {self.backend} must be one of {package.bits}; got {self.bits}.")
        for axis in (self.axis_key, self.axis_value):
            if axis not in package.axes:
                raise ValueError(
                    f"strategy.axis_key and strategy.axis_value of {self.backend} must be one of {package.axes}; "
                    f"got {axis}."
                )
        if self.bits == 3 and (self.axis_key, self.axis_value) != (0, 0):
            raise ValueError(
                "strategy.bits=3 needs strategy.axis_key=0 and strategy.axis_value=0: hqq reads 3 bits of other axes "
                "back from matrices alone."
            )
        if self.group < 1 or self.residual < 1:
            raise ValueError(
                f"strategy.group and strategy.residual must be at least 1; got {self.group} and {self.residual}."
            )
        super().__post_init__()

    def own_cache(self, config: Any, run: RunShape) -> Cache:
        """Return an empty cache."""
        from transformers import QuantizedCache

        return QuantizedCache(
            backend=self.backend,
            config=config,
            nbits=self.bits,
            axis_key=self.axis_key,
            axis_value=self.axis_value,
            q_group_size=self.group,
            residual_length=self.residual,
        )

    def unavailable(self) -> str | None:
        """Return what has to be installed first and how, or None."""
        package = _PACKAGES[self.backend]
        installed = _installed(package.name)
        if installed is not None and _release(installed) >= _release(package.version):
            return None
        found = "is not installed" if installed is None else f"{installed} is older than {package.version}"
        return f"{package.name} {found}: pip install {package.name}=={package.version}"

    def unsupported(self, view: ModelView, run: RunShape) -> str | None:
        """Return why this model or these lengths cannot be served, or None."""
        if _slides(view):
            return NOT_SLIDING
        fits = _PACKAGES[self.backend].fits
        for tokens in self._packed_lengths(run):
            for layer in view.layers:
                for dim, axis in ((layer.key_dim, self.axis_key), (layer.value_dim, self.axis_value)):
                    if not fits((run.batch_size, layer.kv_heads, tokens, dim), axis, self.bits, self.group):
                        return (
                            f"{self.backend} cannot cut {run.batch_size} x {layer.kv_heads} x {tokens} x {dim} numbers "
                            f"into groups of strategy.group={self.group}; change it, strategy.residual or "
                            f"workload.prompt_tokens"
                        )
        return None

    def _packed_lengths(self, run: RunShape) -> Iterator[int]:
        """Yield the tokens there are whenever everything is packed; the last new token is never written."""
        prompt = max(run.prompt_lengths)
        yield from range(prompt, prompt + max(1, run.new_tokens or 0), self.residual)

    @property
    def saving(self) -> Saving:
        """What kind of saving the method makes."""
        return "packed"

    @property
    def fidelity(self) -> Fidelity:
        """How the outputs relate to the full cache's."""
        return "lossy_training_free"

    @property
    def period(self) -> int:
        """Decode steps after which everything is packed again."""
        return self.residual


@dataclass(frozen=True, kw_only=True)
class Fp8Cache(BlackBox):
    """transformers' QuantizedCache in 8-bit floating point, e4m3.

    Source: transformers 5.23, `Fp8QuantizedLayer`.

    Deviates: one scale per layer, of keys and of values, from the prompt's largest number: later and larger ones are
    cut to it.
    """

    def own_cache(self, config: Any, run: RunShape) -> Cache:
        """Return an empty cache."""
        from transformers import QuantizedCache

        return QuantizedCache(backend="fp8", config=config)

    def unavailable(self) -> str | None:
        """Return what has to be installed first and how, or None."""
        installed = metadata.version("transformers")
        if _release(installed) >= _release("5.23"):
            return None
        return f"QuantizedCache has no fp8 in transformers {installed}: pip install 'transformers>=5.23,<5.24'"

    def unsupported(self, view: ModelView, run: RunShape) -> str | None:
        """Return why this model cannot be served, or None."""
        return NOT_SLIDING if _slides(view) else None

    @property
    def saving(self) -> Saving:
        """What kind of saving the method makes."""
        return "packed"

    @property
    def fidelity(self) -> Fidelity:
        """How the outputs relate to the full cache's."""
        return "lossy_training_free"


@dataclass(frozen=True, kw_only=True)
class OffloadedCache(BlackBox):
    """transformers' cache whose layers lie in the host's memory, but for the one in use and the next.

    Source: transformers, `Cache(offloading=True)`.

    Deviates: at every step a layer goes back to the host whole, into new memory, not its new token alone. Written after
    the code of transformers 5.23; it has not run on a GPU.

    Args:
        is_static: whether layers have their last length from the start, so that generate compiles the decode step.
    """

    is_static: bool

    def own_cache(self, config: Any, run: RunShape) -> Cache:
        """Return an empty cache; the last new token is never written."""
        from transformers import DynamicCache, StaticCache

        text = config.get_text_config(decoder=True)
        if not self.is_static:
            return DynamicCache(config=text, offloading=True)
        length = run.prompt_tokens + (run.new_tokens or 1) - 1
        return StaticCache(config=text, max_cache_len=length, offloading=True)

    def unavailable(self) -> str | None:
        """Return what is missing, or None."""
        if torch.cuda.is_available():
            return None
        return "transformers moves layers between a CUDA device and its host, and there is none here"

    def unsupported(self, view: ModelView, run: RunShape) -> str | None:
        """Return why this model cannot be served, or None."""
        if view.device.type == "cuda":
            return None
        return f"the model is on {view.device.type}, from where nothing is offloaded; set model.device=cuda"

    @property
    def saving(self) -> Saving:
        """What kind of saving the method makes."""
        return "offloaded"


NOT_RECURRENT = "recurrent models keep their states in kvbench's own cache; use strategy=baseline and engine=eager"
NOT_SLIDING = (
    "transformers' QuantizedCache takes no model with sliding layers; choose another model=, or a quantization of "
    "ours, such as strategy=fp8"
)


@dataclass(frozen=True, kw_only=True)
class _Package:
    """What packs a cache, and what it takes.

    Args:
        name: as pip knows it.
        version: the oldest, which is the one that was tested.
        bits: it packs to.
        axes: it takes.
        fits: whether it can pack numbers of a shape along an axis with so many bits in groups of so many.
    """

    name: str
    version: str
    bits: tuple[int, ...]
    axes: tuple[int, ...]
    fits: Callable[[tuple[int, ...], int, int, int], bool]


def _fits_quanto(shape: tuple[int, ...], axis: int, bits: int, group: int) -> bool:
    return prod(shape) // shape[axis] % group == 0


def _fits_hqq(shape: tuple[int, ...], axis: int, bits: int, group: int) -> bool:
    rows = group if axis == 0 else prod(shape) // group
    return prod(shape) % group == 0 and (bits == 3 or rows * bits % 8 == 0)  # rows share bytes; those of 3 bits pad


_PACKAGES = {
    "quanto": _Package(name="optimum-quanto", version="0.2.7", bits=(2, 4), axes=(0, -1), fits=_fits_quanto),
    "hqq": _Package(name="hqq", version="0.2.8.post1", bits=(1, 2, 3, 4, 8), axes=(0, 1), fits=_fits_hqq),
}


def _slides(view: ModelView) -> bool:
    return any(layer.window > 0 for layer in view.layers)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers, which order releases."""
    found = re.match(r"\d+(\.\d+)*", version)
    assert found, version
    return tuple(map(int, found.group().split(".")))
