"""Training on from a converted member: fewer KV heads, each the mean of a group, for a share of the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import LlamaForCausalLM

from kvbench.models.spec import FAMILY
from kvbench.strategies.transform.grouped import Grouped

SETTINGS = FAMILY / "recipe.yaml"


def recipe_of(source: str, recipes: Mapping[str, Any], num_groups: int, *, align: str, share: float) -> Any:
    """Return the recipe of a member that begins as another one.

    Args:
        source: name of the member that is converted.
        recipes: of all members, by name.
        num_groups: KV heads that are left.
        align: what is done to the heads of a group first, as strategy.transform.align says it.
        share: of the steps of the source's own training.
    """
    settings: Any = OmegaConf.load(SETTINGS).uptraining
    made = OmegaConf.merge(recipes[source], {"seed": settings.seed, "model": {"num_key_value_heads": num_groups}})
    made.start = {"member": source, "num_groups": num_groups, "align": align}
    *_, last = made.mix.values()
    steps = made.optimiser.steps = round(share * made.optimiser.steps)
    made.optimiser.rate = {round(at * steps): value for at, value in settings.rate.items()}
    made.lengths, made.mix = {round(at * steps): value for at, value in settings.lengths.items()}, {steps: last}
    return made


def converted(start: Any) -> Mapping[str, Tensor]:
    """Return the weights that a recipe begins with: those of a shipped member after strategy/transform=gqa."""
    model = LlamaForCausalLM.from_pretrained(FAMILY / start.member, dtype=torch.float32)
    weights: Mapping[str, Tensor] = Grouped(num_groups=start.num_groups, align=start.align).prepare(model).state_dict()
    return weights
