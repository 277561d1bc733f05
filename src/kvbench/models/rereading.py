"""A model that reads everything from the start in every pass, as a cache that keeps nothing needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from kvbench.types import ModelView


def connect(model: Any) -> None:
    """Have a model read all tokens so far where a cache of ours says that nothing is kept of them.

    Args:
        model: a copy that nobody else has.
    """
    model.reads_again = True
    model.register_forward_pre_hook(_from_the_start, with_kwargs=True)


def reads_again(model: nn.Module) -> bool:
    """Return whether `connect` has been here."""
    return hasattr(model, "reads_again")


def without_entries(view: ModelView) -> ModelView:
    """Return the view of a model of which nothing is kept between passes."""
    return replace(view, layers=tuple(replace(layer, part="none", donor=None) for layer in view.layers))


def _from_the_start(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Put the tokens that were read before the next ones, whose logits alone are asked for."""
    cache: Any = keywords.get("past_key_values")
    ids = arguments[0] if arguments else keywords["input_ids"]
    found = cache.from_the_start(ids) if hasattr(cache, "from_the_start") else None
    if found is None:
        return None
    whole, position = found
    asked = keywords.get("logits_to_keep", 0) or ids.shape[1]
    return (), {**keywords, "input_ids": whole, "position_ids": position, "logits_to_keep": asked}
