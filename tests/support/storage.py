"""Checks of bytes, against formulas written down here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import normal
from kvbench.cache.codecs.dense import Dense, DensePayload
from kvbench.cache.kv_cache import KVCache
from kvbench.models.view import view_of
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.selection.selector import Protected
from kvbench.types import RunShape
from tests.support.checks import NEW, PROMPT, uniform
from tests.support.drive import drive, padded
from tests.support.models import LAYERS, WIDTH, ids, model
from tests.support.reference import Rules
from tests.support.strategies import every, limit, rules, strategy

KV_HEADS = {"llama_mha": 4, "gpt2": 4}  # 2 in all others
POSITION_BYTES, INDEX_BYTES, PADDING_BYTES = 4, 8, 4
NO_TENSORS = (type, torch.dtype, torch.device, int, float, str, type(None))


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
        elif ragged and rule.period > 1:  # every row on its own
            apart = [min(most + rule.period, length + new) for most, length in zip(entries, lengths, strict=True)]
            total += sum(apart) * slot(rule, False, name, item) + rows * fixed(rule, False, name, item)
            continue
        else:
            most = max(entries) + rule.period
            slots = most if ragged else min(most, max(lengths) + new)
        total += rows * (slots * slot(rule, ragged, name, item) + fixed(rule, ragged, name, item))
    return total


def slot(rule: Rules, ragged: bool, name: str, item: int) -> int:
    """Return the bytes of one entry of one layer and row: keys, values, positions, scores."""
    heads = KV_HEADS.get(name, 2)
    sets = heads if rule.per_head else 1
    score = sets * max(4, item) if scored(rule, ragged) else 0
    return 2 * heads * WIDTH * item + sets * POSITION_BYTES + score


def fixed(rule: Rules, ragged: bool, name: str, item: int) -> int:
    """Return the bytes of one layer and row that no entry pays: the free slots, row limits, unturned sinks."""
    heads = KV_HEADS.get(name, 2)
    sets = heads if rule.per_head else 1
    working = (sets * rule.period + 2 * ragged) * INDEX_BYTES if scored(rule, ragged) else 0
    return working + (heads * rule.sinks * WIDTH * item if rule.by_rank and name != "gpt2" else 0)


def whole(truth: Sequence[Rules], pads: bool, name: str) -> int:
    """Return the bytes per row that belong to no layer: padding, and new tokens' rank where positions are learned."""
    return PADDING_BYTES * pads + INDEX_BYTES * (truth[0].by_rank and name == "gpt2")


def scored(rule: Rules, ragged: bool) -> bool:
    """Return whether entries leave by score while decoding; the oldest of a recent run needs none."""
    in_turn = rule.score == "recency" and rule.period == 1 and not ragged
    return rule.score != "none" and rule.every_step and not in_turn


def layer_rules(name: str, model_name: str, period: int = 1) -> list[Rules]:
    """Return the rules of each layer: sliding layers hold one entry less than they see, beside the new one."""
    truth = replace(rules(name, 0), period=period, every_step=rules(name, 0).every_step or period > 1)
    windows = {"mistral": (10, 10), "gemma3": (8, 0)}.get(model_name, (0, 0))
    return [Rules(score="recency", budget=window - 1) if window else truth for window in windows]


# -- the checks -----------------------------------------------------------------------------------------------------


def bytes_follow_their_formulas(
    name: str,
    model_name: str,
    unit: str = "tokens",
    lengths: Sequence[int] = (PROMPT, PROMPT),
    dtype: torch.dtype = torch.float64,
    period: int = 1,
) -> None:
    """GO3, GO10: allocated and used bytes, entries held and the size of every storage, at every step."""
    amount, budgets = {
        "tokens": (12, (12,) * len(lengths)),
        "ratio": (0.45, tuple(max(1, length * 45 // 100) for length in lengths)),
    }[unit]
    more = () if period == 1 else every(period)
    made = strategy(name, *more, *(limit(unit, amount) if name != "baseline" else ()))
    run, truth = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW), layer_rules(name, model_name, period)
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
            ragged = (len(set(lengths)) > 1 or len(set(budgets)) > 1) and rule.period == 1
            used += sum(entries) * slot(rule, ragged, model_name, item)
        assert cache.used_bytes() == used == made.used_bytes(view, run, seen)
        storages_are_exact_and_reported(cache)

    drive(model(model_name, dtype), made, tokens, run, watch=watch)


def _held(rule: Rules, budgets: Sequence[int], lengths: Sequence[int], seen: int) -> list[int]:
    decoded = seen - max(lengths)
    if rule.score == "none":
        return [length + decoded for length in lengths]
    entries = [rule.budget] * len(lengths) if rule.budget else budgets
    held = list(map(min, lengths, entries))
    for _ in range(decoded):
        held = [count + 1 for count in held]
        if rule.every_step:
            held = [most if n == most + rule.period else n for n, most in zip(held, entries, strict=True)]
    return held


def storages_are_exact_and_reported(cache: KVCache) -> None:
    """Every storage is as large as its tensor, and all that can be reached from the cache are in its bytes."""
    constants = [normal.table(bits, cache.view.device) for bits in (2, 3, 4)]  # one each, whatever caches there are
    met: set[int] = set()
    of_the_model = {t.untyped_storage().data_ptr() for t in (*tensors_within(cache.view, met), *constants)}
    lent = set() if cache.mover is None else {t.untyped_storage().data_ptr() for t in cache.mover.tensors()}
    own = [t for t in cache.tensors() if t.untyped_storage().data_ptr() not in lent]
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in own)
    storages = [tensor.untyped_storage() for tensor in tensors_within(cache, met)]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.data_ptr() not in of_the_model}
    reported = cache.allocated_bytes() + cache.bytes_on("host")
    assert sum(held.values()) == reported, "the cache holds tensors it does not report"


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
        if not isinstance(part, NO_TENSORS):
            yield from tensors_within(part, seen)


def byte_budget_is_kept(
    name: str, model_name: str, lengths: Sequence[int] = (PROMPT, PROMPT), new: int | None = NEW
) -> None:
    """GO3: a budget in bytes is never exceeded, and less than one entry of every layer and row is left of it.

    What a run's tokens need is there behind the prompt; that nothing is added to it is seen with the least budget.
    """
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
        read = tokens if new is None or spare == 0 else tokens[:, : max(lengths)]
        cache = drive(model(model_name), made, read, run).cache
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
