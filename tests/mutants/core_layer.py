"""Cache layers that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import layer as layer_module
from kvbench.cache import rotary
from kvbench.cache import store as store_module
from kvbench.cache.layer import CacheLayer
from kvbench.cache.slots import NOTHING, Slots
from kvbench.cache.store import Store
from kvbench.kernels import attend as kernels
from kvbench.kernels import rotary as kernels_rotary
from kvbench.kernels.attend import Tile
from kvbench.types import Step
from tests.mutants.core_mutant import Mutant
from tests.mutants.core_scores import under_mask
from tests.support import checks, generation, parts, toy

append, attend, dropped = Slots.append, CacheLayer.attend, Store._dropped
attend_one, attend_prompt, attend_causal = kernels.attend_one, kernels.attend_prompt, kernels.attend_causal
turn = rotary.turn
turns_by = kernels_rotary._turns_by


# -- metadata -------------------------------------------------------------------------------------------------------


def positions_not_gathered(
    self: Slots, key: Tensor, value: Tensor, position: Tensor | int, beside: Mapping[str, Tensor] = NOTHING
) -> None:
    """Give the kept entries the first positions."""
    if isinstance(position, Tensor) and self.filled == 0:
        position = torch.arange(position.shape[-1], dtype=position.dtype).expand_as(position)
    append(self, key, value, position, beside)


def scores_not_gathered(
    self: Slots, key: Tensor, value: Tensor, position: Tensor | int, beside: Mapping[str, Tensor] = NOTHING
) -> None:
    """Give the kept entries each other's scores."""
    append(self, key, value, position, {name: row.roll(1, dims=2) for name, row in beside.items()})


def values_not_gathered(
    self: Slots, key: Tensor, value: Tensor, position: Tensor | int, beside: Mapping[str, Tensor] = NOTHING
) -> None:
    """Give the kept entries each other's values."""
    append(self, key, value.roll(1, dims=2) if self.filled == 0 else value, position, beside)


# -- positions ------------------------------------------------------------------------------------------------------


def sinks_stand_still(self: Store) -> None:
    """Leave the sinks at their true positions."""


def sinks_turned_again(self: Store) -> None:
    """Turn what was turned the step before, by the whole way again."""
    assert self.plan.shape.rotary is not None
    keys = self.slots.keys
    keys.write(0, turn(keys.read(self.plan.num_moving), self._dropped(), self.plan.shape.rotary))


def dropped_too_few(self: Store) -> Tensor | int:
    """Count one token too few between the sinks and the rest."""
    return dropped(self) - 1


def turned_back(shift: int, inverse_frequency: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Turn the wrong way what is turned as far by every layer."""
    return turns_by(-shift, inverse_frequency, wide)


def neighbours_turned(keys: Tensor, shift: Tensor | int, inverse_frequency: Tensor) -> Tensor:
    """Rotate pairs of neighbours instead of halves."""
    half = len(inverse_frequency)
    rotary_part = keys[..., : 2 * half].unflatten(-1, (half, 2)).transpose(-1, -2).flatten(-2)
    turned = turn(torch.cat([rotary_part, keys[..., 2 * half :]], dim=-1), shift, inverse_frequency)
    back = turned[..., : 2 * half].unflatten(-1, (2, half)).transpose(-1, -2).flatten(-2)
    return torch.cat([back, turned[..., 2 * half :]], dim=-1)


class NeighboursTurning(rotary.Turning):
    """Rotates pairs of neighbours."""

    def by(self, shift: Tensor | int) -> Tensor:
        """Do what `neighbours_turned` does."""
        return neighbours_turned(self.keys, shift, self._inverse_frequency)


def padding_has_positions(start: int, tokens: int, batch: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Count padding as text."""
    return torch.arange(start, start + tokens, dtype=torch.int32).expand(batch, -1)


# -- attention ------------------------------------------------------------------------------------------------------


def newest_unseen(query: Tensor, tiles: Sequence[Tile], scale: float, *, with_weights: bool) -> Any:
    """Look back at all entries but the last slot's."""
    tile = tiles[0]
    assert isinstance(tile.keys, torch.Tensor)
    visible = torch.ones(tile.keys.shape[:3], dtype=torch.bool) if tile.visible is None else tile.visible.clone()
    visible[:, :, -1] = False
    return attend_one(query, [Tile(tile.keys, tile.values, visible=visible)], scale, with_weights=with_weights)


def unscaled(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Forget the scale."""
    return attend_causal(query, keys, values, 1.0)


def offset_of_zero(query: Tensor, keys: Tensor, values: Tensor, scale: float, **more: Any) -> Tensor:
    """Mask as if the new tokens were the first."""
    first = more["query_position"].amin(dim=1, keepdim=True)
    more["query_position"] = more["query_position"] - first
    return attend_prompt(query, keys, values, scale, **more)


def backwards(self: CacheLayer, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
    """Take several new tokens in the wrong order."""
    if step.phase == "decode":
        query, key, value = (t.flip(2) for t in (query, key, value))
        return attend(self, query, key, value, scale, step).flip(2)
    return attend(self, query, key, value, scale, step)


MUTANTS = (
    Mutant(
        name="positions are not gathered with the entries",
        patches=((Slots, "append", positions_not_gathered),),
        killed_by=(under_mask("tova"), under_mask("knorm"), toy.mass_accumulates_while_decoding),
    ),
    Mutant(
        name="scores are not gathered with the entries",
        patches=((Slots, "append", scores_not_gathered),),
        killed_by=(under_mask("h2o"), toy.mass_accumulates_while_decoding),
    ),
    Mutant(
        name="values are not gathered with the entries",
        patches=((Slots, "append", values_not_gathered),),
        killed_by=(under_mask("sliding_window"), under_mask("baseline"), under_mask("snapkv")),
    ),
    Mutant(
        name="sinks stand still",
        patches=((Store, "_move_sinks", sinks_stand_still),),
        killed_by=(under_mask("attention_sink"), under_mask("attention_sink", "phi3")),
    ),
    Mutant(
        name="turned sinks are turned again",
        patches=((Store, "_move_sinks", sinks_turned_again),),
        killed_by=(under_mask("attention_sink"),),
    ),
    Mutant(
        name="sinks are one step behind",
        patches=((Store, "_dropped", dropped_too_few),),
        killed_by=(under_mask("attention_sink"), under_mask("attention_sink", "qwen3")),
    ),
    Mutant(
        name="neighbours are turned instead of halves",
        patches=((rotary, "turn", neighbours_turned), (store_module, "Turning", NeighboursTurning)),
        killed_by=(parts.turning_adds_rotations, under_mask("attention_sink")),
    ),
    Mutant(
        name="sinks are turned back",
        patches=((kernels_rotary, "_turns_by", turned_back),),
        killed_by=(parts.turning_adds_rotations, under_mask("attention_sink")),
    ),
    Mutant(
        name="padding has positions",
        patches=(
            (layer_module, "positions", padding_has_positions),
            (store_module, "positions", padding_has_positions),
        ),
        killed_by=(
            partial(checks.padded_rows_equal_rows_alone, "baseline", "llama_gqa", by_ratio=False),
            partial(checks.padded_rows_equal_rows_alone, "h2o", "gpt2", by_ratio=False),
            partial(generation.padded_generate_equals_rows_alone, "baseline", "llama_gqa"),
        ),
    ),
    Mutant(
        name="the newest entry is not seen",
        patches=((store_module, "attend_one", newest_unseen),),
        killed_by=(
            partial(checks.baseline_is_the_stock_model, "llama_gqa"),
            partial(generation.baseline_generates_what_the_stock_cache_does, "llama_gqa"),
            under_mask("baseline"),
        ),
    ),
    Mutant(
        name="the scale is forgotten",
        patches=((layer_module, "attend_causal", unscaled),),
        killed_by=(partial(checks.baseline_is_the_stock_model, "gpt2"), under_mask("h2o")),
    ),
    Mutant(
        name="several new tokens are masked from the start",
        patches=((layer_module, "attend_prompt", offset_of_zero), (store_module, "attend_prompt", offset_of_zero)),
        killed_by=(
            partial(checks.many_tokens_equal_one_by_one, "snapkv", "llama_gqa"),
            partial(checks.many_tokens_equal_one_by_one, "baseline", "llama_gqa"),
            partial(checks.chunks_equal_one_shot, "baseline", "llama_gqa"),
        ),
    ),
    Mutant(
        name="several new tokens are taken backwards",
        patches=((CacheLayer, "attend", backwards),),
        killed_by=(
            partial(checks.many_tokens_equal_one_by_one, "h2o", "llama_gqa"),
            partial(checks.many_tokens_equal_one_by_one, "attention_sink", "llama_mha"),
        ),
    ),
)
