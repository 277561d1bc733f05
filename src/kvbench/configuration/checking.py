"""From a composed configuration to the objects a run is made of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from kvbench.configuration.building import TARGET, build
from kvbench.configuration.errors import ConfigError, hint
from kvbench.configuration.plugins import places

if TYPE_CHECKING:
    from kvbench.engines.batcher import Batcher
    from kvbench.engines.black_box import BlackBoxEngine
    from kvbench.engines.eager import Eager
    from kvbench.engines.schedulers import Scheduler, Unscheduled
    from kvbench.measure.settings import Settings
    from kvbench.models.spec import ModelSpec
    from kvbench.quality import Quality
    from kvbench.results.sink import Sink
    from kvbench.strategies.base import CacheStrategy
    from kvbench.workloads.asked import Asked
    from kvbench.workloads.decode import Decode
    from kvbench.workloads.perplexity import Perplexity
    from kvbench.workloads.prefill import Prefill
    from kvbench.workloads.requests import Requests
    from kvbench.workloads.text import Text

_VALUES: dict[str, object] = {
    "seed": int,
    "compare": Literal["baseline", "none"],
    "force": bool,
    "runs": str,
    "sweep": str,
    "plugins": tuple[str, ...],
}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a run is made of.

    Args:
        model: which model, with which weights, where.
        engine: how tokens get made.
        scheduler: which of the requests that wait is next.
        workload: what is read and decoded.
        quality: how much quality is measured beside it.
        measure: how long and how carefully time is measured.
        sink: where results go beside the files.
        strategy: what the cache stores.
        seed: of everything drawn.
        compare: what the strategy is compared with.
        force: whether to run again beside a finished run.
        runs: folder of the results.
        sweep: folder below it.
        plugins: packages beside kvbench that objects may come from.
    """

    model: ModelSpec
    engine: Eager | BlackBoxEngine | Batcher
    scheduler: Scheduler | Unscheduled
    workload: Decode | Prefill | Text | Perplexity | Asked | Requests
    quality: Quality
    measure: Settings
    sink: Sink
    strategy: CacheStrategy
    seed: int
    compare: Literal["baseline", "none"]
    force: bool
    runs: str
    sweep: str
    plugins: tuple[str, ...]


def check(config: DictConfig) -> Checked:
    """Return the objects of a configuration; every key and value has been looked at.

    Args:
        config: composed, without Hydra's own node.

    Raises:
        ConfigError: one readable message for the first thing that is wrong.
    """
    plain = resolved(config)
    names = [field.name for field in fields(Checked)]
    for name in plain:
        if name not in names:
            raise ConfigError(f"the configuration has no {name!r}. {hint(name, names, label='It has')}")
    for name in names:
        if name not in plain:
            raise ConfigError(f"the configuration lacks {name!r}.")
    values = {name: build(plain[name], kind, name, ()) for name, kind in _VALUES.items()}
    for package in values["plugins"]:
        if not places(package):
            raise ConfigError(
                f"plugins: there is no package or module {package!r} in {Path.cwd()} or where Python looks for them. "
                f"Set plugins=[<package>,...]."
            )
    prefixes = ("kvbench.", *(f"{package}." for package in values["plugins"]))
    for name in names:
        if name not in _VALUES:
            values[name] = build_group(plain[name], name, prefixes)
    return Checked(**values)


def build_group(node: object, name: str, prefixes: tuple[str, ...] = ("kvbench.",)) -> Any:
    """Return the object of one group's node."""
    if not isinstance(node, dict) or TARGET not in node:
        raise ConfigError(f"{name} must be one of the choices in conf/{name}; got {node!r}. Write {name}=<choice>.")
    return build(node, object, name, prefixes)


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain containers.

    Raises:
        ConfigError: if a value is missing or refers to one that does not exist.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        missing = str(error.msg).partition("'")[2].partition("'")[0]
        key = error.full_key
        raise ConfigError(
            f"{key} refers to {missing}, which this composition does not have; set {key}=<value>."
        ) from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        raise ConfigError(f"{key}: {' '.join(str(error.msg).split())}") from error
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}
