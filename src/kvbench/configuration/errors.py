"""The one error of a configuration, and how it names what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """What is wrong with a configuration: one readable message with the key and the valid choices."""


def hint(wrong: str, choices: Iterable[str], *, prefix: str = "", label: str = "Choices") -> str:
    """Return a sentence with the near misses and all choices.

    Args:
        wrong: what was written.
        choices: what could have been.
        prefix: put before a near miss, to make it what the user should type.
        label: what the choices are.
    """
    known = sorted(set(choices))
    close = near_misses(wrong, known)
    guess = f"Did you mean {' or '.join(prefix + name for name in close)}? " if close else ""
    return f"{guess}{label}: {', '.join(known) if known else 'none'}."


def near_misses(wrong: str, choices: Iterable[str]) -> list[str]:
    """Return up to three choices that may have been meant."""
    known = sorted(set(choices))
    close = difflib.get_close_matches(wrong, known, n=3, cutoff=0.6)
    return close or [name for name in known if wrong and wrong in name][:3]
