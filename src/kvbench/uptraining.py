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


def recipe_of(source: str, recipes: Mapping[str, Any], num_groups: int, *, align: str, share: float) -> Any:
    """Return the recipe of a member that begins as another one: its training again, in fewer steps.

    Args:
        source: name of the member that is converted.
        recipes: of all members, by name.
        num_groups: KV heads that are left.
        align: what is done to the heads of a group first, as strategy.transform.align says it.
        share: of the steps of the source's own training.
    """
    made: Any = OmegaConf.merge(recipes[source], {"model": {"num_key_value_heads": num_groups}})
    made.start = {"member": source, "num_groups": num_groups, "align": align}
    made.seed += 1  # other rows than those that the first training began with
    made.optimiser.steps = round(share * made.optimiser.steps)
    for schedule, of in (("rate", made.optimiser), ("lengths", made), ("mix", made)):
        of[schedule] = {round(share * at): value for at, value in of[schedule].items()}
    return made


def converted(start: Any) -> Mapping[str, Tensor]:
    """Return the weights that a recipe begins with: those of a shipped member after strategy/transform=gqa."""
    model = LlamaForCausalLM.from_pretrained(FAMILY / start.member, dtype=torch.float32)
    weights: Mapping[str, Tensor] = Grouped(num_groups=start.num_groups, align=start.align).prepare(model).state_dict()
    return weights
