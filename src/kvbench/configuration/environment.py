"""What yaml may ask of a value, such as one that the environment gives: `${if:condition,then,otherwise}`."""

from __future__ import annotations

from omegaconf import OmegaConf


def choose(condition: object, then: object, otherwise: object) -> object:
    """Return one of two values.

    Args:
        condition: true or false, or a number, which is false if it is 0.
        then: where it is true.
        otherwise: where it is false.

    Raises:
        ValueError: if it is neither.
    """
    if not isinstance(condition, bool | int | float):
        raise ValueError(f"a value that the environment gives has to be true or false, or a number; got {condition!r}")
    return then if condition else otherwise


def register() -> None:
    """Let every yaml ask for it."""
    OmegaConf.register_new_resolver("if", choose, replace=True)
