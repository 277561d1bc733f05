"""What must hold for any method, known only by its yaml, its `Setting` and what the cache says it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.plan import LayerPlan
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.evicted.tiers import Tiers
from kvbench.types import RunShape
from tests.support.checks import (
    BUDGET,
    FEW,
    NEW,
    PROMPT,
    Usual,
    assert_close,
    assert_same_held,
    uniform,
    usual,
    usual_ids,
)
from tests.support.drive import drive, padded, positions
from tests.support.models import LAYERS, attention, ids, model, model_for
from tests.support.storage import storages_are_exact_and_reported
from tests.support.strategies import every, limit, settings, strategy

NAME = "visible"
PERIOD = 5
_VISIBLE: list[list[Tensor]] = []


def triggers(name: str, model_name: str = "llama_gqa") -> Iterator[tuple[str, ...]]:
    """Yield overrides for the method's own trigger and, on one model, for entries that leave several at a time."""
    yield ()
    if model_name != "llama_gqa" or not settings()[name].has_budget:
        return
    try:
        strategy(name, *every(PERIOD), tokens=BUDGET).build(view_of(model("llama_gqa")), uniform())
    except ValueError:
        return  # the method says that it cannot
    yield every(PERIOD)


# -- dense attention under what is held -----------------------------------------------------------------------------


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    assert isinstance(module.layer_idx, int)
    heads = query.shape[1]
    visible = _VISIBLE[-1][module.layer_idx]
    keys, values, seen = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (key, value, visible))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    logits = torch.einsum("bhtd,bhmd->bhtm", query, keys) * scale
    weights = torch.where(seen, logits, -torch.inf).softmax(dim=-1)
    return torch.einsum("bhtm,bhmd->bthd", weights, values), None


def dense(given: PreTrainedModel, tokens: Tensor, visible: list[Tensor]) -> Tensor:
    """Return the logits of the uncompressed model where each query sees so much [B, 1 or G, T, T] in each layer."""
    _VISIBLE.append(visible)
    try:
        with attention(given, NAME) as network:
            logits: Tensor = network(tokens, use_cache=False).logits
    finally:
        _VISIBLE.pop()
    return logits


def visible_to(held: Sequence[Sequence[Tensor]], layer: int, prompt: int) -> Tensor:
    """Return what each query sees: all that came before it in the prompt, then what was held, and itself."""
    batch, sets, _ = held[0][layer].shape
    total = prompt + len(held) - 1
    seen = torch.ones(total, total).tril().bool().expand(batch, sets, -1, -1).clone()
    for step, layers in enumerate(held[:-1]):
        for row in range(batch):
            for kept_set, kept in enumerate(positions(layers[layer][row])):
                seen[row, kept_set, prompt + step] = False
                seen[row, kept_set, prompt + step, [*kept, prompt + step]] = True
    return seen


def equals_dense_attention_under_what_is_held(
    name: str, model_name: str, overrides: Sequence[str] = (), by: Usual = usual
) -> None:
    """GO2: attention to what the cache says it holds, and nothing else, gives its logits."""
    made, tokens = strategy(name, *overrides, tokens=BUDGET), usual_ids()
    driven = drive(model_for(made, model_name), made, tokens, uniform(rows=2)) if overrides else by(name, model_name)
    visible = [visible_to(driven.held, layer, PROMPT) for layer in range(LAYERS)]
    assert_close(driven.logits, dense(model_for(made, model_name), tokens, visible))
    full = torch.ones(PROMPT + NEW, PROMPT + NEW).tril().bool()
    if any(bool((seen != full).any()) for seen in visible):
        everything = dense(model_for(made, model_name), tokens, [full[None, None]] * LAYERS)
        assert (driven.logits - everything).abs().max() > 1e-3, "what has left changes nothing: this proves nothing"
    else:
        assert not made.budget.limits, "nothing has left: this proves nothing"


# -- how much is held -----------------------------------------------------------------------------------------------


def budget_is_used_exactly(name: str, model_name: str, overrides: Sequence[str] = ()) -> None:
    """GO10: per layer, or over all layers where they share, heads hold together what the budget says, at every step."""
    made, run, tokens = strategy(name, *overrides, tokens=BUDGET), uniform(rows=2), ids(72, 2, PROMPT + NEW)
    view = view_of(model_for(made, model_name))
    plans = made.plans(view, run)
    heads = view.layers[0].kv_heads
    if settings()[name].has_budget:
        given = sum(sum(plan.budget) for plan in plans if plan.budget is not None)
        kept = [plan for plan in plans if plan.budget is not None]
        assert given == BUDGET * run.batch_size * len(kept), "the layers' budgets do not add up to what was asked for"

    def watch(cache: KVCache, seen: int) -> None:
        held = [entries * (heads // entries.shape[1]) for entries in cache.entries_held()]
        want = [_entries(plan, heads, seen - PROMPT) for plan in plans]
        got = [entries.sum(dim=1) for entries in held]
        shares = made.budget.sharer is not None and made.budget.sharer.scope == "model"
        for row in range(run.batch_size):
            mine = [int(entries[row]) for entries in got]
            if made.data_dependent:
                assert all(0 < entries <= heads * seen for entries in mine)
            elif shares:
                assert sum(mine) == sum(want), f"{mine} entries after {seen} tokens instead of {want}"
            else:
                assert mine == want, f"{mine} entries after {seen} tokens instead of {want}"

    drive(model_for(made, model_name), made, tokens, run, watch=watch)


def _entries(plan: LayerPlan, heads: int, decoded: int) -> int:
    """Return the tokens' own entries that a layer holds of a row, over all heads."""
    most: Sequence[int | None] = [None] * heads
    if isinstance(plan.handing, Tiers):
        return heads * (PROMPT + decoded)
    if plan.counts is not None:
        most = plan.counts[0]
    elif plan.budget is not None:
        most = [plan.budget[0]] * heads
    return sum(_held(count, plan.evicted.num_reserved, plan.period, decoded) for count in most)


def _held(most: int | None, reserved: int, period: int, decoded: int) -> int:
    if most is None:
        return PROMPT + decoded
    held = min(PROMPT, most - reserved)
    for _ in range(decoded):
        held += 1
        if period > 0 and held == most - reserved + period:
            held = most - reserved
    return held


def bytes_are_what_was_said(name: str, model_name: str, lengths: Sequence[int] = (PROMPT, PROMPT)) -> None:
    """GO3: bytes allocated and used are the closed forms, or no more where these are a bound; storages are exact."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    made = strategy(name, tokens=BUDGET)
    view = view_of(model_for(made, model_name))
    assert made.data_dependent == settings()[name].data_dependent
    tokens = padded([ids(73 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])

    def watch(cache: KVCache, seen: int) -> None:
        storages_are_exact_and_reported(cache)
        got = (cache.allocated_bytes(), cache.used_bytes())
        want = (made.allocated_bytes(view, run), made.used_bytes(view, run, seen))
        if made.data_dependent:
            assert got[0] <= want[0], f"{got} bytes allocated and used, at most {want} were said"
            assert got[1] <= want[1], f"{got} bytes allocated and used, at most {want} were said"
        else:
            assert got == want, f"{got} bytes allocated and used, {want} were said"

    drive(model_for(made, model_name), made, tokens, run, watch=watch)


# -- the same by another route --------------------------------------------------------------------------------------


def padded_rows_equal_rows_alone(name: str, model_name: str, overrides: Sequence[str] = ()) -> None:
    """GO7: each row of a left-padded batch holds and says what it does alone; budgets in ratios and in tokens."""
    lengths = (17, PROMPT, 13)
    new = NEW if overrides else FEW  # entries leave several at a time, or at every step
    texts = [ids(74 + row, 1, length + new)[0] for row, length in enumerate(lengths)]
    run = RunShape(prompt_lengths=lengths, new_tokens=new)
    amount = limit("tokens", BUDGET) if overrides else limit("ratio", 0.7)  # as many entries in each row, or not
    made = strategy(name, *overrides, *(amount if settings()[name].has_budget else ()))
    batch = drive(model_for(made, model_name), made, padded(texts), run)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        alone = drive(model_for(made, model_name), made, text[None], uniform(length, new))
        assert_close(batch.logits[row, PROMPT - length :], alone.logits[0])
        assert_same_held([[_of_row(held, row) for held in step] for step in batch.held], alone.held)


def _of_row(held: Tensor, row: int) -> Tensor:
    return held[row : row + 1]


def protected_entries_stay(name: str, model_name: str, overrides: Sequence[str] = ()) -> None:
    """GO11: the first and the newest entries that the selector protects are held at every step, layer and head."""
    made = _with_protection(name, overrides)
    run, tokens = uniform(rows=2), ids(77, 2, PROMPT + NEW)
    plans = made.plans(view_of(model_for(made, model_name)), run)
    driven = drive(model_for(made, model_name), made, tokens, run)
    for step, layers in enumerate(driven.held):
        newest = PROMPT - 1 + step
        for plan, held in zip(plans, layers, strict=True):
            least = min(count for count in [*(most - plan.num_reserved for most in plan.budget or ()), PROMPT])
            recent = plan.selector.recent(least) if plan.sharer is None else getattr(plan.selector, "num_recent", 0)
            must = {*range(plan.selector.num_sink), *range(newest - recent + 1, newest + 1)}
            for row in range(run.batch_size):
                for kept in positions(held[row]):
                    assert must <= set(kept), f"step {step}, layer {plan.index}: {sorted(must - set(kept))} left"


def _with_protection(name: str, overrides: Sequence[str]) -> CacheStrategy:
    """Return the method with two sinks and three recent entries, where it lets itself be given some."""
    plain = strategy(name, *overrides, tokens=BUDGET)
    keys = {"num_sink": 2, "num_recent": 3}
    given = [f"selector.{key}={value}" for key, value in keys.items() if key in getattr(plain.selector, "__dict__", {})]
    try:
        made = strategy(name, *overrides, *given, tokens=BUDGET)
        made.build(view_of(model("llama_gqa")), uniform())
    except ValueError:
        return plain
    return made


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
