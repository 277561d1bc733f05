"""kvbench: which KV-cache strategy, and is that claim true?

    kvbench.run(overrides)                                what `python run.py` does
    kvbench.strategy(name, **settings)                    a strategy; its cache also works in model.generate
    kvbench.trace(model, strategy, ids, prompt_tokens)    teacher-forced: logits, and the positions held
    kvbench.load(path, steps=False)                       a tree of runs as a data frame
    kvbench.compare(a, b)                                 paired ratios with intervals

Nothing is imported before it is used: `import kvbench` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.api import run as run
    from kvbench.api import strategy as strategy
    from kvbench.results.compare import compare as compare
    from kvbench.results.load import load as load
    from kvbench.tracing import trace as trace

__version__ = "0.1.0"
__all__ = ["compare", "load", "run", "strategy", "trace"]

_HOMES = {
    "run": "kvbench.api",
    "strategy": "kvbench.api",
    "trace": "kvbench.tracing",
    "load": "kvbench.results.load",
    "compare": "kvbench.results.compare",
}


def __getattr__(name: str) -> Any:
    """Return a public function, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kvbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
