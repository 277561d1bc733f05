"""The parts of a strategy as the cache sees them: what each is shown, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from torch import Tensor

from kvbench.cache.views import Leaving, Merged, Observation, PromptView, Scored
from kvbench.kernels.attend import Tile
from kvbench.types import LayerShape, ModelView, RunShape

if TYPE_CHECKING:
    import torch

    from kvbench.cache.codecs.kernel import WantedOfPages
    from kvbench.cache.pages import Paging
    from kvbench.cache.placement.rooms import Placed, Tier
    from kvbench.cache.placement.tiers import Traffic
    from kvbench.cache.plan import LayerPlan
    from kvbench.cache.slots import Slots


class Scorer(Protocol):
    """How much an entry matters: higher stays longer."""

    @property
    def per_head(self) -> bool:
        """Whether KV heads are scored apart; otherwise a layer has one score for all."""

    @property
    def is_recency(self) -> bool:
        """Whether the score is the position, so that the next victim is known without a score."""

    @property
    def needs_weights(self) -> bool:
        """Whether `observe` wants the attention weights of every decode step."""

    @property
    def scores_again(self) -> bool:
        """Whether entries are scored by `prompt` each time some have to leave, by the last queries then."""

    @property
    def accumulates(self) -> bool:
        """Whether the chunks of a prompt add up to its score; otherwise the last one decides."""

    @property
    def memory_bytes(self) -> int:
        """Bytes each entry and kept set keeps beside its score for `observe`."""

    def voters(self, tokens: int) -> int:
        """Return how many of the last queries of a prompt must be at hand; 0 for those of the pass."""

    def prompt(self, view: PromptView) -> Tensor:
        """Return the score of the entries [B, 1 or G, n]."""

    def memory(self, view: PromptView) -> Tensor | None:
        """Return the bytes kept beside each score as the prompt leaves them [B, 1 or G, n, memory_bytes]; None for 0.

        Asked for at the prompt's end, with the last voters' queries.
        """

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return the score a new entry [B, G, 1, D] at position [B, 1, 1] starts with [B, 1 or G, 1]."""

    def observe(self, seen: Observation) -> None:
        """Update scores in place with the attention weights of one decode step."""


@runtime_checkable
class Repeater(Protocol):
    """A scorer for which the prompt is read once more, a chunk at a time, before anything leaves."""

    @property
    def chunk(self) -> int:
        """Tokens that are scored by each pass."""

    @property
    def lead(self) -> int:
        """Tokens before them that are read again, too."""

    def repeated(self, view: PromptView, columns: slice) -> Tensor:
        """Return the score of some of the prompt's columns [B, 1 or G, c].

        Args:
            view: of the pass: its queries, and the keys of the prompt with those of the pass behind them.
            columns: of the prompt, the last ones that the pass reads again.
        """

    def cannot_repeat(self, view: ModelView, run: RunShape) -> str | None:
        """Return why this model cannot read these prompts again, or None."""


@runtime_checkable
class Remembering(Scorer, Protocol):
    """A scorer that may keep beside each score how much an entry mattered so far."""

    def importance(self, memory: Tensor) -> Tensor:
        """Return how much entries mattered, float32 [...], given what is kept of them [..., memory_bytes]."""

    def remembered(self, mean: Tensor) -> Tensor:
        """Return what is kept of entries [...] that a prompt paid so much [..., memory_bytes]."""


class Selector(Protocol):
    """Which entries stay."""

    @property
    def num_sink(self) -> int:
        """First tokens that are never evicted."""

    def of_layer(self, layer: int) -> Selector:
        """Return the selector of one layer; itself where layers do not differ."""

    def recent(self, budget: int) -> int:
        """Return how many of the newest entries a budget protects."""

    def keep(
        self, score: Tensor, position: Tensor, budget: Sequence[int], lengths: Sequence[int]
    ) -> tuple[Tensor, bool]:
        """Choose entries at the end of the prompt.

        Args:
            score: [B, S, n].
            position: [B, 1, n]; -1 at padding.
            budget: entries to keep per row.
            lengths: entries there are per row.

        Returns:
            Indices in order of position [B, S, k], -1 where a row keeps fewer, and whether any is -1.
        """

    def victims(
        self,
        score: Tensor,
        position: Tensor,
        newest: Tensor | int,
        recent: Tensor | int,
        out: Tensor,
        *,
        has_empty: bool,
    ) -> None:
        """Choose the slots to free.

        Args:
            score: [B, S, C].
            position: [B, S, C]; -1 where a slot is empty, which is never chosen.
            newest: position of the newest entry, [B, 1, 1] or one for all.
            recent: how many of the newest entries stay, [B, 1, 1] or one for all.
            out: receives the slots [B, S, k].
            has_empty: whether slots may be empty.
        """


@runtime_checkable
class Fitted(Protocol):
    """A selector whose rule depends on how long rows are and on how much heads keep."""

    def fit(self, budget: Sequence[int], lengths: Sequence[int]) -> Selector:
        """Return the selector of a region.

        Args:
            budget: entries kept per row.
            lengths: entries there are per row at the end of the prompt.
        """


class Evicted(Protocol):
    """What becomes of entries that leave."""

    @property
    def merges(self) -> bool:
        """Whether anything becomes of them at all."""

    @property
    def weighs(self) -> bool:
        """Whether kept entries carry how many tokens they stand for."""

    @property
    def num_reserved(self) -> int:
        """How many entries of the budget are no token's own, such as a summary; they take the first slots."""

    def state_width(self, shape: LayerShape) -> int:
        """Return the numbers kept per row and KV head beside the entries; they start as 0, see `Slots.state`."""

    def at_prompt_end(self, leaving: Leaving) -> Merged:
        """Return what the kept entries become once the others have left."""

    def while_decoding(self, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
        """Merge the entries of slots [B, S, k] into others, in place; they are overwritten afterwards."""


@runtime_checkable
class Handing(Protocol):
    """An `Evicted` that keeps what leaves, where later steps may find it."""

    def open(self, plan: LayerPlan, run: RunShape, padding: Tensor | None, key: Tensor) -> Keeper:
        """Return what keeps it for the rows and heads of a plan; `key` is an example [B, G, T, D]."""

    def placed(self, plan: LayerPlan, run: RunShape, dtype: torch.dtype) -> Placed:
        """Return the bytes that are held where once the prompt is read."""

    def used_bytes(self, plan: LayerPlan, run: RunShape, dtype: torch.dtype, tokens_seen: int) -> int:
        """Return the bytes in use on the device after so many columns."""


class Sharer(Protocol):
    """Decides how many entries each head keeps, once their scores are known."""

    @property
    def scope(self) -> Literal["layer", "model"]:
        """Whether a layer decides alone, or all layers together when the last one has read the prompt."""

    @property
    def data_dependent(self) -> bool:
        """Whether a head may be told to keep everything, so that the bytes depend on the data."""

    @property
    def by_head(self) -> bool:
        """Whether heads of a layer may be told to keep different numbers of entries."""

    def statistic(self, view: PromptView) -> Tensor | None:
        """Return what `share` has to know of a layer beyond its scores, read off its last queries."""

    def share(self, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
        """Return the entries kept per layer, row and kept set; None keeps all of them, and new ones too."""


class Reader(Protocol):
    """What of the entries a decode step reads."""

    @property
    def reads_all(self) -> bool:
        """Whether it reads everything in every layer."""

    @property
    def needs_tiers(self) -> bool:
        """Whether it tells apart only pages of entries that have left."""

    def pagings(self, view: ModelView, run: RunShape) -> Sequence[Paging | None]:
        """Return per layer how its entries are read; None for all of them."""


class Pages(Protocol):
    """How slots lie in pages."""

    @property
    def page_tokens(self) -> int:
        """Slots of a page."""

    @property
    def kernel(self) -> WantedOfPages:
        """What reads entries that are kept as the model made them."""


class Layout(Protocol):
    """How entries lie, and whether layers keep them together, in pairs of neighbours."""

    @property
    def merges(self) -> bool:
        """Whether any do."""

    @property
    def by_token(self) -> bool:
        """Whether all heads of a token share one direction; otherwise each has its own."""

    def lower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the lower layer of each pair; the upper one is the next."""

    def unsupported(self, plans: Sequence[LayerPlan], view: ModelView) -> str | None:
        """Return why these layers cannot be kept so, or None."""

    def num_retained(self, length: int) -> int:
        """Return how many tokens of so long a prompt are kept by both layers as they are."""

    def merge(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return what both layers share and how far they are apart.

        Args:
            lower: keys, or values, of the lower layer [B, G, n, D].
            upper: of the upper layer [B, G, n, D].

        Returns:
            The directions [B, G, n, D] and the angles between the layers [B, 1 or G, n], both float32 or wider.
        """

    def retain(self, angle: Tensor, position: Tensor, count: int) -> Tensor:
        """Return which tokens are kept as they are, the first ones first [B, 1 or G, count].

        Args:
            angle: between the layers [B, 1 or G, n].
            position: [B, 1, n]; -1 at padding, which comes last.
            count: how many.
        """


class Reading(Protocol):
    """How decode steps read a store, where that is not simply all of its slots."""

    def start(self, slots: Slots) -> None:
        """Begin with what the prompt left in the slots."""

    def tiles(self, query: Tensor, slots: Slots) -> list[Tile]:
        """Return what a query [B, H, 1, D] reads, the newest entry included."""

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held beside the slots."""

    def held(self, position: Tensor) -> Tensor:
        """Return the positions held, given those in slots [B, 1 or G, m]."""

    def used_bytes(self, entries: Sequence[int]) -> int:
        """Return the bytes beside so many occupied slots per row."""

    def read_bytes(self, entries: Sequence[int], slot_bytes: int) -> int:
        """Return the bytes that a decode step reads, given the slots occupied per row and the bytes of one."""

    def snapshot(self, filled: int) -> object:
        """Return what `restore` needs to go back to this point."""

    def restore(self, snapshot: object, filled: int) -> None:
        """Go back to a snapshot, in the same storage."""


class Keeper(Reading, Protocol):
    """A `Reading` that is given what leaves a store."""

    @property
    def traffic(self) -> Traffic:
        """What has moved between the device and elsewhere so far."""

    def take_prompt(self, leaving: Leaving) -> None:
        """Keep what leaves at the prompt's end."""

    def take(self, slots: Slots, victims: Tensor) -> None:
        """Keep the entries of slots [B, S, k], which are overwritten afterwards."""

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier."""

    def close(self) -> None:
        """Finish what is under way and let go of everything held elsewhere; nothing can be asked for afterwards."""
