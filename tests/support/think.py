"""What must hold of keys that keep some of their channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.cache.codecs.dense import Dense, DensePayload
from kvbench.cache.codecs.sides import LayerSides
from kvbench.cache.codecs.think import ThinFormat, ThinK, ThinKeys
from kvbench.cache.kv_cache import KVCache
from kvbench.calibration import watching
from kvbench.kernels.attend import Tile, attend_one
from kvbench.models.view import view_of
from kvbench.types import ModelView, RunShape
from tests.support.checks import NEW, uniform
from tests.support.codecs import Weigher, rand
from tests.support.drive import drive, padded, slots_of
from tests.support.models import attention, ids, model
from tests.support.strategies import settings, strategy

KEPT, WINDOW, QUERIES = 5, 4, 6  # of 8 channels; as in the tests' settings
MINE = ("strategy/codec=think", *settings()["think"].overrides)


def channels(queries: Tensor, keys: Tensor, count: int) -> list[list[int]]:
    """Return by plain loops which channels a row's heads keep.

    Args:
        queries: those that choose [H, t, D].
        keys: [G, n, D].
        count: how many.
    """
    heads, share = [], len(queries) // len(keys)
    for head, mine in enumerate(keys):
        scores = []
        for channel in range(keys.shape[2]):
            asked = [float(each) ** 2 for each in queries[head * share : (head + 1) * share, :, channel].flatten()]
            scores.append(sum(asked) ** 0.5 * sum(float(each) ** 2 for each in mine[:, channel]) ** 0.5)
        ranked = sorted(range(len(scores)), key=lambda channel: -scores[channel])
        heads.append(sorted(ranked[:count]))
    return heads


@dataclass(frozen=True, kw_only=True)
class Holed:
    """Keys that stay as wide as they are, with zeros where channels are gone."""

    num_queries: int = QUERIES

    def empty(self, like: Tensor, capacity: int) -> HoledPayload:
        """Return room."""
        batch, heads, _, dim = like.shape
        return HoledPayload(like.new_zeros(batch, heads, capacity, dim))

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of whole keys."""
        return heads * capacity * dim * dtype.itemsize

    used_bytes = allocated_bytes


class HoledPayload(DensePayload):
    """One wide tensor."""

    def __init__(self, data: Tensor) -> None:
        super().__init__(data)
        self.filled, self.gone = 0, torch.zeros(())

    def ask(self, queries: Tensor) -> None:
        """Note the queries."""
        self.queries = queries

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Write whole keys, and holes into those of a prompt that are not among the latest."""
        super().write(start, entries, position)
        self.filled = start + entries.shape[2]
        if start == 0:
            self.gone = torch.ones(*entries.shape[:2], 1, entries.shape[3], dtype=torch.bool)
            for row, keys in enumerate(entries):
                for head, kept in enumerate(channels(self.queries[row, :, -QUERIES:], keys, KEPT)):
                    self.gone[row, head, 0, kept] = False
            self.settle(torch.zeros(()))

    def settle(self, position: Tensor) -> None:
        """Make holes in all keys but the latest."""
        self.data[:, :, : max(0, self.filled - WINDOW)].masked_fill_(self.gone, 0.0)


@dataclass(frozen=True, kw_only=True)
class HoledCodec:
    """A codec that loses what ThinK loses, and frees nothing."""

    is_exact: bool = False
    data_dependent: bool = False
    takes_pieces: bool = False
    writes_each_token_alone: bool = False
    joins_heads: bool = False
    joins_slots: bool = False
    flush_tokens: int = 1

    def of_layer(self, view: ModelView, layer: int) -> LayerSides:
        """Return both sides of a layer."""
        return LayerSides(
            key_format=Holed(),
            value_format=Dense(),
            writes_each_token_alone=False,
            flush_tokens=1,
            num_sink=0,
            fixed_bytes=0,
        )

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> None:
        """Return None: nothing is packed."""

    def unsupported(self, view: ModelView) -> None:
        """Return None: every model can."""


def keys_of(cache: KVCache, layer: int, row: int = 0) -> ThinKeys:
    """Return the keys of a row that is stored on its own, or with others."""
    (found,) = (store for region, store in cache.layers[layer].stores if region.rows.start <= row < region.rows.stop)
    assert isinstance(found.slots.keys, ThinKeys)
    return found.slots.keys


# -- oracles --------------------------------------------------------------------------------------------------------


def logits_are_those_of_keys_with_holes(model_name: str, method: str = "baseline") -> None:
    """Logits are those of dense attention to keys with zeros where channels are gone, whatever was selected before."""
    tokens, run = ids(3, 2, 24 + NEW), RunShape(prompt_lengths=(24, 17), new_tokens=NEW)
    made = strategy(method, *MINE, tokens=None if method == "baseline" else 12)
    assert isinstance(made.codec, ThinK)
    got = drive(model(model_name), made, tokens, run)
    want = drive(model(model_name), replace(made, codec=HoledCodec()), tokens, run)
    torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=1e-9)
    full = drive(model(model_name), replace(made, codec=Dense()), tokens, run)
    assert (got.logits - full.logits).abs().max() > 1e-4, "no channel matters: the comparison proves nothing"


def channels_are_those_of_the_largest_products(model_name: str) -> None:
    """They are those of the prompt's rotated keys and of its last queries, however the prompt is read."""
    network, tokens = model(model_name), ids(4, 1, 24)
    want: dict[int, list[list[int]]] = {}

    def watch(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> None:
        want[layer] = channels(query[0, :, -QUERIES:], key[0], KEPT)

    with attention(network, watching.ATTENTION):
        watching.forward(network, tokens, watch)
    for chunks in ((), (7, 1, 13, 3)):
        cache = drive(network, strategy("think"), tokens, uniform(24, new=1), chunks=chunks).cache
        assert {layer: keys_of(cache, layer).index[0].tolist() for layer in want} == want
    assert len({tuple(head) for layer in want.values() for head in layer}) > 1, "all heads keep the same channels"


def padding_does_not_ask() -> None:
    """A row with fewer tokens than there are queries to ask keeps the channels that it keeps alone."""
    rows = [ids(6 + row, 1, length + NEW)[0] for row, length in enumerate((24, 5))]
    run = RunShape(prompt_lengths=(24, 5), new_tokens=NEW)
    together = drive(model("llama_gqa"), strategy("think"), padded(rows), run).cache
    for row, length in enumerate((24, 5)):
        alone = drive(model("llama_gqa"), strategy("think"), rows[row][None], uniform(length)).cache
        for layer in range(2):
            assert keys_of(together, layer, row).index.tolist() == keys_of(alone, layer).index.tolist()


def channels_are_freed_to_the_byte() -> None:
    """A head holds 5 of 8 channels of its keys and their numbers, and 5 whole keys; the mean of heads needs no less."""
    view, run = view_of(model("llama_gqa")), uniform()
    heads, slots = 2, 24 + NEW
    keys = heads * (KEPT * 2 + (slots - WINDOW) * KEPT * 8 + (WINDOW + 1) * 8 * 8)
    values_and_positions = heads * slots * 8 * 8 + slots * 4
    assert strategy("think").allocated_bytes(view, run) == 2 * (keys + values_and_positions)
    cache = drive(model("llama_gqa"), strategy("think"), ids(5, 1, 24 + NEW), run).cache
    for layer in range(2):
        assert sum(each.untyped_storage().nbytes() for each in keys_of(cache, layer).tensors()) == keys
    how = keys_of(cache, 0).how
    room = [how.allocated_bytes(heads, 8, capacity, torch.float64) for capacity in range(1, 12)]
    for capacity, said in enumerate(room, 1):
        assert sum(each.nbytes for each in how.empty(rand(1, heads, 1, 8).double(), capacity).tensors()) == said
    assert all(2 * here >= less + more for less, here, more in zip(room, room[1:], room[2:], strict=False))


def the_latest_keys_are_whole() -> None:
    """At every step the latest keys of the first layer are the full cache's, bit for bit, as channels of others are."""
    tokens, noted = ids(8, 1, 24 + NEW), []
    whole = slots_of(drive(model("llama_mha"), strategy("baseline"), tokens, uniform()).cache.layers[0]).keys

    def watch(cache: KVCache, seen: int) -> None:
        keys = keys_of(cache, 0)
        got, want = keys.read(seen), whole.read(seen)
        torch.testing.assert_close(got[:, :, -WINDOW:], want[:, :, -WINDOW:], rtol=0, atol=0)
        kept = torch.zeros(want.shape[1], want.shape[3]).scatter(1, keys.index[0].long(), 1.0)[None, :, None]
        torch.testing.assert_close(got[:, :, :-WINDOW], want[:, :, :-WINDOW] * kept, rtol=0, atol=0)
        noted.append(seen)

    drive(model("llama_mha"), strategy("think"), tokens, uniform(), watch=watch)
    assert noted == list(range(24, 24 + NEW + 1))


def a_step_copies_no_keys() -> None:
    """What a decode step at 4,096 tokens makes beside the keys is below a tenth of what the layer holds."""
    how = ThinFormat(rule=ThinK(kept=0.6, window=32, num_queries=32))
    given, query = (rand(1, heads, 4096, 64, seed=seed).float() for heads, seed in ((4, 10), (8, 11)))
    keys = how.empty(given, 4200)
    keys.ask(query)
    keys.write(0, given)
    nowhere = torch.zeros(1, 1, 4097, dtype=torch.int32)
    with Weigher() as weigher:
        keys.write(4096, given[:, :, :1])
        tile = Tile(keys.entries(4097), torch.zeros(1, 4, 4097, 1))
        attend_one(query[:, :, -1:], [tile], 0.1, with_weights=False)
        del tile
        keys.settle(nowhere)
    assert 0 < weigher.most < 0.1 * 2 * given.nbytes
