"""`kvbench run`, the same as `python run.py`: compose, check, measure, show."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from kvbench.api import execute
from kvbench.cli.messages import FAILED, complain
from kvbench.cli.progress import of_run
from kvbench.configuration import ConfigError, check, compose, compose_all
from kvbench.configuration.composing import CONF, ROOT, VERSION_BASE, parse, search_path, with_sweep
from kvbench.measure.turn import own_turn

if TYPE_CHECKING:
    from hydra.conf import HydraConf

    from kvbench.runner import Result

_ABOUT_THE_SWEEP = re.compile(r"\+*(hydra[./]|(experiment|runs|sweep)=)|~")
_EXPERIMENT = re.compile(r"\+*experiment=")
_MULTIRUN = ("-m", "--multirun")
_ONE_BY_ONE = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
LAUNCHERS = ("joblib", "submitit", "ray")  # extras that bring a launcher each


def main(arguments: Sequence[str]) -> int:
    """Run what a command line asks for; return the exit status.

    Args:
        arguments: overrides, and options of Hydra.
    """
    parsed = get_args_parser().parse_intermixed_args(list(arguments))
    options = [argument for argument in arguments if argument not in (*parsed.overrides, *_MULTIRUN)]
    overrides = with_sweep(parsed.overrides)
    try:
        elsewhere = search_path(parsed.config_dir)
        _check_launcher(overrides)
        if parsed.multirun or any(map(_EXPERIMENT.match, overrides)):
            compose_all([*filter(_ABOUT_THE_SWEEP.match, overrides), *elsewhere])
            options.append("--multirun")
            overrides = _left_to_rows(overrides)
        else:
            check(compose([*overrides, *elsewhere]))  # refuses in better words than Hydra
    except ValueError as error:
        return complain(error)
    with _command_line([*options, *overrides]):
        try:
            _job()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else FAILED
    return 0


@hydra.main(version_base=VERSION_BASE, config_path=f"pkg://{CONF}", config_name=ROOT)
def _job(config: DictConfig) -> Result | Exception:
    """Measure one composed configuration; return why not, where the user or the machine does not allow it."""
    chosen = HydraConfig.get()
    try:
        path = config.model.get("path", "")
        title = f"{chosen.runtime.choices['strategy']} on {Path(path).name or chosen.runtime.choices['model']}"
        with of_run(title, alone=chosen.mode == RunMode.RUN) as progress, _turn(chosen):
            result = execute(config, chosen, progress)
    except (ValueError, OSError) as error:
        if chosen.mode == RunMode.RUN:
            raise SystemExit(complain(error)) from error
        return error
    if chosen.mode == RunMode.RUN:
        show([result])
        leave([result])
    return result


def _turn(chosen: HydraConf) -> AbstractContextManager[None]:
    """Return what keeps jobs apart that a launcher puts on one machine: side by side they would time each other."""
    is_apart = chosen.mode == RunMode.MULTIRUN and chosen.launcher["_target_"] != _ONE_BY_ONE
    return own_turn() if is_apart else nullcontext()


def show(results: Sequence[Result]) -> None:
    """Print one table.

    Args:
        results: of one run or one sweep.
    """
    if not results:
        return
    import pandas as pd

    from kvbench.results.table import print_table

    console = Console()
    for result in results:
        if not result.is_new:
            console.print(f"measured before: {result.folder} (force=true: again)", highlight=False, soft_wrap=True)
        if result.warning is not None:
            console.print(result.warning, highlight=False, soft_wrap=True)
    place = results[0].folder if len(results) == 1 else Path(os.path.commonpath([result.folder for result in results]))
    print_table(pd.concat([result.rows for result in results], ignore_index=True), console, path=place)


def leave(results: Sequence[Result]) -> None:
    """Exit with status 1 if a strategy failed; one that is unsupported or out of memory is a result."""
    if any((result.rows["status"] == "error").any() for result in results):
        raise SystemExit(FAILED)


def _check_launcher(overrides: Sequence[str]) -> None:
    """Refuse a launcher that is not installed."""
    for override in overrides:
        name = override.removeprefix("hydra/launcher=")
        extra = name.partition("_")[0]
        if name != override and extra in LAUNCHERS and find_spec(f"hydra_plugins.hydra_{extra}_launcher") is None:
            raise ConfigError(f"{override} is not installed: pip install 'kvbench[{extra}]'")


def _left_to_rows(overrides: Sequence[str]) -> list[str]:
    """Return overrides of a sweep such that only its rows apply them.

    Hydra would apply single values to the default strategy too, which need not have the key.
    """
    return [
        line
        if _ABOUT_THE_SWEEP.match(line) or override.is_sweep_override()
        else f"{override.get_key_element()}=choice({override.get_value_element_as_str() or repr('')})"
        for line, override in zip(overrides, parse(overrides), strict=True)
    ]


@contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra see these arguments."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before
