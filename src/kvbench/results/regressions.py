"""Which pairs of runs did worse than a limit allows: what a pipeline fails on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

import pandas as pd

from kvbench.results.labels import number

_FLAGS = {"time": "--fail-above", "kv": "--fail-kv-above", "loss": "--fail-loss-above"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a may be of b; what has no limit is infinite.

    Args:
        time: ratio of times, held against the lower end of its interval: what is above it is no noise.
        kv: ratio of the caches' bytes.
        loss: nats per token above b's loss.
    """

    time: float
    kv: float
    loss: float

    def __post_init__(self) -> None:
        """Refuse limits that nothing could exceed by mistake."""
        for name, flag in _FLAGS.items():
            value = getattr(self, name)
            if value != inf and not (isfinite(value) and (value > 0 or name == "loss")):
                kind = "nats per token, such as 0.01" if name == "loss" else "a ratio above 0, such as 1.05"
                raise ValueError(f"{flag} must be {kind}; got {value}.")

    @property
    def asked(self) -> dict[str, float]:
        """The limits there are, by the flag that sets them."""
        return {flag: getattr(self, name) for name, flag in _FLAGS.items() if getattr(self, name) != inf}


def exceeded(pairs: pd.DataFrame, names: Sequence[tuple[str, str]], limits: Limits) -> list[str]:
    """Return a sentence for each limit that a pair exceeds.

    Args:
        pairs: as `kvbench.compare` returns them.
        names: of both sides of each pair.
        limits: given.

    Raises:
        ValueError: if a limit is given that no pair has a number for.
    """
    found = []
    for name, flag in _FLAGS.items():
        limit, column = getattr(limits, name), {"time": "low", "kv": "kv_ratio", "loss": "nll_difference"}[name]
        if limit == inf:
            continue
        if pairs[column].isna().all():
            raise ValueError(f"{flag} can be held against nothing: no pair has {column}. Leave it out, or measure it.")
        seen = set()
        for pair, (a, b) in zip(pairs.to_dict("records"), names, strict=True):
            runs = (pair["sweep_a"], pair["run_id_a"], pair["sweep_b"], pair["run_id_b"])
            if pd.isna(pair[column]) or pair[column] <= limit or (name != "time" and runs in seen):
                continue
            seen.add(runs)
            where = f"{pair['model']}, {pair['workload']} of {pair['prompt_tokens']:,} tokens"
            found.append(f"{where}: {a} over {b}: {_said(name, pair)}, above {flag} {limit:g}")
    return found


def _said(name: str, pair: dict[str, float]) -> str:
    if name == "kv":
        return f"{number(pair['kv_ratio'])} times the bytes"
    if name == "loss":
        return f"{pair['nll_difference']:+.4f} nats per token"
    return f"{pair['phase']} takes {pair['ratio']:.3f} times as long, [{pair['low']:.3f}, {pair['high']:.3f}]"
