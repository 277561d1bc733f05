"""Sizes that are counted wrong."""

from __future__ import annotations

from typing import Any

from torch import nn

from kvbench.models.view import view_of
from kvbench.types import ModelView


def with_tables(model: nn.Module) -> int:
    """Multiply with tables of which a token reads a row."""
    return sum(parameter.numel() for parameter in model.parameters())


def without_head(model: nn.Module) -> int:
    """Leave out every table, the head's too."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)


def of_one_layer(model: nn.Module) -> ModelView:
    """Look at the first layer alone."""
    view = view_of(model)
    return type(view)(**{**vars(view), "layers": view.layers[:1]})


def one_for_all(model: nn.Module) -> int:
    """Count one operation, however many layers there are."""
    return 1


# what is put in place, by what, and the check that has to fail
SIZES: tuple[tuple[str, Any, int], ...] = (
    ("_read_parameters", with_tables, 0),
    ("_read_parameters", without_head, 0),
    ("view_of", of_one_layer, 1),
    ("_launches", one_for_all, 2),
)
