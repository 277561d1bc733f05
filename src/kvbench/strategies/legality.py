"""Which parts make no sense together, whatever the model: the one place that refuses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvbench.cache.codecs.base import QueryDriven
from kvbench.cache.codecs.opened import can_open
from kvbench.cache.codecs.packed import PackedFormat
from kvbench.cache.protocols import Handing
from kvbench.calibrated import NeedsCalibration
from kvbench.strategies.budget.base import ChoosyBudget, WatchingBudget
from kvbench.strategies.budget.heads import HeadBudget
from kvbench.strategies.evicted.offloaded import Offloaded
from kvbench.strategies.evicted.tiers import Tiers
from kvbench.strategies.layout.paged import Paged
from kvbench.strategies.selection.expected_attention import ExpectedAttention
from kvbench.strategies.transform.base import Unchanged

if TYPE_CHECKING:
    from kvbench.cache.codecs.base import LayerCodec
    from kvbench.cache.plan import LayerPlan
    from kvbench.strategies.base import CacheStrategy
    from kvbench.types import ModelView, RunShape


def check_composition(made: CacheStrategy) -> None:
    """Refuse compositions that make no sense.

    Raises:
        ValueError: with the reason, and the parts to choose instead.
    """
    _check_leaving(made)
    _check_pieces(made)
    _check_writing(made)
    _check_reading(made)
    _check_placement(made)
    _check_pages(made)
    _check_transform(made)


def _check_leaving(made: CacheStrategy) -> None:
    """Refuse positions and budgets that do not fit when entries leave, and which ones."""
    if made.position.by_rank and made.budget.limits and not made.scorer.is_recency:
        raise ValueError(
            "strategy/position=rank needs kept entries to be the sinks and one recent run; "
            "use strategy/scorer=recency or strategy/position=original."
        )
    if made.position.by_rank and made.budget.limits and made.trigger.period != 1:
        raise ValueError(
            "strategy/position=rank needs the recent run to move on with every token; use "
            "strategy/trigger=every_step or strategy/position=original."
        )
    if made.position.rerotates and made.budget.limits and made.trigger.period > 0:
        raise ValueError(
            "strategy/position=rerotated turns keys once, at the prompt's end, and entries that leave later would "
            "leave gaps; use strategy/trigger=prefill_end or strategy/position=original."
        )
    if isinstance(made.budget, ChoosyBudget):
        reason = made.budget.refusal(made.scorer, made.selector, made.evicted, by_rank=made.position.by_rank)
        if reason is not None:
            raise ValueError(reason)
    if isinstance(made.evicted, Offloaded) and made.budget.limits:
        reason = made.evicted.refusal(made)
        if reason is not None:
            raise ValueError(reason)


def _check_pieces(made: CacheStrategy) -> None:
    """Refuse what does not fit a prompt that is packed while it is read."""
    if not made.trigger.packs_pieces:
        return
    parts = {
        "budget=all": made.budget.limits,
        "codec=int8, int4, kivi4 or kvquant3": made.codec.is_exact or not made.codec.takes_pieces,
        "placement=device": made.placement.is_elsewhere,
    }
    reason = _unless_changed(
        "strategy/trigger=every_chunk packs each piece of a prompt as it is read, where all of them stay", parts
    )
    if reason is not None:
        raise ValueError(f"{reason}, or strategy/trigger=prefill_end.")


def _check_writing(made: CacheStrategy) -> None:
    """Refuse ways of writing that do not fit how entries leave."""
    if made.trigger.period > 0 and made.budget.limits and not made.codec.writes_each_token_alone:
        raise ValueError(
            "strategy/trigger=every_step overwrites single entries, which this codec cannot: it packs several "
            "tokens together, or keeps the first or the latest ones exact; use strategy/trigger=prefill_end, or a "
            "strategy/codec whose residual is 0, such as int8, or whose num_sink and window are."
        )
    if made.budget.limits and not made.codec.is_exact and _changes_entries(made):
        raise ValueError(
            "entries that are packed never change, nor are they unpacked to be scored again, which "
            "strategy/evicted and strategy/scorer do here while decoding; use strategy/codec=dense, or "
            "strategy/trigger=prefill_end."
        )
    differs = isinstance(made.budget, HeadBudget) or made.budget.sharer is not None
    if made.budget.limits and made.codec.joins_heads and (differs or made.scorer.per_head):
        raise ValueError(
            "this strategy/codec writes the heads of a token together, and each layer in another size, and here "
            "heads or layers do not keep the same tokens; use a strategy/scorer and a strategy/budget that treat "
            "them alike, or another strategy/codec."
        )
    fills_apart = made.scorer.per_head and made.trigger.period > 0
    if made.budget.limits and made.codec.joins_slots and (differs or fills_apart):
        raise ValueError(
            "this strategy/codec writes all heads of a slot at once, and here heads or layers divide a budget, "
            "or heads fill different slots while decoding; use strategy/trigger=prefill_end with "
            "strategy/budget=uniform, a strategy/scorer that treats heads alike, or another strategy/codec."
        )


def _check_reading(made: CacheStrategy) -> None:
    """Refuse ways of reading that do not fit what is stored."""
    if isinstance(made.evicted, Tiers):
        _check_tiers(made)
        _check_low_rank(made, made.evicted)
    elif made.reader.needs_tiers or made.position.clamps:
        raise ValueError(
            "strategy/reader=blocks or landmarks and strategy/position=clamped are ways of reading what has left; use "
            "strategy/evicted=tiers or shadow, or strategy/reader=pages and strategy/position=original."
        )
    elif not made.reader.reads_all and made.budget.limits:
        if made.trigger.period > 0:
            raise ValueError(
                "strategy/reader=pages needs entries to stay where they are, as the bounds of a page are never "
                "narrowed; use strategy/trigger=prefill_end, strategy/evicted=tiers or strategy/reader=all."
            )
        if made.evicted.weighs or made.evicted.num_reserved > 0:
            raise ValueError(
                "strategy/reader=pages chooses by keys and knows nothing of entries that stand for many tokens; "
                "use strategy/evicted=drop or strategy/reader=all."
            )
    if not made.reader.reads_all and made.budget.limits and getattr(made.budget, "unit", "") == "bytes":
        raise ValueError(
            "this strategy/reader adds bytes that strategy.budget.unit=bytes does not count; use "
            "strategy.budget.unit=tokens or ratio, or strategy/reader=all."
        )
    if made.layout.merges and (made.budget.limits or not made.reader.reads_all):
        raise ValueError(
            "strategy/layout=paired needs both layers of a pair to hold and to read the whole prompt; use "
            "strategy/budget=all and strategy/reader=all, or strategy/layout=separate."
        )
    if (made.layout.merges or not made.reader.reads_all) and not made.codec.is_exact:
        raise ValueError(
            "strategy/layout=paired and strategy/reader=pages work on entries as the model made them; use "
            "strategy/codec=dense."
        )


def _check_tiers(made: CacheStrategy) -> None:
    """Refuse what does not fit pages of entries that have left."""
    if made.reader.reads_all or not made.budget.limits:
        raise ValueError(
            "strategy/evicted=tiers keeps what a strategy/budget lets go, for a strategy/reader to read some of it; "
            "use strategy/budget=uniform with strategy/reader=pages, or strategy/evicted=drop."
        )
    if made.budget.sharer is not None:
        raise ValueError(
            "strategy/evicted=tiers cuts what each head lets go into whole pages, whose bytes nobody knows where heads "
            "or layers divide a budget; use strategy/budget=uniform or pyramid, or strategy/evicted=drop."
        )
    if not made.codec.is_exact:
        raise ValueError(
            "strategy/evicted=tiers keeps entries as the model made them; use strategy/codec=dense, or "
            "strategy/evicted=drop."
        )
    if made.position.by_rank or made.position.rerotates:
        raise ValueError(
            "strategy/evicted=tiers reads old entries at their own positions; use strategy/position=original, or "
            "strategy/evicted=drop."
        )
    if made.placement.is_elsewhere:
        raise ValueError(
            "strategy/evicted=tiers says itself where entries lie; use strategy/placement=device, or "
            "strategy/evicted=drop."
        )


def _check_low_rank(made: CacheStrategy, tiers: Tiers) -> None:
    """Refuse what does not fit keys that all heads of a prompt's token keep together."""
    if tiers.rank > 0 and made.position.clamps:
        raise ValueError(
            "strategy.evicted.rank makes keys again at their own positions; use strategy/position=original, or "
            "strategy.evicted.rank=0."
        )
    if tiers.rank > 0 and (made.trigger.period > 0 or isinstance(made.budget, HeadBudget)):
        raise ValueError(
            "strategy.evicted.rank cuts the keys of a prompt, all heads together, and here entries leave later, or "
            "heads differ; use strategy/trigger=prefill_end with strategy/budget=uniform, or strategy.evicted.rank=0."
        )


def _check_placement(made: CacheStrategy) -> None:
    """Refuse entries elsewhere that are changed there, and a link that nothing crosses."""
    if not made.placement.is_elsewhere:
        if made.placement.link == "modelled" and not isinstance(made.evicted, Tiers):
            raise ValueError(
                "strategy.placement.link=modelled says how long a link takes for what moves, and here everything stays "
                "on the device; use strategy/placement=host, strategy/evicted=tiers, or strategy.placement.link=real."
            )
        return
    if made.budget.limits and made.trigger.period > 0:
        raise ValueError(
            "what lies elsewhere is written once, and strategy/trigger=every_step overwrites entries; use "
            "strategy/trigger=prefill_end, or strategy/placement=device."
        )
    if made.layout.merges:
        raise ValueError(
            "strategy/layout=paired keeps its prompt where two layers read it; use strategy/layout=separate, or "
            "strategy/placement=device."
        )


def _check_pages(made: CacheStrategy) -> None:
    """Refuse what reads or changes entries other than where a table says."""
    if not isinstance(made.layout, Paged):
        return
    parts = {
        "reader=all": not made.reader.reads_all,
        "placement=device": made.placement.is_elsewhere,
        "evicted=drop": made.budget.limits and isinstance(made.evicted, Tiers | Offloaded),
        "trigger=prefill_end": made.budget.limits and _changes_entries(made),
    }
    reason = _unless_changed("attention alone reads slots that lie in pages", parts)
    if reason is not None:
        raise ValueError(f"{reason}, or strategy/layout=separate.")
    weighs = made.evicted.weighs or (made.trigger.period > 0 and made.scorer.needs_weights)
    if not made.layout.says_weights and made.budget.limits and weighs:
        raise ValueError(
            "strategy.layout.kernel=flex says outputs alone, and here a step needs to know how much each entry weighs, "
            "or an entry stands for many tokens; use strategy.layout.kernel=auto."
        )


def _check_transform(made: CacheStrategy) -> None:
    """Refuse what was measured on heads that are no longer there."""
    parts = {"budget": made.budget, "codec": made.codec, "scorer": made.scorer}
    measured = [name for name, part in parts.items() if isinstance(part, NeedsCalibration)]
    if made.transform.changes_heads and measured:
        raise ValueError(
            f"this strategy/{measured[0]} reads what was measured on the model's own heads, which this "
            f"strategy/transform changes; use another strategy/{measured[0]}, or strategy/transform=none."
        )


def refused_with_donors(made: CacheStrategy) -> str | None:
    """Return why a strategy cannot serve a model whose layers share keys and values, or None."""
    parts = {
        "trigger=prefill_end": made.trigger.packs_pieces,
        "budget=all": made.budget.limits,
        "reader=all": not made.reader.reads_all,
        "layout=separate": made.layout.merges,
        "placement=device": made.placement.is_elsewhere,
    }
    return _unless_changed("layers of this model share keys and values, which one of them keeps", parts)


def refused_to_share(made: CacheStrategy, view: ModelView) -> str | None:
    """Return why sequences cannot share entries, nor the pool of pages that these lie in, or None."""
    parts = {
        "layout=paged": not isinstance(made.layout, Paged),
        "budget=all": made.budget.limits,
    }
    reason = _unless_changed("requests under way share one pool of pages, in which all entries stay", parts)
    if isinstance(made.layout, Paged) and not made.layout.says_weights:
        reason = reason or (
            "requests under way change the batch at every step, and strategy.layout.kernel=flex is compiled for each "
            "batch; use strategy.layout.kernel=auto"
        )
    if reason is None and (view.is_recurrent or view.keeps_context or any(layer.window for layer in view.layers)):
        return (
            "requests under way share one pool of pages, and layers of this model keep states, windows or what is made "
            "of the prompt; choose a model= whose layers keep every entry"
        )
    return reason


def refused_with_contexts(made: CacheStrategy, view: ModelView) -> str | None:
    """Return why a strategy cannot serve a model that forgets its prompt but for what blocks make of it, or None."""
    codecs = (made.codec.of_layer(view, at) for at in range(len(view.layers)))
    parts = {
        "trigger=prefill_end": made.trigger.packs_pieces,
        "budget=all": made.budget.limits,
        "codec=dense, int8 or kivi4": any(isinstance(codec.key_format, QueryDriven) for codec in codecs),
        "reader=all": not made.reader.reads_all,
        "layout=separate": made.layout.merges,
        "placement=device": made.placement.is_elsewhere,
    }
    return _unless_changed("of a prompt this model keeps what blocks read, whole and in every step", parts)


def refused_without_entries(made: CacheStrategy) -> str | None:
    """Return why a strategy cannot serve a model of which nothing is kept, or None."""
    parts = {
        "trigger=prefill_end": made.trigger.packs_pieces,
        "budget=all": made.budget.limits,
        "codec=dense": not made.codec.is_exact,
        "reader=all": not made.reader.reads_all,
        "layout=separate": made.layout.merges or isinstance(made.layout, Paged),
        "placement=device": made.placement.is_elsewhere,
    }
    return _unless_changed("every step reads everything again, and no entries are kept between steps", parts)


def refused_when_spread(made: CacheStrategy) -> str | None:
    """Return why a strategy cannot serve a model whose layers are on several devices, or None."""
    across = made.budget.sharer is not None and made.budget.sharer.scope == "model"
    measured = any(isinstance(part, NeedsCalibration) for part in (made.budget, made.codec, made.scorer))
    parts = {
        "budget=uniform": across or isinstance(made.budget, WatchingBudget),
        "evicted=drop": made.budget.limits and isinstance(made.evicted, Handing),
        "reader=all": not made.reader.reads_all,
        "layout=separate": made.layout.merges or isinstance(made.layout, Paged),
        "placement=device": made.placement.is_elsewhere,
        "transform=none": not isinstance(made.transform, Unchanged),
        "codec=dense or int8, and no part that kvbench calibrate measures": measured,
    }
    spread = "model.device_map has put layers on several devices, each of which keeps its own entries and nothing else"
    return _unless_changed(spread, parts)


def refused_to_replay(made: CacheStrategy, view: ModelView, run: RunShape) -> str | None:
    """Return why the decode steps of a strategy are not the same work at the same addresses every time, or None."""
    codecs = (made.codec.of_layer(view, at) for at in range(len(view.layers)))
    parts = {
        "codec=dense, int8 or kivi4": not all(
            codec.writes_each_token_alone or (can_open(codec.key_format) and can_open(codec.value_format))
            for codec in codecs
        ),
        "evicted=drop": made.budget.limits and isinstance(made.evicted, Handing),
        "reader=all": not made.reader.reads_all,
        "layout=separate": made.layout.merges or isinstance(made.layout, Paged),
        "placement=device": made.placement.is_elsewhere,
    }
    always = "this engine records a step once, which has to be the same work at the same addresses every time"
    reason = _unless_changed(always, parts)
    if reason is None and (view.keeps_context or view.keeps_nothing or view.places):
        return f"{always}; choose a model= on one device that keeps entries or states of every token"
    if reason is None and run.new_tokens is None:
        return f"{always}, and a cache that grows moves; use a workload= that says its new_tokens"
    return reason


def refused_to_begin_later(plan: LayerPlan, run: RunShape) -> str | None:
    """Return why a layer begins to merge entries, or to let several go at a time, while it decodes, or None."""
    if not plan.evicts or not (plan.evicted.merges or plan.period > 1):
        return None
    for length, budget in zip(run.prompt_lengths, plan.budget or (), strict=True):
        if length + plan.num_reserved < budget:
            return (
                f"this engine records a step once, and a prompt of {length} tokens leaves room in a budget of {budget} "
                f"entries, so that only later steps let go of any; lower strategy.budget.amount, or use "
                f"strategy/evicted=drop and strategy/trigger=every_step"
            )
    return None


def refused_with_states(made: CacheStrategy) -> str | None:
    """Return why a strategy cannot serve a model whose layers keep states, or None."""
    parts = {
        "budget=all": made.budget.limits,
        "codec=dense": not made.codec.is_exact,
        "reader=all": not made.reader.reads_all,
        "layout=separate": made.layout.merges,
        "placement=device": made.placement.is_elsewhere,
        "transform=none": not isinstance(made.transform, Unchanged),
    }
    return _unless_changed("a recurrent model keeps no keys and values that this strategy is about", parts)


def refused_with_latents(made: CacheStrategy, view: ModelView) -> str | None:
    """Return why a strategy cannot serve a model whose values are their keys, or None."""
    parts = {
        "trigger=prefill_end": made.trigger.packs_pieces,
        "evicted=drop": made.budget.limits and (made.evicted.merges or isinstance(made.evicted, Tiers | Offloaded)),
        "position=original": made.position.by_rank or made.position.rerotates or made.position.clamps,
        "scorer=attention_mass": isinstance(made.scorer, ExpectedAttention),  # of rotated heads
        "layout=separate": made.layout.merges,
        "placement=device": made.placement.is_elsewhere,
        "codec=dense, int8 or fp8": not all(
            _writes_alike(made.codec.of_layer(view, at)) for at in range(len(view.layers))
        ),
    }
    return _unless_changed("a value of this model is its key and all heads share it", parts)


def _unless_changed(reason: str, parts: Mapping[str, bool]) -> str | None:
    """Return a reason and which parts to choose instead of those that differ, or None where none does."""
    wanted = [f"strategy/{part}" for part, differs in parts.items() if differs]
    return f"{reason}; use {' and '.join(wanted)}" if wanted else None


def _writes_alike(codec: LayerCodec) -> bool:
    """Whether keys and values are written the same way, each on its own."""
    keys, values = codec.key_format, codec.value_format
    return codec.is_exact or (isinstance(keys, PackedFormat) and isinstance(values, PackedFormat) and keys == values)


def _changes_entries(made: CacheStrategy) -> bool:
    """Whether entries that are held are read, or written, other than by attention."""
    return made.trigger.period > 0 and (made.evicted.merges or made.scorer.scores_again)
