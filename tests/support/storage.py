"""Checks of bytes and of what a decode step does, against formulas written down here."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench.cache.codecs.dense import Dense, DensePayload
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.layer import CacheLayer
from kvbench.models.view import view_of
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.selection.selector import Protected
from kvbench.types import DECODE, RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, uniform
from tests.support.drive import drive, padded
from tests.support.models import LAYERS, WIDTH, attention, ids, model
from tests.support.reference import Rules
from tests.support.strategies import rules, strategy

KV_HEADS = {"llama_mha": 4, "gpt2": 4}  # 2 in all others
POSITION_BYTES, INDEX_BYTES, PADDING_BYTES = 4, 8, 4
HOST = ("_local_scalar_dense", "lift_fresh", "nonzero")  # a value read on the host, a tensor made from one
FORBIDDEN = ("cat", "stack", "index", "index_select", "gather", "take_along_dim", *HOST)


# -- the formulas ---------------------------------------------------------------------------------------------------


def allocated(
    truth: Sequence[Rules], budgets: Sequence[int], lengths: Sequence[int], new: int, name: str, item: int
) -> int:
    """Return the bytes a cache allocates.

    Args:
        truth: the rules of each layer.
        budgets: entries of each row.
        lengths: prompt tokens of each row.
        new: tokens that follow.
        name: of the model.
        item: bytes of one number.
    """
    rows, pads = len(lengths), len(set(lengths)) > 1
    total = rows * whole(truth, pads, name)
    for rule in truth:
        entries = [rule.budget] * rows if rule.budget else list(budgets)
        ragged = pads or len(set(entries)) > 1
        if rule.score == "none":
            slots = max(lengths) + new
        elif not rule.every_step:
            slots = max(map(min, entries, lengths)) + new
        else:
            slots = max(entries) + 1 if ragged else min(max(entries) + 1, max(lengths) + new)
        total += rows * (slots * slot(rule, ragged, name, item) + fixed(rule, ragged, name, item))
    return total


def slot(rule: Rules, ragged: bool, name: str, item: int) -> int:
    """Return the bytes of one entry of one layer and row: keys, values, positions, scores."""
    heads = KV_HEADS.get(name, 2)
    sets = heads if rule.per_head else 1
    score = sets * max(4, item) if scored(rule, ragged) else 0
    return 2 * heads * WIDTH * item + sets * POSITION_BYTES + score


def fixed(rule: Rules, ragged: bool, name: str, item: int) -> int:
    """Return the bytes of one layer and row that no entry pays: the free slot, row limits, unturned sinks."""
    heads = KV_HEADS.get(name, 2)
    sets = heads if rule.per_head else 1
    working = (sets + 2 * ragged) * INDEX_BYTES if scored(rule, ragged) else 0
    return working + (heads * rule.sinks * WIDTH * item if rule.by_rank and name != "gpt2" else 0)


def whole(truth: Sequence[Rules], pads: bool, name: str) -> int:
    """Return the bytes per row that belong to no layer: padding, and new tokens' rank where positions are learned."""
    return PADDING_BYTES * pads + INDEX_BYTES * (truth[0].by_rank and name == "gpt2")


def scored(rule: Rules, ragged: bool) -> bool:
    """Return whether entries leave by score while decoding; the oldest of a recent run needs none."""
    return rule.score != "none" and rule.every_step and (ragged or rule.score != "recency")


def layer_rules(name: str, model_name: str) -> list[Rules]:
    """Return the rules of each layer: sliding layers hold one entry less than they see, beside the new one."""
    truth = rules(name, 0)
    windows = {"mistral": (10, 10), "gemma3": (8, 0)}.get(model_name, (0, 0))
    return [Rules(score="recency", budget=window - 1) if window else truth for window in windows]


# -- the checks -----------------------------------------------------------------------------------------------------


def bytes_follow_their_formulas(
    name: str,
    model_name: str,
    unit: str = "tokens",
    lengths: Sequence[int] = (PROMPT, PROMPT),
    dtype: torch.dtype = torch.float64,
) -> None:
    """GO3, GO10: allocated and used bytes, entries held and the size of every storage, at every step."""
    amount, budgets = {
        "tokens": (12, (12,) * len(lengths)),
        "ratio": (0.45, tuple(max(1, length * 45 // 100) for length in lengths)),
    }[unit]
    made = strategy(name, *((f"budget.unit={unit}", f"budget.amount={amount}") if name != "baseline" else ()))
    run, truth = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW), layer_rules(name, model_name)
    tokens = padded([ids(30 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    item, view = dtype.itemsize, view_of(model(model_name, dtype))
    want = allocated(truth, budgets, lengths, NEW, model_name, item)
    assert made.allocated_bytes(view, run) == want

    def watch(cache: KVCache, seen: int) -> None:
        assert cache.allocated_bytes() == want
        used = 0
        for rule, held in zip(truth, cache.entries_held(), strict=True):
            entries = _held(rule, budgets, lengths, seen)
            assert held.tolist() == [[count] * held.shape[1] for count in entries]
            ragged = len(set(lengths)) > 1 or len(set(budgets)) > 1
            used += sum(entries) * slot(rule, ragged, model_name, item)
        assert cache.used_bytes() == used == made.used_bytes(view, run, seen)
        storages_are_exact_and_reported(cache)

    drive(model(model_name, dtype), made, tokens, run, watch=watch)


def _held(rule: Rules, budgets: Sequence[int], lengths: Sequence[int], seen: int) -> list[int]:
    decoded = seen - max(lengths)
    if rule.score == "none":
        return [length + decoded for length in lengths]
    entries = [rule.budget] * len(lengths) if rule.budget else budgets
    if rule.every_step:
        return [min(length + decoded, most) for length, most in zip(lengths, entries, strict=True)]
    return [min(length, most) + decoded for length, most in zip(lengths, entries, strict=True)]


def storages_are_exact_and_reported(cache: KVCache) -> None:
    """Every storage is as large as its tensor, and all that can be reached from the cache are in its bytes."""
    of_the_model = {t.untyped_storage().data_ptr() for t in tensors_within(cache.view)}
    held = {}
    for tensor in tensors_within(cache):
        if tensor.untyped_storage().data_ptr() not in of_the_model:
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert sum(held.values()) == cache.allocated_bytes(), "the cache holds tensors it does not report"


def tensors_within(thing: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield every tensor that can be reached from an object's attributes and containers."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        return
    parts: list[Any] = list(getattr(thing, "__dict__", {}).values())
    parts += [getattr(thing, name) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name)]
    parts += list(thing.values()) if isinstance(thing, dict) else []
    parts += list(thing) if isinstance(thing, list | tuple | set) else []
    for part in parts:
        if not isinstance(part, type | torch.dtype | torch.device):
            yield from tensors_within(part, seen)


def byte_budget_is_kept(
    name: str, model_name: str, lengths: Sequence[int] = (PROMPT, PROMPT), new: int | None = NEW
) -> None:
    """GO3: a budget in bytes is never exceeded, and less than one entry of every layer and row is left of it."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=new)
    view, truth = view_of(model(model_name)), layer_rules(name, model_name)
    tokens = padded([ids(40 + row, 1, length + (new or 0))[0] for row, length in enumerate(lengths)])
    ragged, rows = len(set(lengths)) > 1, len(lengths)
    chosen = [rule for rule in truth if not rule.budget]
    windows = [rule for rule in truth if rule.budget]
    sliding = allocated(windows, (), lengths, NEW, model_name, 8) - rows * PADDING_BYTES * ragged if windows else 0
    per_entry = rows * sum(slot(rule, ragged, model_name, 8) for rule in chosen)
    free = rows * (sum(fixed(rule, ragged, model_name, 8) for rule in chosen) + whole(truth, ragged, model_name))
    slots = 16 + (1 if truth[-1].every_step else 64 if new is None else new)
    for spare in (0, 1, per_entry // 2, per_entry - 1):
        amount = free + slots * per_entry + spare
        budget = Uniform(amount=amount, unit="bytes", skip_layers=())
        made = replace(strategy(name), budget=budget)
        cache = drive(model(model_name), made, tokens, run).cache
        spent = cache.allocated_bytes() - sliding
        assert amount - per_entry < spent <= amount, f"{spent} of {amount} bytes spent, {per_entry} per entry"
        assert made.allocated_bytes(view, run) == cache.allocated_bytes()


@dataclass(frozen=True, kw_only=True)
class NotingCodec(Dense):
    """Notes how much room is asked for."""

    asked: list[int] = field(default_factory=list)

    def empty(self, like: Tensor, capacity: int) -> DensePayload:
        """Return room as the dense codec does."""
        self.asked.append(capacity)
        return super().empty(like, capacity)


def a_prompt_at_once_is_never_stored_whole(name: str) -> None:
    """Layer by layer the prompt is compressed from where the model made it: only what stays gets storage."""
    codec: Any = NotingCodec()
    kept = 12 + (1 if rules(name, 0).every_step else NEW)
    drive(model("llama_gqa"), replace(strategy(name, tokens=12), codec=codec), ids(45, 1, 90), uniform(90 - NEW))
    assert codec.asked == [kept] * 2 * LAYERS  # keys and values of every layer, once


def fractions_are_exact() -> None:
    """A ratio or share of k hundredths of a hundred entries is k entries, never one less by rounding."""
    run, view = uniform(100), view_of(model("llama_gqa"))
    for hundredths in range(1, 101):
        amount = hundredths / 100
        plan = replace(strategy("tova"), budget=Uniform(amount=amount, unit="ratio", skip_layers=())).plans(view, run)[
            0
        ]
        assert plan.budget == (hundredths,)
        assert Protected(num_sink=0, num_recent=0, recent_share=amount).recent(100) == hundredths


# -- a decode step --------------------------------------------------------------------------------------------------


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
    name: str, model_name: str, lengths: Sequence[int] = (PROMPT, PROMPT), steps: int = 64
) -> None:
    """A decode step makes the same operations each time: no concatenation, no gathering, no reading on the host.

    Nothing as large as the keys in use is made, and no storage of the cache moves or grows.
    """
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=steps + 4)
    tokens = padded([ids(50 + row, 1, length + steps + 4)[0] for row, length in enumerate(lengths)])
    made, start = strategy(name, tokens=BUDGET), max(lengths)
    warm = 2  # the first token fills the last free slot
    cache = drive(model(model_name), made, tokens[:, : start + warm], run).cache
    addresses = [t.data_ptr() for layer in cache.layers for t in layer.tensors()]
    bytes_before, steps_made = cache.allocated_bytes(), []
    for layer in cache.layers:
        layer.attend = _watched(layer)  # type: ignore[method-assign]
    with attention(model(model_name), "kvbench") as network:
        for at in range(start + warm, start + warm + steps):
            with Recorder() as whole:
                cache.begin(DECODE)
                where = cache.position_ids(1)
                network(tokens[:, at : at + 1], past_key_values=cache, use_cache=True, position_ids=where)
            steps_made.append(collections.Counter(whole.names))
    assert all(step == steps_made[0] for step in steps_made), "a step's operations change"
    assert not set(steps_made[0]) & set(HOST), f"the step waits for the host: {sorted(set(steps_made[0]) & set(HOST))}"
    assert addresses == [t.data_ptr() for layer in cache.layers for t in layer.tensors()]
    assert cache.allocated_bytes() == bytes_before


def _watched(layer: CacheLayer) -> Callable[..., Tensor]:
    attend = layer.attend

    def inner(*args: Any) -> Tensor:
        with Recorder() as recorder:
            out = attend(*args)
        assert not set(recorder.names) & set(FORBIDDEN), sorted(set(recorder.names) & set(FORBIDDEN))
        assert layer.slots is not None
        keys = layer.slots.keys.read(layer.slots.filled)
        assert recorder.largest < keys.numel() * keys.element_size(), "something as large as the keys is made anew"
        return out

    return inner
