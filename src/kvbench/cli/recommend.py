"""`kvbench recommend`: which strategy keeps to a memory, a loss and a length, from measured rows."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from rich.console import Console

from kvbench.cli.amounts import amount
from kvbench.cli.catalogue import catalogue
from kvbench.cli.messages import FAILED
from kvbench.configuration.errors import ConfigError
from kvbench.results.advice import print_recommendation
from kvbench.results.candidates import Prefer, Wanted
from kvbench.results.cells import Row
from kvbench.results.load import load
from kvbench.results.recommend import recommend

if TYPE_CHECKING:
    from kvbench.types import ModelView

_OTHER_VERSION = "its configuration is another kvbench's, whose closed form is not known here"


def main(
    path: str,
    *,
    memory: str,
    max_loss: float,
    context: int,
    batch: int,
    max_slowdown: float,
    query_aware: bool,
    prefer: Prefer,
    model: str,
) -> int:
    """Print which strategy and why; 1 if none keeps to the limits."""
    for name, value in (("context", context), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1; got {value}.")
    wanted = Wanted(
        memory=amount("--memory", memory, "B"),
        loss=max_loss,
        context=context,
        batch=batch,
        slowdown=max_slowdown,
        query_aware=query_aware,
        prefer=prefer,
    )
    frame = load(path)
    found = recommend(frame, wanted, closed_form, model=model)
    known = set(frame["strategy"])
    unmeasured = [name for name in dict(catalogue())["strategy"] if name not in known]
    print_recommendation(found, wanted, Console(), unmeasured=unmeasured)
    return 0 if found.fitting else FAILED


def closed_form(row: Row, context: int, batch: int) -> int | str:
    """Return the bytes of a row's cache at another length, or why nobody knows.

    Args:
        row: whose configuration counts.
        context: tokens of the prompt.
        batch: prompts at once.
    """
    from kvbench.configuration import build_group, compose, resolved
    from kvbench.models.load import ModelError
    from kvbench.strategies.black_box import BlackBox
    from kvbench.types import RunShape

    config = json.loads(row["config_json"])
    if row["arm"] == "baseline":
        config["strategy"] = resolved(compose(["strategy=baseline"]))["strategy"]
    try:
        strategy = build_group(config["strategy"], "strategy")
        max_positions, view = _unloaded(json.dumps(config["model"]))
    except ConfigError:
        return _OTHER_VERSION
    except ModelError as error:
        return str(error)
    if max_positions is not None and context > max_positions:
        return f"the model reads at most {max_positions:,} tokens"
    if isinstance(strategy, BlackBox):
        return "it is another engine's cache, whose bytes are known where they were measured"
    run = RunShape(prompt_lengths=(context,) * batch, new_tokens=row["new_tokens"])
    changed = strategy.transform.shapes(view)
    reason: str | None = None if strategy.transform.changes_heads else strategy.unsupported(changed, run)
    return reason or strategy.allocated_bytes(changed, run)


@cache
def _unloaded(model: str) -> tuple[int | None, ModelView]:
    """Return the most tokens a model reads, and its shapes, without its weights.

    Keys that its run did not know, such as where layers lie, are as they are today.
    """
    from kvbench.configuration import build_group, compose, resolved
    from kvbench.models.load import skeleton
    from kvbench.models.view import view_of

    said = json.loads(model)
    spec = build_group({**resolved(compose([f"model={said['name']}"]))["model"], **said}, "model")
    return spec.max_positions, view_of(skeleton(spec))
