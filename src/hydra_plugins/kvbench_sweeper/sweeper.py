"""A sweep in which a row that does not compose is that row's error and no other's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from omegaconf import open_dict

from kvbench.children import first_line
from kvbench.cli.messages import FAILED, complain, say
from kvbench.cli.progress import OfSweep
from kvbench.cli.run import leave, show
from kvbench.configuration import ConfigError, check
from kvbench.configuration.composing import COMPOSITION_ERRORS, explain, parse
from kvbench.configuration.identity import config_json, short_hash
from kvbench.configuration.reading import read_once
from kvbench.measure.environment import source_hash

if TYPE_CHECKING:  # Hydra reads this at every start, and what reads results takes as long as all else
    from kvbench.results.sweeps import Planned, Standing, Sweep
    from kvbench.runner import Result


class RowSweeper(BasicSweeper):
    """Every combination of comma lists; each row is composed and checked before the first one starts.

    Args:
        params: what an experiment sweeps over, which the command line beats.
    """

    def __init__(self, params: Mapping[str, str]) -> None:
        """Take what is swept over."""
        super().__init__(max_batch_size=None, params=dict(params))

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Run the rows that compose, then show them in one table.

        Args:
            arguments: overrides, some of them lists of choices.
        """
        from kvbench.results.sweeps import Sweep, now

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        read_once(self.hydra_context.config_loader)
        try:
            rows = self._rows(arguments)
        except COMPOSITION_ERRORS as error:
            raise SystemExit(complain(ConfigError(str(error)))) from error
        planned = [self._planned(label, row) for label, row in rows.items()]
        refused = {row.label: row.refused for row in planned if row.refused}
        if len(refused) == len(rows):
            raise SystemExit(complain(ConfigError(_listed(refused, len(rows)))))
        if refused:
            say(f"{len(refused)} of {len(rows)} rows cannot be run:\n{_listed(refused, len(rows))}")
        folder = Path(self.config.hydra.sweep.dir)
        make_folder(folder, self.config.runs)
        sweep = Sweep(started_at=now(), source_hash=source_hash(), rows=planned)
        with _writing(self.config.runs):
            sweep.leave(folder)
        good = {label: row for label, row in rows.items() if label not in refused}
        jobs = dict(zip(good, self._launch(good, folder, sweep), strict=True))
        outcomes = {label: job._return_value for label, job in jobs.items()}
        refused |= {label: reason_of(value) for label, value in outcomes.items() if isinstance(value, Exception)}
        with _writing(self.config.runs):
            replace(sweep, rows=[replace(row, refused=refused.get(row.label, "")) for row in planned]).leave(folder)
        results = [value for value in outcomes.values() if not isinstance(value, Exception)]
        show(results)
        status = _complain(refused, len(rows))
        for job in jobs.values():
            assert job.return_value is not None  # reading it raises what nobody foresaw
        if status:
            raise SystemExit(status)
        leave(results)
        return list(jobs.values())

    def _launch(self, rows: Mapping[str, list[str]], folder: Path, sweep: Sweep) -> Sequence[JobReturn]:
        """Run rows where the launcher runs them; where it gives up, show what is there."""
        from kvbench.results.sweeps import standings

        assert self.launcher is not None
        if type(self.launcher) is BasicLauncher:  # in this process, one after the other
            assert self.launcher.task_function is not None
            with OfSweep(list(rows)).around(self.launcher.task_function) as self.launcher.task_function:
                return self.launcher.launch(list(rows.values()), initial_job_idx=0)
        status = f"kvbench sweep status {folder}"
        say(f"{len(rows)} rows go to {type(self.launcher).__name__}; {status} says how far they are")
        try:
            return self.launcher.launch(list(rows.values()), initial_job_idx=0)
        except Exception as error:  # one of its jobs was killed; others may go on
            show([_result(folder, row) for row in standings(folder, sweep) if row.is_finished])
            say(f"the launcher gave up: {first_line(error)}\n{status} says what is there; the same again runs the rest")
            raise SystemExit(FAILED) from error

    def _rows(self, arguments: Sequence[str]) -> dict[str, list[str]]:
        """Return the overrides of every row by what distinguishes it; experiments' parameters vary fastest."""
        rows = self.split_arguments(self._asked(arguments), None)[0]
        common = set.intersection(*map(set, rows))
        return {" ".join(part for part in row if part not in common) or " ".join(row): row for row in rows}

    def _asked(self, arguments: Sequence[str]) -> list[Override]:
        """Return the overrides of the command line, and those of the experiment that it does not beat."""
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        given = parse(arguments, loader)
        names = {override.key_or_group for override in given}
        params = parse([f"{key}={value}" for key, value in self.params.items()], loader)
        return [*given, *(override for override in params if override.key_or_group not in names)]

    def _planned(self, label: str, row: Sequence[str]) -> Planned:
        """Return what a row measures, or why it cannot."""
        from kvbench.results.sweeps import Planned

        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        try:
            config = loader.load_sweep_config(self.config, list(row))
            strategy = config.hydra.runtime.choices["strategy"]
            with open_dict(config):
                del config["hydra"]
            check(config)
        except ConfigError as error:
            return Planned(label=label, refused=str(error))
        except COMPOSITION_ERRORS as error:
            typed = [*self.config.hydra.overrides.hydra, *row]
            return Planned(label=label, refused=str(explain(error, typed, loader)))
        return Planned(label=label, strategy=strategy, config_hash=short_hash(config_json(config)))


def _complain(refused: Mapping[str, str], num_rows: int) -> int:
    """Say which rows were not run, and return the exit status."""
    if not refused:
        return 0
    return complain(ConfigError(f"{len(refused)} of {num_rows} rows were not run:\n{_listed(refused, num_rows)}"))


def reason_of(error: Exception) -> str:
    """Return why a row was not run: all of what the user or the machine has to mend, a line of anything else."""
    return str(error) if isinstance(error, ValueError | OSError) else first_line(error)


def _result(folder: Path, row: Standing) -> Result:
    from kvbench.results.load import load
    from kvbench.runner import Result  # here, because it imports torch

    place = folder / row.run_id
    return Result(rows=load(place), folder=place, is_new=True)


def _listed(refused: Mapping[str, str], num_rows: int) -> str:
    """Return one line per row, or the reason that all rows share."""
    if len(refused) == num_rows and len(set(refused.values())) == 1:
        return next(iter(refused.values()))
    return "\n".join(why if why.startswith(row) else f"{row}: {why}" for row, why in refused.items())


def make_folder(folder: Path, runs: str) -> None:
    """Make the folder of a sweep, or end with the reason why not.

    Args:
        folder: of the sweep.
        runs: as it was set.
    """
    with _writing(runs):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _writing(runs: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"runs={runs} cannot be written: {error}. Set runs=<folder>."
        raise SystemExit(complain(OSError(reason))) from error
