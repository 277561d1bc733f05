"""Judges of a sweep that believe what they should look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from kvbench.results import sweeps
from kvbench.results.sweeps import Planned, Standing, Sweep, standings


def drafts_of_the_dead(folder: Path, sweep: Sweep) -> list[Standing]:
    """Take every draft for somebody's."""

    def all_of_them(place: Path) -> Iterator[tuple[Path, str]]:
        return ((draft, draft.name.rpartition("-")[0].rpartition("-")[0][7:]) for draft in place.glob(".draft-*"))

    with patch.object(sweeps, "under_way", all_of_them):
        return standings(folder, sweep)


def any_source(folder: Path, sweep: Sweep) -> list[Standing]:
    """Take what another source measured for this one's."""
    own, other = (standings(folder, replace(sweep, source_hash=source)) for source in ("5eed", "0ther"))
    return [mine if mine.is_finished else theirs for mine, theirs in zip(own, other, strict=True)]


def by_configuration_alone(folder: Path, sweep: Sweep) -> list[Standing]:
    """Forget that two strategies may have one configuration."""
    rows = [Planned(label=row.label, strategy="snapkv", config_hash=row.config_hash) for row in sweep.rows]
    own, other = standings(folder, sweep), standings(folder, replace(sweep, rows=rows))
    return [mine if mine.is_finished else theirs for mine, theirs in zip(own, other, strict=True)]


def first_of_repeats(folder: Path, sweep: Sweep) -> list[Standing]:
    """Take the oldest run of a row."""
    return [replace(row, run_id="r2") if row.run_id == "r2-2" else row for row in standings(folder, sweep)]


CREDULOUS = [drafts_of_the_dead, any_source, by_configuration_alone, first_of_repeats]
