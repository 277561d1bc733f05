"""What a notebook asks for: runs and strategies by the names that the command line uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from kvbench.configuration import build_group, check, compose, compose_all, resolved

if TYPE_CHECKING:
    from hydra.conf import HydraConf

    from kvbench.runner import Progress, Result
    from kvbench.strategies.base import CacheStrategy


def run(overrides: Sequence[str] = ()) -> Result:
    """Measure what `python run.py` with these overrides would, unless that has been done; print nothing.

    Args:
        overrides: such as ["strategy=h2o", "workload.prompt_tokens=1024"].

    Raises:
        ConfigError: if they are wrong, before anything is loaded.
    """
    config = compose_all(overrides)
    chosen = config.hydra
    with open_dict(config):
        del config["hydra"]
    return execute(config, chosen, lambda stage, share: None)


def execute(config: DictConfig, chosen: HydraConf, progress: Progress) -> Result:
    """Check a composed configuration, then measure it.

    Args:
        config: without Hydra's own node.
        chosen: Hydra's own node.
        progress: told the stage and how much of it is done.
    """
    checked = check(config)
    from kvbench import runner  # after the check: it imports torch and starts processes

    choices = chosen.runtime.choices
    names = runner.Names(
        strategy=choices["strategy"],
        model=checked.model.title if checked.model.path else choices["model"],
        engine=choices["engine"],
        workload=choices["workload"],
        overrides=" ".join(override for override in chosen.overrides.task if not override.startswith("sweep=")),
    )
    return runner.run(config, checked, names=names, progress=progress)


def strategy(name: str, **settings: object) -> CacheStrategy:
    """Return a strategy; its cache also works in `model.generate`.

    Args:
        name: one of those that `kvbench list` names.
        settings: parts by name, or values of a part: `strategy("snapkv", position="rank", budget={"amount": 128,
            "unit": "tokens"})`.

    Raises:
        ConfigError: if a name, a key or a value is wrong.
    """
    config = compose([f"strategy={name}", *_overrides(settings, "strategy")])
    built: CacheStrategy = build_group(resolved(config)["strategy"], "strategy")
    return built


def _overrides(settings: Mapping[str, Any], node: str) -> list[str]:
    """Return keyword arguments as a command line would write them."""
    out = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            out += [f"{node}.{name}.{key}={_written(inner)}" for key, inner in value.items()]
        else:
            out.append(f"{node}/{name}={value}" if isinstance(value, str) else f"{node}.{name}={_written(value)}")
    return out


def _written(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_written, value)) + "]"
    return repr(value)
