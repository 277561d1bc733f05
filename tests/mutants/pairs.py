"""Pairs of layers that each get one thing wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import pair
from kvbench.cache.pair import Meeting, Pair, Prompt, Shared
from kvbench.cache.plan import LayerPlan
from kvbench.kernels import attend
from kvbench.kernels.attend import Own, Tile
from kvbench.strategies.layout import paired
from kvbench.strategies.layout.paired import Paired
from kvbench.types import LayerShape
from tests.mutants.core_mutant import Mutant
from tests.support import checks, pairs
from tests.support.checks import PROMPT

merge, retain, tile, share = Paired.merge, Paired.retain, Prompt.tile, pair.share
arrive, logits_of, num_retained = Meeting.arrive, attend._logits, Paired.num_retained


def averaged(self: Paired, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Take the mean of both directions for one."""
    _, angle = merge(self, lower, upper)
    return (self._normalized(lower) + self._normalized(upper)) / 2, angle


def other_way(self: Paired, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the blend from the upper layer."""
    return merge(self, upper, lower)


def along_the_line(self: Paired, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Blend on the line between both and not on the arc."""
    _, angle = merge(self, lower, upper)
    line = (1 - self.blend) * self._normalized(lower) + self.blend * self._normalized(upper)
    return self._normalized(line), angle


def by_blocks(self: Paired, vectors: Tensor) -> Tensor:
    """Measure a vector by the sum of its absolute numbers, which turning it changes."""
    return vectors.abs().sum(dim=(1, 3) if self.by_token else 3, keepdim=True)


def nearest(self: Paired, angle: Tensor, position: Tensor, count: int) -> Tensor:
    """Retain the tokens with the smallest angles."""
    return retain(self, -angle, position, count)


def sinks_too(self: Paired, angle: Tensor, position: Tensor, count: int) -> Tensor:
    """Forget the sinks."""
    return retain(replace(self, num_sink=0), angle, position, count)


def padding_too(self: Paired, angle: Tensor, position: Tensor, count: int) -> Tensor:
    """Take padding for tokens."""
    return retain(self, angle, position.clamp(min=self.num_sink), count)


def one_more(self: Paired, length: int) -> int:
    """Retain one token more."""
    return min(length, num_retained(self, length) + 1)


def kept_lists(self: Prompt, layer: int) -> Tile:
    """Let the list of the keys serve the values."""
    made = tile(self, layer)
    assert made.own_values is not None
    return replace(made, own_values=Own(self.keys.index, made.own_values.rows))


def of_the_lower(self: Prompt, layer: int) -> Tile:
    """Read the lower layer's lengths and rows in both layers."""
    return tile(self, 0)


def unmasked(self: Prompt, layer: int) -> Tile:
    """See padding."""
    return replace(tile(self, layer), visible=None)


def restoring(self: Prompt, layer: int) -> Tile:
    """Restore the keys before they are read."""
    made = tile(self, layer)
    assert made.key_scale is not None
    assert isinstance(made.keys, torch.Tensor)
    return replace(made, keys=made.keys * made.key_scale[..., None], key_scale=torch.ones_like(made.key_scale))


def twice(*arguments: Any, is_value: bool) -> Shared:
    """Read a retained value beside its direction."""
    return share(*arguments, is_value=False)


def lengths_of_one(*arguments: Any, is_value: bool) -> Shared:
    """Keep the lower layer's lengths for both."""
    made = share(*arguments, is_value=is_value)
    return replace(made, lengths=(made.lengths[0], made.lengths[0]))


def prompt_kept(self: Meeting, layer: Any, keys: Tensor, values: Tensor, position: Tensor) -> None:
    """Hold on to the lower layer's prompt."""
    if self._lower is not None:
        layer.hidden = self._lower[1:]
    arrive(self, layer, keys, values, position)


def without_lengths(self: Pair, shape: LayerShape, dtype: torch.dtype, tokens: int, retained: int, layers: int) -> int:
    """Count directions and rows, and no lengths."""
    row = shape.kv_heads * (shape.key_dim + shape.value_dim) * dtype.itemsize
    return tokens * row + retained * layers * row


def unscaled(rows: Tensor, seen: Tile) -> Tensor:
    """Forget how long keys are."""
    return logits_of(rows, seen if seen.key_scale is None else replace(seen, key_scale=torch.ones_like(seen.key_scale)))


def without_own(rows: Tensor, seen: Tile) -> Tensor:
    """Forget the keys that are no multiple of a direction."""
    return logits_of(rows, replace(seen, own_keys=None))


def overlapping(self: Paired, num_layers: int) -> range:
    """Pair every layer with the next one."""
    return range(num_layers - 1)


DENSE = partial(pairs.equals_attention_to_what_is_restored, "llama_gqa")
PADDED = partial(DENSE, lengths=(17, PROMPT, 9))
FULL = partial(pairs.retaining_everything_is_the_baseline, "llama_gqa")
SHARE = ((pair, "share", twice), (pairs, "share", twice))

MUTANTS = (
    Mutant(
        name="the mean is taken for a direction",
        patches=((Paired, "merge", averaged),),
        killed_by=(pairs.direction_lies_between, pairs.lengths_are_kept, DENSE),
    ),
    Mutant(
        name="the blend is measured from the upper layer",
        patches=((Paired, "merge", other_way),),
        killed_by=(pairs.direction_lies_between, DENSE),
    ),
    Mutant(
        name="the blend is measured on the line",
        patches=((Paired, "merge", along_the_line),),
        killed_by=(pairs.direction_lies_between, pairs.retained_tokens_are_exact),
    ),
    Mutant(
        name="lengths are sums of absolute numbers",
        patches=((Paired, "_length", by_blocks),),
        killed_by=(pairs.merging_commutes_with_rotation, pairs.direction_lies_between),
    ),
    Mutant(
        name="equal directions are divided by the sine between them",
        patches=((paired, "_STRAIGHT", -1.0),),
        killed_by=(pairs.identical_layers_are_restored,),
    ),
    Mutant(
        name="the nearest tokens are retained",
        patches=((Paired, "retain", nearest),),
        killed_by=(pairs.retained_tokens_are_exact, DENSE),
    ),
    Mutant(
        name="sinks are merged",
        patches=((Paired, "retain", sinks_too),),
        killed_by=(pairs.retained_tokens_are_exact,),
    ),
    Mutant(
        name="padding is retained",
        patches=((Paired, "retain", padding_too),),
        killed_by=(partial(pairs.retained_tokens_are_exact, (41, 23)),),
    ),
    Mutant(
        name="one token too many is retained",
        patches=((Paired, "num_retained", one_more),),
        killed_by=(pairs.pairs_are_neighbours, pairs.bytes_are_the_papers),
    ),
    Mutant(
        name="keys and values have one list",
        patches=((Prompt, "tile", kept_lists),),
        killed_by=(DENSE, partial(pairs.equals_attention_to_what_is_restored, "gpt2")),
    ),
    Mutant(
        name="both layers read as the lower one",
        patches=((Prompt, "tile", of_the_lower),),
        killed_by=(DENSE, FULL),
    ),
    Mutant(name="padding is seen", patches=((Prompt, "tile", unmasked),), killed_by=(PADDED, FULL)),
    Mutant(name="keys are restored", patches=((Prompt, "tile", restoring),), killed_by=(pairs.nothing_is_restored,)),
    Mutant(name="a retained value counts twice", patches=SHARE, killed_by=(DENSE, FULL)),
    Mutant(
        name="both layers have the lower one's lengths",
        patches=((pair, "share", lengths_of_one), (pairs, "share", lengths_of_one)),
        killed_by=(pairs.lengths_are_kept, pairs.identical_layers_are_restored, DENSE),
    ),
    Mutant(
        name="the lower layer's prompt is kept",
        patches=((Meeting, "arrive", prompt_kept),),
        killed_by=(partial(pairs.bytes_of_a_pair, "llama_gqa"),),
    ),
    Mutant(
        name="lengths cost nothing",
        patches=((Pair, "_bytes", without_lengths),),
        killed_by=(partial(pairs.bytes_of_a_pair, "gpt2"),),
    ),
    Mutant(
        name="keys are as long as their directions",
        patches=((attend, "_logits", unscaled),),
        killed_by=(pairs.scaled_tiles_equal_dense, DENSE),
    ),
    Mutant(
        name="keys of their own are not read",
        patches=((attend, "_logits", without_own),),
        killed_by=(pairs.scaled_tiles_equal_dense, FULL),
    ),
    Mutant(
        name="every layer has two partners",
        patches=((Paired, "lower_layers", overlapping),),
        killed_by=(pairs.pairs_are_neighbours,),
    ),
    Mutant(
        name="several tokens at once do not see the prompt",
        patches=((LayerPlan, "one_by_one", property(lambda self: self.evicts)),),
        killed_by=(partial(checks.many_tokens_equal_one_by_one, "minicache", "llama_gqa"),),
    ),
)
