"""Nothing is kept: every step reads all tokens so far from the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from kvbench.models.rereading import connect, without_entries
from kvbench.strategies.transform.base import Transform, with_modules
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Rereading(Transform):
    """A decode step is a pass over all tokens so far, as over a prompt; weights are shared with the model given."""

    is_exact: ClassVar[bool] = True
    changes_heads: ClassVar[bool] = True

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the tokens of a model cannot be read again, or None."""
        if view.keeps_context:
            return (
                "this model forgets its prompt, and strategy/transform=reread has it read again; choose another model"
            )
        return None

    def shapes(self, view: ModelView) -> ModelView:
        """Return the view with layers that keep nothing."""
        return without_entries(view)

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return a model that reads everything again."""
        if view.keeps_nothing:
            return model
        made = with_modules(model, {})
        connect(made)
        return made
