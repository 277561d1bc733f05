"""Scores that the full cache is known to reach: published ones, and those of the embedded models.

`references_published.json` cites where each was published; `python -m benchmarks.references` measures the others.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from kvbench.workloads.asked import Asked

PUBLISHED, EMBEDDED = "references_published.json", "references_embedded.json"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A score of the full cache.

    Args:
        score: mean over tasks, from 0 to 1.
        samples: of all tasks together, of which it is the mean; 0 where that is not known.
        source: who says so.
    """

    score: float
    samples: int
    source: str


def reference_of(weights: str, workload: Asked, tasks: Collection[str]) -> Reference | None:
    """Return what the full cache is known to score, or None where nobody knows.

    Args:
        weights: name on the hub, or of an embedded model; "" for others.
        workload: what is asked; its settings decide whether a stored score is of the same questions.
        tasks: that are scored; each must have been, alone or in a mean of which all others are asked too.
    """
    if workload.reference == "none":
        return None
    if workload.reference != "auto":
        return Reference(score=workload.reference, samples=0, source="workload.reference")
    rest, total, samples, sources = set(tasks), 0.0, 0, dict[str, None]()
    for known in _stored():
        if known["weights"] == weights and _is_asked(known, workload):
            for name, score in known["scores"].items():
                mean_of = set(name.split())
                if mean_of <= rest:
                    rest -= mean_of
                    total += score * len(mean_of)
                    samples += known["samples"] * len(mean_of)
                    sources[known["source"]] = None
    if rest or not tasks:
        return None
    return Reference(score=total / len(tasks), samples=samples, source=", ".join(sources))


def _is_asked(known: dict[str, Any], workload: Asked) -> bool:
    if known["workload"] != type(workload).__name__:
        return False
    return all(json.dumps(getattr(workload, key)) == json.dumps(value) for key, value in known["settings"].items())


@cache
def _stored() -> list[dict[str, Any]]:
    """Return the stored scores.

    Each is of `weights`, a `workload` with `settings`, and has the `scores` of tasks (of several, split by spaces,
    their mean), of so many `samples` of each, with its `source`.
    """
    texts = [(files("kvbench.quality") / name).read_text(encoding="utf-8") for name in (PUBLISHED, EMBEDDED)]
    return [known for text in texts for known in json.loads(text)]
