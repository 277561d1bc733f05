"""A sweep in which a row that does not compose is that row's error and no other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import open_dict

from kvbench.cli.messages import complain, say
from kvbench.cli.run import leave, show
from kvbench.configuration import ConfigError, check
from kvbench.configuration.composing import COMPOSITION_ERRORS, explain, parse
from kvbench.configuration.reading import read_once


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
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        read_once(self.hydra_context.config_loader)
        try:
            rows = self._rows(arguments)
        except COMPOSITION_ERRORS as error:
            raise SystemExit(complain(ConfigError(str(error)))) from error
        refused = {label: reason for label, row in rows.items() if (reason := self._refusal(row))}
        if len(refused) == len(rows):
            raise SystemExit(complain(ConfigError(_listed(refused, len(rows)))))
        if refused:
            say(f"{len(refused)} of {len(rows)} rows cannot be run:\n{_listed(refused, len(rows))}")
        make_folder(Path(self.config.hydra.sweep.dir), self.config.runs)
        good = {label: row for label, row in rows.items() if label not in refused}
        jobs = self.launcher.launch(list(good.values()), initial_job_idx=0)
        self._report(dict(zip(good, jobs, strict=True)), refused)
        return jobs

    def _report(self, jobs: Mapping[str, JobReturn], refused: dict[str, str]) -> None:
        done = {label: job.return_value for label, job in jobs.items() if job.status == JobStatus.COMPLETED}
        results = [value for value in done.values() if not isinstance(value, Exception)]
        show(results)
        for job in jobs.values():
            assert job.return_value is not None  # reading it raises what nobody foresaw
        refused |= {label: str(value) for label, value in done.items() if isinstance(value, Exception)}
        if refused:
            num_rows = len(refused) + len(results)
            message = f"{len(refused)} of {num_rows} rows were not run:\n{_listed(refused, num_rows)}"
            raise SystemExit(complain(ConfigError(message)))
        leave(results)

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

    def _refusal(self, row: Sequence[str]) -> str | None:
        """Return why a row cannot run, or None."""
        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        try:
            config = loader.load_sweep_config(self.config, list(row))
            with open_dict(config):
                del config["hydra"]
            check(config)
        except ConfigError as error:
            return str(error)
        except COMPOSITION_ERRORS as error:
            return str(explain(error, row, loader))
        return None


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"runs={runs} cannot be written: {error}. Set runs=<folder>."
        raise SystemExit(complain(OSError(reason))) from error
