"""What a change of the network has to offer, the one that changes nothing, and how the rest stays shared."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from kvbench.models.view import view_of
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """A change of the network."""

    is_exact: ClassVar[bool]  # whether the network says what it said before
    changes_heads: ClassVar[bool] = False  # whether what is stored has other shapes

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the changed model; the one given stays as it is, and what is unchanged is shared with it.

        Raises:
            ValueError: as `unsupported` says, or where only the modules themselves tell that it cannot be.
        """
        view = view_of(model)
        reason = self.unsupported(view)
        if reason is not None:
            raise ValueError(reason)
        return self.changed(model, view)

    @abstractmethod
    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return the changed model, where `unsupported` says nothing."""

    @abstractmethod
    def unsupported(self, view: ModelView) -> str | None:
        """Return why a model cannot be changed, or None."""

    def shapes(self, view: ModelView) -> ModelView:
        """Return what is known of the changed model before there is one: the view, but for what shapes change."""
        return view

    def view(self, prepared: nn.Module, view: ModelView) -> ModelView:
        """Return what a strategy may know of a prepared model, from the view of what it was made of."""
        return replace(view_of(prepared), asked=view.asked) if self.changes_heads else view


@dataclass(frozen=True, kw_only=True)
class Unchanged(Transform):
    """The network stays as it is."""

    is_exact: ClassVar[bool] = True

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return the model itself."""
        return model

    def unsupported(self, view: ModelView) -> str | None:
        """Return None: every model can stay as it is."""
        return None


def with_modules(module: nn.Module, changes: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy in which some modules are others; modules that hold none of them are shared.

    Args:
        module: stays as it is.
        changes: by name, as in `named_modules`.
    """
    made = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict | set):  # registries of parameters, modules and hooks
            setattr(made, name, value.copy())
    for name, child in module.named_children():
        below = {key.removeprefix(f"{name}."): new for key, new in changes.items() if key.startswith(f"{name}.")}
        if name in changes:
            made.register_module(name, changes[name])
        elif below:
            made.register_module(name, with_modules(child, below))
    return made


def with_config(made: nn.Module, model: nn.Module, **said: object) -> nn.Module:
    """Return a changed model with a config of its own.

    Args:
        made: shares modules with the model, which keep what they have.
        model: what it was made of.
        **said: what its config says otherwise.
    """
    before: Any = model.config
    config = copy.deepcopy(before)
    for name, value in said.items():
        setattr(config.get_text_config(), name, value)
    configs: Mapping[int, Any] = {id(before): config, id(before.get_text_config()): config.get_text_config()}
    given = {id(module) for module in model.modules()}
    for module in made.modules():
        own = configs.get(id(getattr(module, "config", None)))
        if own is not None and id(module) not in given:
            module.config = own
    return made
