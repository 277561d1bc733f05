"""Composition by Hydra, and what was meant where it fails."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kvbench.configuration.errors import ConfigError, hint, near_misses
from kvbench.configuration.reading import read_once

CONF = "kvbench.conf"
ROOT = "config"
VERSION_BASE = "1.3"
ASKED = "FSDC_"  # what the names begin with that yaml asks of the environment
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError)  # Hydra raises the last for strategy=5

_BESIDE = "beside"
_SEARCH_PATH = "hydra.searchpath"
_OWN_FOLDER = re.compile(r"(?<=file://)[^']+")
_EXPERIMENT = re.compile(r"\+*experiment=(\w[\w.-]*)")
_NOT_IN_NAME = re.compile(r"\+*(force|runs|sweep|hydra\..*|plugins)=.*")


def compose(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration that overrides make, as a command line would.

    Args:
        overrides: such as ["strategy=h2o", "workload.prompt_tokens=1024"].

    Raises:
        ConfigError: if they do not compose.
    """
    config = compose_all(overrides)
    with open_dict(config):
        del config["hydra"]
    return config


def compose_all(overrides: Sequence[str]) -> DictConfig:
    """Return the same with Hydra's own node, which knows the choice made in every group."""
    if any(override.startswith(_SEARCH_PATH) or "oc.env:" in override for override in overrides):
        return _composed(*overrides)  # a folder of one's own, whose files change, or any variable
    asked = tuple(item for item in os.environ.items() if item[0].startswith(ASKED))
    return copy.deepcopy(_composed_once(asked, *overrides))


@lru_cache(maxsize=512)
def _composed_once(asked: tuple[tuple[str, str], ...], *overrides: str) -> DictConfig:
    return _composed(*overrides)


def _composed(*overrides: str) -> DictConfig:
    with config_loader() as loader:
        named = with_sweep(overrides)
        try:
            return load(loader, named)
        except COMPOSITION_ERRORS as error:
            raise explain(error, named, loader) from error


@contextmanager
def config_loader() -> Iterator[ConfigLoader]:
    """Hold a loader of the packaged tree, also inside another application of Hydra or our own."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONF, version_base=VERSION_BASE):
            yield read_once(GlobalHydra.instance().config_loader())
    finally:
        GlobalHydra.instance().hydra = outer


def load(loader: ConfigLoader, overrides: Sequence[str]) -> DictConfig:
    """Return what a loader makes of overrides."""
    return loader.load_configuration(ROOT, list(overrides), run_mode=RunMode.RUN, from_shell=False)


def with_sweep(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with the name of the folder their results belong in."""
    if any(re.match(r"\+*sweep=", override) for override in overrides):
        return list(overrides)
    return [*overrides, f"sweep={sweep_name(overrides)}"]


def sweep_name(overrides: Sequence[str]) -> str:
    """Return the experiment's name, or a short hash of all overrides that say what is measured."""
    for override in overrides:
        found = _EXPERIMENT.fullmatch(override)
        if found:
            return found[1]
    measured = sorted(override for override in overrides if not _NOT_IN_NAME.fullmatch(override))
    # "adhoc-" also keeps Hydra from reading a hash such as 12e45678 as a number
    return f"adhoc-{hashlib.sha256(chr(10).join(measured).encode()).hexdigest()[:8]}"


def parse(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Return overrides as Hydra reads them.

    Args:
        overrides: as typed.
        loader: needed only where they hold patterns such as glob(*).

    Raises:
        ConfigError: if one cannot be read.
    """
    try:
        return OverridesParser.create(loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise _unreadable(error) from error


def _unreadable(error: OverrideParseException) -> ConfigError:
    return ConfigError(f"{error.override!r} cannot be read, write key=value: {_flat(error).partition(' See ')[0]}")


def search_path(folder: str | None) -> list[str]:
    """Return the override that adds a folder of configurations; none for None.

    Raises:
        ConfigError: if there is no such folder.
    """
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir={folder} is no folder.")
    return [f"{_SEARCH_PATH}=['file://{Path(folder).resolve()}']"]


def explain(error: Exception, overrides: Sequence[str], loader: ConfigLoader) -> ConfigError:
    """Return one readable message for overrides that do not compose.

    Args:
        error: what Hydra or OmegaConf raised.
        overrides: what was asked for.
        loader: knows the groups and their choices.
    """
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        folders = [Path(one) for line in overrides for one in _OWN_FOLDER.findall(line)]
        own = [path.stem for folder in folders for path in (folder / group).glob("*.yaml")]
        known = hint(name, [*(loader.get_group_options(group) if group else ()), *own], prefix=f"{group}=")
        where = "" if folders else " For one of your own, say where it is: --config-dir <folder>."
        return ConfigError(f"{group}={name}: there is no such choice. {known}{where}")
    parsed = parse(overrides, loader)
    groups = list(_groups(loader, ""))
    chosen = [str(o.input_line) for o in parsed if o.is_hydra_override() or o.key_or_group in groups]
    for override in parsed:
        reason = None if override.is_hydra_override() else _reason(override, groups, chosen, loader)
        if reason is not None:
            return ConfigError(reason)
    cause = f" {_flat(error.__cause__)}" if error.__cause__ is not None else ""
    return ConfigError(_flat(error) + cause)


def _reason(override: Override, groups: Sequence[str], chosen: Sequence[str], loader: ConfigLoader) -> str | None:
    """Return what is wrong with one override, or None where it is none of the usual mistakes."""
    key, line = override.key_or_group, override.input_line
    if override.is_sweep_override():
        return f"{line} holds several values: add -m to run every one, or write [a,b] for a list."
    if "/" in key and key not in groups:
        parent, _, last = key.rpartition("/")
        siblings = [group.rpartition("/")[2] for group in groups if group.rpartition("/")[0] == parent]
        return f"{line}: there is no group {key}. {hint(last, siblings, prefix=f'{parent}/', label='Groups')}"
    if key in groups and not isinstance(override.value(), str | list | None):
        return f"{line}: {key} is chosen by name. {hint('', loader.get_group_options(key))}"
    if override.is_add() and key in groups and key.partition("/")[0] in (_plain(loader, []) or {}):
        return f"{line}: {key} is chosen already, leave out the +."
    if key in groups or override.is_add() or override.is_force_add():
        return None
    return _unknown_key(key, groups, chosen, loader)


def _unknown_key(key: str, groups: Sequence[str], chosen: Sequence[str], loader: ConfigLoader) -> str | None:
    """Return which part of a dotted key does not exist, or None where all do or the choices do not compose."""
    node = _plain(loader, chosen)
    if node is None:
        return None
    above = ""
    for part in key.split("."):
        if not isinstance(node, Mapping):
            return f"{key}: {above} is a value, it has no settings of its own."
        if part not in node:
            settings = [name for name in node if name not in ("_target_", "hydra")]
            prefix = f"{above}." if above else ""
            known = hint(part, settings, prefix=prefix, label="It has")
            where = above or "the configuration"
            elsewhere = _elsewhere(key, above, groups, chosen, loader, is_typo=bool(near_misses(part, settings)))
            return f"{key}: {where} has no {part!r}. {known}{elsewhere}"
        node = node[part]
        above = f"{above}.{part}" if above else part
    return None


def _elsewhere(
    key: str, above: str, groups: Sequence[str], chosen: Sequence[str], loader: ConfigLoader, *, is_typo: bool
) -> str:
    """Return which other choices of a group have the key: what was meant when one was forgotten."""
    group = above.replace(".", "/")
    if group not in groups:
        return ""
    options = loader.get_group_options(group)
    if not any(other.startswith(f"{group}/") for other in groups):
        beside = [f"+{group}@{_BESIDE}.{option}={option}" for option in options]
        nodes = _at(_plain(loader, [*chosen, *beside]), _BESIDE) or {}
    elif is_typo:  # strategies are made of parts and composed one by one, which takes ten seconds
        return ""
    else:
        nodes = {option: _at(_plain(loader, [*chosen, f"{group}={option}"]), above) for option in options}
    below = key.removeprefix(f"{above}.")
    having = [f"{group}={option}" for option, node in nodes.items() if _at(node, below) is not None]
    return f" {key} exists with {', '.join(having)}." if having else ""


def _at(node: Any, key: str) -> Any:
    """Return what a node holds under a dotted key, or None."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _plain(loader: ConfigLoader, overrides: Sequence[str]) -> Any:
    try:
        return OmegaConf.to_container(load(loader, overrides))
    except COMPOSITION_ERRORS:
        return None


def _groups(loader: ConfigLoader, parent: str) -> Iterator[str]:
    for name in loader.list_groups(parent):
        group = f"{parent}/{name}" if parent else name
        if group.partition("/")[0] not in ("hydra", "__pycache__"):
            yield group
            yield from _groups(loader, group)


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())
