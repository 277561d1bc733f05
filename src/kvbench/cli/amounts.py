"""Amounts with units, as they are typed and printed."""

from __future__ import annotations

import re

from kvbench.configuration.errors import ConfigError

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_EXAMPLES = {"B": "24GiB", "B/s": "25GB/s", "flop/s": "300Tflop/s", "s": "5us"}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kMGTPmun]|[KMGT]i)?")


def amount(key: str, text: str, unit: str) -> float:
    """Return an amount in a unit.

    Args:
        key: what it is of, for messages.
        text: such as "24GiB", "25GB/s", "5us".
        unit: "B", "B/s", "flop/s" or "s".

    Raises:
        ConfigError: if it cannot be read, or is not above 0.
    """
    found = _AMOUNT.fullmatch(text.removesuffix(unit)) if text.endswith(unit) else None
    if found is None or float(found[1]) <= 0:
        raise ConfigError(
            f"{key}= must be an amount above 0 with its unit, such as {key}={_EXAMPLES[unit]}; got {text}."
        )
    return float(found[1]) * (_PREFIXES | _BINARY)[found[2] or ""]


def number(key: str, text: str, *, least: int) -> int:
    """Return a whole number.

    Args:
        key: what it is of, for messages.
        text: as typed.
        least: that it may be.

    Raises:
        ConfigError: if it is something else.
    """
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{key}= must be a whole number of at least {least}; got {text}.")
    return int(text)


def numbers(key: str, text: str) -> list[int]:
    """Return whole numbers of at least 1, from "4" or "1,4,16"."""
    return [number(key, part, least=1) for part in text.split(",")]


def shown(value: float, unit: str) -> str:
    """Return an amount with three digits and a prefix; no thousands of seconds."""
    fitting = {scale: prefix for prefix, scale in _PREFIXES.items() if scale <= value and (unit != "s" or scale <= 1)}
    scale = max(fitting, default=1.0)
    digits = f"{value / scale:,.0f}" if value / scale >= 1000 else f"{value / scale:.3g}"
    return f"{digits} {fitting.get(scale, '')}{unit}"
