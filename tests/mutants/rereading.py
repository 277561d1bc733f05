"""Reading again with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kvbench import predicting
from kvbench.cache import passing
from kvbench.cache.passing import PassingLayer
from kvbench.cache.plan import LayerPlan
from kvbench.engines.arm import Arm
from kvbench.kernels.attend import attend_causal
from kvbench.models import rereading as model_part
from kvbench.strategies.transform import rereading as transform
from kvbench.types import RunShape
from tests.mutants.core_mutant import Mutant
from tests.support import rereading

from_the_start, text_slots, hook = PassingLayer.from_the_start, LayerPlan.text_slots, model_part._from_the_start
equal = partial(rereading.reading_again_equals_the_full_cache, "gpt2")


def only_the_next(self: PassingLayer, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Read no token twice."""
    whole, position = from_the_start(self, ids)
    return whole[:, -ids.shape[1] :], position[:, -ids.shape[1] :]


def by_column(self: PassingLayer, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Count padding as positions."""
    whole, position = from_the_start(self, ids)
    return whole, torch.arange(whole.shape[1]).expand_as(position)


def never_back(self: PassingLayer, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Go on behind all that was ever read."""
    self.seen = max(self.seen, getattr(self, "furthest", 0))
    self.furthest = self.seen + ids.shape[1]  # type: ignore[attr-defined]
    return from_the_start(self, ids)


def with_a_copy(self: PassingLayer, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the last pass as well."""
    whole, position = from_the_start(self, ids)
    self.last = whole.clone()  # type: ignore[attr-defined]
    return whole, position


def in_every_layer(self: LayerPlan, run: RunShape) -> int:
    """Keep the ids in each layer."""
    return text_slots(replace(self, index=0), run)


def in_place(model: nn.Module, changes: Any) -> nn.Module:
    """Change the model that was given."""
    return model


def for_all(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Read through no cache what is not read again."""
    found = hook(model, arguments, keywords)
    return found or (arguments, {**keywords, "past_key_values": None})


def as_one_token(arm: Arm, run: RunShape) -> int:
    """Count the new token alone."""
    return 0


def unmasked(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Let queries see later tokens."""
    return attend_causal(query.flip(2), key.flip(2), value.flip(2), scale).flip(2)


MUTANTS = (
    Mutant(
        name="nothing is read again",
        patches=((PassingLayer, "from_the_start", only_the_next),),
        killed_by=(equal, rereading.a_step_reads_everything, rereading.greedy_tokens_are_those_of_no_cache_at_all),
    ),
    Mutant(
        name="positions count padding",
        patches=((PassingLayer, "from_the_start", by_column),),
        killed_by=(equal,),
    ),
    Mutant(
        name="what was gone back on is read",
        patches=((PassingLayer, "from_the_start", never_back),),
        killed_by=(rereading.a_step_reads_everything,),
    ),
    Mutant(
        name="the last pass is kept",
        patches=((PassingLayer, "from_the_start", with_a_copy),),
        killed_by=(rereading.ids_are_all_that_is_kept,),
    ),
    Mutant(
        name="each layer keeps ids",
        patches=((LayerPlan, "text_slots", in_every_layer),),
        killed_by=(rereading.ids_are_all_that_is_kept,),
    ),
    Mutant(
        name="the model that was given is changed",
        patches=((transform, "with_modules", in_place),),
        killed_by=(rereading.other_caches_are_left_alone,),
    ),
    Mutant(
        name="other caches are not read",
        patches=((model_part, "_from_the_start", for_all),),
        killed_by=(rereading.other_caches_are_left_alone,),
    ),
    Mutant(
        name="one token is said to be computed",
        patches=((predicting, "_read_again", as_one_token),),
        killed_by=(rereading.operations_are_those_that_are_counted,),
    ),
    Mutant(
        name="later tokens are seen",
        patches=((passing, "attend_causal", unmasked),),
        killed_by=(partial(equal, (24, 24)), rereading.greedy_tokens_are_those_of_no_cache_at_all),
    ),
)
