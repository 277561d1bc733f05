"""Oracles of the caches that transformers brings, and stand-ins for what packages pack them into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from kvbench.engines import storages
from kvbench.engines.black_box import Generated
from kvbench.engines.stock import Stock
from kvbench.models.load import Loaded
from kvbench.models.view import view_of
from kvbench.strategies import black_box
from kvbench.strategies.black_box import BlackBox
from kvbench.types import RunShape
from tests.support.models import VOCABULARY, attention, model
from tests.support.strategies import composed


class Packed(Tensor):
    """A tensor that is several others, as quanto's: what it says of its own size is not what is held."""

    parts: dict[str, Tensor]

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], parts: dict[str, Tensor]) -> Packed:
        made: Packed = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)
        made.parts = parts
        for name, tensor in parts.items():
            setattr(made, name, tensor)
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return list(self.parts), None

    @staticmethod
    def __tensor_unflatten__(*arguments: Any) -> Any:
        raise AssertionError("counting bytes makes nothing")

    @classmethod
    def __torch_dispatch__(cls, *arguments: Any) -> Any:
        raise AssertionError("counting bytes computes nothing")


class Layer:
    """A layer of a cache."""

    def __init__(self, **held: object) -> None:
        vars(self).update(held)


def box(name: str, *overrides: str) -> BlackBox:
    """Return a cache of transformers'."""
    made = composed(name, *overrides)
    assert isinstance(made, BlackBox)
    return made


def parts_of_a_packed_tensor_are_counted() -> None:
    """A nested packed tensor holds its codes and its scales: 24 + 16 + 16 bytes for what says it is 192."""
    codes = Packed((6, 8), {"_data": torch.zeros(24, dtype=torch.uint8)})
    packed = Packed((6, 8), {"_data": codes, "_scale": torch.zeros(4), "_shift": torch.zeros(4)})
    assert sum(storages.storages([Layer(_quantized_keys=packed)]).values()) == 24 + 16 + 16


def what_lies_beside_codes_is_counted() -> None:
    """hqq keeps codes beside a dictionary of scales; numbers, names and classes weigh nothing."""
    codes, meta = torch.zeros(24, dtype=torch.uint8), {"scale": torch.zeros(4), "zero": torch.zeros(4), "axis": 0}
    held = Layer(_quantized_keys=(codes, meta), keys=torch.zeros(5), quantizer=Layer, name="hqq")
    assert sum(storages.storages(held).values()) == 24 + 16 + 16 + 20


def a_storage_is_counted_once_and_whole() -> None:
    """Two views of a storage of 40 bytes hold 40 bytes, wherever they are met."""
    whole = torch.zeros(10)
    held = Layer(keys=whole[:2], values=[whole[4:]])
    held.itself = held  # type: ignore[attr-defined]
    assert sum(storages.storages(held).values()) == 40


def what_lies_on_the_host_is_counted_there() -> None:
    """Of 40 bytes on the host, met twice, and 16 on a device 40 are on the host, unless that is the device."""
    host, device = torch.zeros(10), torch.zeros(4, device="meta")
    held = Layer(keys=host[:2], values=[host[4:]], prefetched=device)
    assert storages.host_bytes(held, device.device) == 40
    assert storages.host_bytes(held, host.device) == 0


def lengths_fit_as_worked_out_by_hand() -> None:
    """Numbers of 1 x 2 x 48 x 8: 768 in all, 96 in each channel; of 1 x 2 x 49 x 8, 784 and 98."""
    quanto, hqq = (black_box._PACKAGES[name].fits for name in ("quanto", "hqq"))
    assert [quanto((1, 2, 48, 8), axis, 4, 32) for axis in (0, -1)] == [True, True]
    assert [quanto((1, 2, 49, 8), axis, 4, 32) for axis in (0, -1)] == [False, False]
    assert [quanto((1, 2, 48, 8), axis, 4, 64) for axis in (0, -1)] == [True, False]
    assert [quanto((3, 2, 48, 8), axis, 4, 256) for axis in (0, -1)] == [True, False]
    assert [hqq((1, 2, 48, 8), axis, 4, 64) for axis in (0, 1)] == [True, True]
    assert [hqq((1, 2, 49, 8), axis, 4, 64) for axis in (0, 1)] == [False, False]
    assert [hqq((1, 2, 52, 8), 1, bits, 64) for bits in (8, 4, 2)] == [True, False, False]  # 13 rows of groups
    assert [hqq((1, 2, 48, 8), 0, bits, 3) for bits in (8, 4, 3)] == [True, False, True]  # rows of one of each group


def generated(name: str, *overrides: str, rows: int = 2, prompt: int = 24, new: int = 6) -> Generated:
    """Let transformers generate with one of its caches."""
    network: Any = model("llama_gqa", torch.float32)
    run = RunShape(prompt_lengths=(prompt,) * rows, new_tokens=new)
    return last_of(Stock(variant="dynamic", attention="sdpa"), network, box(name, *overrides), run)


def last_of(engine: Stock, network: Any, strategy: BlackBox, run: RunShape, *, times: int = 1) -> Generated:
    """Return what an engine generates at last from the same prompts again and again."""
    loaded = Loaded(model=network, tokenizer=None, view=view_of(network), weights="random", revision="")
    prompt = prompts(run)
    with attention(network, engine.attention), engine.opened(loaded, strategy, run) as session:
        made = [session.generate(prompt) for _ in range(times)]
    return made[-1]


def prompts(run: RunShape) -> Tensor:
    """Return prompts [B, n] of random tokens, the same for the same lengths."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(1, VOCABULARY, (run.batch_size, run.prompt_tokens), generator=random)


def bytes_by_hand(bits: int, group: int, *, packed: int, exact: int, rows: int = 2) -> int:
    """Return the bytes of codes, of a scale and an offset per group, and of exact tokens, over layers, keys, values."""
    shape = view_of(model("llama_gqa")).layers[0]
    numbers = rows * shape.kv_heads * shape.key_dim
    one = packed * numbers * bits // 8 + 2 * 4 * packed * numbers // group + 4 * exact * numbers
    return 2 * len(view_of(model("llama_gqa")).layers) * one


def package_takes(name: str, shape: tuple[int, ...], *overrides: str) -> bool:
    """Return whether the package itself packs keys of a shape and reads them back."""
    cache: Any = box(name, *overrides).own_cache(model("llama_gqa").config, run_of(shape[2], shape[0]))
    layer = cache.layers[0]
    keys = torch.linspace(0, 1, prod(shape)).reshape(shape)
    try:
        layer.update(keys, keys)
        layer.update(keys[:, :, :1], keys[:, :, :1])
    except (ValueError, AssertionError, RuntimeError):
        return False
    return True


def shapes() -> Iterator[tuple[int, ...]]:
    """Yield shapes of keys, of which some fill groups."""
    yield from ((rows, 2, tokens, 8) for rows in (1, 2) for tokens in (3, 4, 8, 12, 16, 52))


def run_of(tokens: int, rows: int = 1) -> RunShape:
    """Return a prompt of equal rows with one new token."""
    return RunShape(prompt_lengths=(tokens,) * rows, new_tokens=1)


def transformers_is_at_least(version: str) -> bool:
    """Return whether the installed transformers is."""
    import transformers

    return Version(transformers.__version__) >= Version(version)


def refused(name: str, run: RunShape, *overrides: str) -> None:
    """Raise what a cache says of a run that it does not support."""
    raise ValueError(box(name, *overrides).unsupported(view_of(model("llama_gqa")), run))


def changed(name: str, **settings: Any) -> Callable[[], object]:
    """Return what changes a cache's settings."""
    return lambda: replace(box(name), **settings)


ERRORS: Mapping[str, tuple[Callable[[], object], str]] = {
    "a cache that is not ours": (
        lambda: box("hf_fp8").build(view_of(model("llama_gqa")), run_of(8)),
        r"only engine=transformers runs: measure it with python run\.py, or build strategy=baseline",
    ),
    "bits of quanto": (changed("hf_quanto", bits=8), r"strategy\.bits of quanto must be one of \(2, 4\); got 8"),
    "bits of hqq": (changed("hf_hqq", bits=5), r"strategy\.bits of hqq must be one of \(1, 2, 3, 4, 8\); got 5"),
    "axis of quanto": (
        changed("hf_quanto", axis_value=1),
        r"strategy\.axis_key and strategy\.axis_value of quanto must be one of \(0, -1\); got 1",
    ),
    "three bits along an axis": (
        changed("hf_hqq", bits=3, axis_key=1),
        r"strategy\.bits=3 needs strategy\.axis_key=0 and strategy\.axis_value=0",
    ),
    "group of nothing": (
        changed("hf_hqq", group=0),
        r"strategy\.group and strategy\.residual must be .* got 0 and 128",
    ),
    "a model that is nowhere else than on the host": (
        partial(refused, "hf_offloaded", run_of(8)),
        r"the model is on cpu, from where nothing is offloaded; set model\.device=cuda",
    ),
    "numbers that fill no groups": (
        partial(refused, "hf_quanto", run_of(66)),
        r"quanto cannot cut 1 x 2 x 66 x 8 numbers into groups of strategy\.group=64; change it, strategy\.residual or",
    ),
}
