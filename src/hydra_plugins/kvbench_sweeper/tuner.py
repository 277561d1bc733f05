"""A search in place of a sweep: which row comes next depends on what the rows before it showed.

Optuna chooses the rows; what was tried is in a journal in the sweep's folder, so that a search that was killed goes on.
Every trial is a run like any other: `kvbench table` shows them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn

from hydra_plugins.kvbench_sweeper.sweeper import RowSweeper, make_folder, reason_of
from kvbench.cli.messages import complain, say
from kvbench.configuration import ConfigError
from kvbench.configuration.composing import COMPOSITION_ERRORS
from kvbench.configuration.errors import hint
from kvbench.configuration.identity import short_hash
from kvbench.configuration.reading import read_once

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

JOURNAL = "search.journal"
DIRECTIONS = ("minimize", "maximize")
SAMPLERS = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "random": "RandomSampler"}


class Outcome(NamedTuple):  # no dataclass: Hydra loads plugins without a place in sys.modules, where those look
    """What came of a trial.

    Args:
        values: of the objectives; none where it failed.
        run: name of the run; "" where it failed.
        reason: why it failed; "" where it did not.
    """

    values: Sequence[float] = ()
    run: str = ""
    reason: str = ""


class Tuner(RowSweeper):
    """Parameters chosen by Optuna (Akiba et al., 2019, arXiv:1907.10902), one or several objectives at once.

    Args:
        params: what an experiment searches or sets, which the command line beats.
        objectives: columns of the strategy's row, each "minimize" or "maximize".
        trials: runs, those that fail included.
        at_once: runs that are launched together.
        sampler: "tpe", "nsga2" or "random".
        seed: of the sampler.
    """

    def __init__(
        self,
        params: Mapping[str, str],
        objectives: Mapping[str, Literal["minimize", "maximize"]],
        trials: int,
        at_once: int,
        sampler: str,
        seed: int,
    ) -> None:
        """Take what is searched, and for what."""
        super().__init__(params)
        self.objectives, self.trials, self.at_once = dict(objectives), trials, at_once
        self.sampler, self.seed = sampler, seed

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Run one trial after the other, then show those that no other beats.

        Args:
            arguments: overrides; lists, ranges and intervals are searched.
        """
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        read_once(self.hydra_context.config_loader)
        try:
            self._check()
            fixed, space = space_of(self._asked(arguments))
            folder = Path(self.config.hydra.sweep.dir)
            make_folder(folder, self.config.runs)
            study = self._study(folder / JOURNAL, [*fixed, *map(str, space.items())])
        except COMPOSITION_ERRORS as error:
            raise SystemExit(complain(ConfigError(str(error)))) from error
        jobs: list[JobReturn] = []
        before = _ended(study)
        if before:
            say(f"{before} of {self.trials} trials were there already: {folder / JOURNAL}")
        while (ended := _ended(study)) < self.trials:
            trials = [study.ask(space) for _ in range(min(self.at_once, self.trials - ended))]
            rows = [[*fixed, *_overrides(trial.params)] for trial in trials]
            jobs += self._run(study, trials, rows, ended)
        self._show(study, folder)
        return jobs

    def _check(self) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError("hydra/sweeper=optuna needs Optuna: pip install '.[optuna]'.") from error
        import pyarrow as pa

        from kvbench.results import schema

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        where = "hydra.sweeper"
        columns = [field.name for field in schema.RUN if field.type in (pa.int64(), pa.float64())]
        if not self.objectives:
            raise ConfigError(f"{where}.objectives must name at least one column.")
        for name, direction in self.objectives.items():
            if name not in columns:
                raise ConfigError(f"{where}.objectives: {name} is no column of numbers. {hint(name, columns)}")
            if direction not in DIRECTIONS:
                raise ConfigError(f"{where}.objectives.{name} must be {' or '.join(DIRECTIONS)}; got {direction!r}.")
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"{where}.sampler must be one of {', '.join(SAMPLERS)}; got {self.sampler!r}.")
        for key in ("trials", "at_once"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{where}.{key} must be at least 1; got {getattr(self, key)}.")

    def _study(self, journal: Path, asked: Sequence[str]) -> Study:
        """Return the search that a journal holds for this question and this source, or a new one.

        What was under way when a search was killed comes first.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        from kvbench.configuration.plugins import places
        from kvbench.measure.environment import source_hash

        assert self.config is not None
        sources = [source_hash(), *(source_hash(place) for one in self.config.plugins for place in places(one))]
        name = "\n".join([*asked, json.dumps(self.objectives), *sources])
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=short_hash(name),
            directions=list(self.objectives.values()),
            load_if_exists=True,
        )
        study.sampler = self._sampler(len(study.trials))
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
            study.enqueue_trial(trial.params)
        return study

    def _sampler(self, done: int) -> BaseSampler:
        """Return the sampler, which does not draw again what it drew before it was killed."""
        from optuna import samplers

        made: BaseSampler = getattr(samplers, SAMPLERS[self.sampler])(seed=self.seed + done)
        return made

    def _run(
        self, study: Study, trials: Sequence[Trial], rows: Sequence[Sequence[str]], ended: int
    ) -> Sequence[JobReturn]:
        """Launch trials that compose, and tell the study what came of each."""
        from optuna.trial import TrialState

        assert self.launcher is not None
        reasons = [self._planned("", row).refused for row in rows]
        good = [list(row) for row, reason in zip(rows, reasons, strict=True) if not reason]
        jobs = list(self.launcher.launch(good, initial_job_idx=trials[0].number)) if good else []
        left = iter(jobs)
        for number, (trial, reason) in enumerate(zip(trials, reasons, strict=True), ended + 1):
            outcome = Outcome(reason=reason) if reason else self._outcome(next(left))
            trial.set_user_attr("reason", outcome.reason)
            trial.set_user_attr("run", outcome.run)
            study.tell(trial, outcome.values or None, state=None if outcome.values else TrialState.FAIL)
            said = outcome.reason or self._named(outcome.values)
            say(f"trial {number} of {self.trials}: {' '.join(_said(trial.params))}: {said}")
        return jobs

    def _outcome(self, job: JobReturn) -> Outcome:
        import pandas as pd

        result = job._return_value
        if isinstance(result, Exception):
            return Outcome(reason=reason_of(result))
        (row,) = result.rows[result.rows["arm"] == "strategy"].to_dict("records")
        if row["status"] != "ok":
            return Outcome(reason=f"{row['status']}: {row['reason']}")
        empty = [name for name in self.objectives if pd.isna(row[name])]
        if empty:
            return Outcome(reason=f"the run has no {', '.join(empty)}")
        return Outcome(values=[float(row[name]) for name in self.objectives], run=row["run_id"])

    def _named(self, values: Sequence[float]) -> str:
        return ", ".join(f"{name} {_number(value)}" for name, value in zip(self.objectives, values, strict=True))

    def _show(self, study: Study, folder: Path) -> None:
        """Print the trials that no other beats in all objectives; fail where there is none."""
        from optuna.trial import TrialState
        from rich import box
        from rich.console import Console
        from rich.table import Table

        failed = study.get_trials(states=[TrialState.FAIL])
        best = sorted(study.best_trials, key=lambda trial: trial.values) if _ended(study) > len(failed) else []
        if not best:
            reasons = sorted({trial.user_attrs.get("reason", "") for trial in failed})
            raise SystemExit(complain(OSError(f"all {len(failed)} trials failed:\n" + "\n".join(reasons))))
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in self.objectives:
            shown.add_column(name, justify="right", overflow="fold")
        shown.add_column("with")
        shown.add_column("run", no_wrap=True)
        for trial in {trial.user_attrs["run"]: trial for trial in best}.values():  # each run once
            shown.add_row(*map(_number, trial.values), " ".join(_said(trial.params)), trial.user_attrs["run"])
        console = Console()
        console.print(
            f"\n{_ended(study)} trials, {len(failed)} failed. Those that no other beats in every objective:\n"
        )
        console.print(shown)
        console.print(f"\nall of them: kvbench table {folder}", highlight=False, soft_wrap=True)


def space_of(overrides: Sequence[Override]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Return what is set, and what is searched, by key.

    Raises:
        ConfigError: if nothing is searched.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    fixed: list[str] = []
    space: dict[str, BaseDistribution] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append(f"{key}={override.get_value_element_as_str()}")
            continue
        asked = override.value()
        if isinstance(asked, IntervalSweep):
            assert asked.start is not None
            assert asked.end is not None
            is_whole = isinstance(asked.start, int) and isinstance(asked.end, int)
            made = IntDistribution if is_whole else FloatDistribution
            space[key] = made(asked.start, asked.end, log="log" in asked.tags)
            continue
        choices = list(override.sweep_string_iterator())
        if len(choices) == 1:
            fixed.append(f"{key}={choices[0]}")
        elif isinstance(asked, RangeSweep) and isinstance(asked.range(), range):
            steps = asked.range()
            assert isinstance(steps, range)
            space[key] = IntDistribution(steps[0], steps[-1], step=steps.step)
        else:
            space[key] = CategoricalDistribution(choices)
    if not space:
        raise ConfigError(
            "nothing is searched: give a key a list (a,b,c), range(1,9) or interval(0.1,0.9), such as "
            "strategy.budget.amount=interval(0.1,0.9)."
        )
    return fixed, space


def _overrides(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


def _ended(study: Study) -> int:
    """Return how many trials ran to their end or failed; those that were cut off are tried again."""
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL]))


def _said(params: Mapping[str, Any]) -> list[str]:
    """Return what was chosen as people read it: the last part of keys, four digits of numbers."""
    numbers = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in params.items()}
    return [f"{key.rpartition('.')[2]}={value}" for key, value in numbers.items()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
