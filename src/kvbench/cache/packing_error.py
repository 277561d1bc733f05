"""How far packed entries are from what was packed."""

from __future__ import annotations

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.layer import CacheLayer


def squares(packed: KVCache, full: KVCache) -> dict[str, tuple[float, float]]:
    """Return for "key" and "value" the squares of what packing did, and of what was packed, summed over all held.

    Sliding layers do not count: their slots are in no order.

    Args:
        packed: a cache that holds some of a prompt's entries, packed and not changed otherwise.
        full: the full cache after the same prompt, whose rows are equally long.
    """
    found = {"key": (0.0, 0.0), "value": (0.0, 0.0)}
    for mine, theirs in zip(packed.layers, full.layers, strict=True):
        if mine.plan.shape.window == 0:
            with mine.at_hand(), theirs.at_hand():
                _add(found, mine, theirs)
    return found


def _add(found: dict[str, tuple[float, float]], mine: CacheLayer, theirs: CacheLayer) -> None:
    ((_, whole),) = theirs.stores
    for region, store in mine.stores:
        slots, filled = store.slots, store.slots.filled
        position = slots.position[:, :, :filled, None].long()
        for name, got, given in (
            ("key", slots.keys, whole.slots.keys),
            ("value", slots.values, whole.slots.values),
        ):
            entries = given.read(whole.slots.filled)[region.rows, region.heads]
            at = position.clamp(min=0).expand(-1, entries.shape[1], -1, entries.shape[3])
            want = entries.gather(2, at).double() * (position >= 0)
            moved = got.read(filled, slots.position).double() * (position >= 0) - want
            error, size = found[name]
            found[name] = (error + moved.square().sum().item(), size + want.square().sum().item())
