"""Checks of what a decode step does: every operation is noted."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench.cache.layer import CacheLayer
from kvbench.types import DECODE, RunShape
from tests.support.checks import BUDGET, PROMPT
from tests.support.drive import drive, padded
from tests.support.models import attention, ids, model_for
from tests.support.strategies import every, strategy

HOST = ("_local_scalar_dense", "lift_fresh", "nonzero")  # a value read on the host, a tensor made from one
FORBIDDEN = ("cat", "stack", "index", "index_select", "gather", "take_along_dim", *HOST)


class Recorder(TorchDispatchMode):
    """Notes every operation, and the bytes of the largest thing made anew."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note it."""
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        for made in out if isinstance(out, list | tuple) else [out]:
            if isinstance(made, Tensor) and made.untyped_storage().nbytes() > self.largest:
                given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
                if all(made.untyped_storage().data_ptr() != t.untyped_storage().data_ptr() for t in given):
                    self.largest = made.untyped_storage().nbytes()
        return out


def steady_decode_does_the_same_in_place(
    name: str, model_name: str, lengths: Sequence[int] = (PROMPT, PROMPT), steps: int = 2 * BUDGET, period: int = 1
) -> None:
    """A decode step makes the same operations each time: no concatenation, no gathering, no reading on the host.

    Nothing as large as the keys in use is made, and no storage of the cache moves or grows. Where `period` entries
    leave at a time, steps differ, and it is from one period to the next that they do the same.
    """
    overrides = every(period) if period > 1 else ()
    moves_nothing(name, model_name, lengths, steps, period, overrides=overrides, forbidden=FORBIDDEN)


def moves_nothing(
    name: str,
    model_name: str,
    lengths: Sequence[int],
    steps: int,
    period: int,
    *,
    overrides: Sequence[str] = (),
    forbidden: Sequence[str],
) -> None:
    """Decode steps wait for nothing on the host, repeat each period, and work in the same storage.

    Args:
        name: of the method.
        model_name: of the model.
        lengths: of the rows.
        steps: how many are watched.
        period: after how many a step does the same again; 0 if that is not asked for.
        overrides: of the strategy's configuration.
        forbidden: operations a layer's step must not make; beyond those of `HOST`, nothing as large as the keys either.
    """
    warm = 2 * max(period, 1)  # the first tokens fill the last free slots
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=steps + warm + 2)
    tokens = padded([ids(50 + row, 1, length + steps + warm + 2)[0] for row, length in enumerate(lengths)])
    made, start = strategy(name, *overrides, tokens=BUDGET), max(lengths)
    cache = drive(model_for(made, model_name), made, tokens[:, : start + warm], run).cache
    addresses = [t.data_ptr() for layer in cache.layers for t in layer.tensors()]
    bytes_before, steps_made = cache.allocated_bytes(), []
    for layer in cache.layers:
        layer.attend = _watched(layer, forbidden)  # type: ignore[method-assign]
    with attention(model_for(made, model_name), "kvbench") as network:
        for at in range(start + warm, start + warm + steps):
            with Recorder() as whole:
                cache.begin(DECODE)
                where = cache.position_ids(1)
                network(tokens[:, at : at + 1], past_key_values=cache, use_cache=True, position_ids=where)
            steps_made.append(collections.Counter(whole.names))
    if period > 0:
        assert all(step == steps_made[at % period] for at, step in enumerate(steps_made)), "a step's operations change"
    waits = set().union(*steps_made) & set(HOST)
    assert not waits, f"the step waits for the host: {sorted(waits)}"
    assert addresses == [t.data_ptr() for layer in cache.layers for t in layer.tensors()]
    assert cache.allocated_bytes() == bytes_before


def _watched(layer: CacheLayer, forbidden: Sequence[str]) -> Callable[..., Tensor]:
    attend = layer.attend

    def inner(*args: Any) -> Tensor:
        with Recorder() as recorder:
            out = attend(*args)
        assert not set(recorder.names) & set(forbidden), sorted(set(recorder.names) & set(forbidden))
        if forbidden is HOST:
            return out
        keys = [store.slots.keys.read(store.slots.filled) for _, store in layer.stores]
        assert recorder.largest < sum(t.numel() * t.element_size() for t in keys), "something as large as the keys"
        return out

    return inner
