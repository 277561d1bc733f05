"""Cost models of measured steps that get one thing wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvbench.planning import expected
from kvbench.planning.cost import Cost
from kvbench.planning.expected import Work
from kvbench.planning.machine import Machine, Rate
from tests.mutants.core_mutant import Mutant
from tests.support import expected as oracles

REAL_COST, REAL_FITTED = expected.step_cost, expected.fitted


def always_overlapped(work: Work, *, is_host: bool) -> Cost:
    """Let everything overlap, whatever the placement says."""
    return REAL_COST(replace(work, overlaps=True), is_host=is_host)


def always_cold(work: Work, *, is_host: bool) -> Cost:
    """Read the disk, whatever memory keeps."""
    return REAL_COST(replace(work, is_cold=True), is_host=is_host)


def without_staging(work: Work, *, is_host: bool) -> Cost:
    """Have nothing copied where it already is."""
    return REAL_COST(replace(work, near_bytes=0.0), is_host=is_host)


def across_a_link(work: Work, *, is_host: bool) -> Cost:
    """Let a host have a link to itself."""
    return REAL_COST(work, is_host=False)


def without_launches(work: Work, *, is_host: bool) -> Cost:
    """Launch nothing."""
    return REAL_COST(replace(work, launches=0.0), is_host=is_host)


def without_arithmetic(work: Work, *, is_host: bool) -> Cost:
    """Compute nothing."""
    return REAL_COST(replace(work, operations=0.0), is_host=is_host)


def without_links(work: Work, *, is_host: bool) -> Cost:
    """Need no link."""
    return REAL_COST(replace(work, up_bytes=0.0, disk_read_bytes=0.0), is_host=is_host)


def not_fitted(machine: Machine, full: Work, measured_s: float) -> Machine:
    """Believe every rate."""
    return machine


def all_slowed(machine: Machine, full: Work, measured_s: float) -> Machine:
    """Slow the link, too."""
    slow = REAL_FITTED(machine, full, measured_s)
    times = machine.rates["device_memory"].per_s / slow.rates["device_memory"].per_s
    return replace(machine, rates={name: expected._slowed(rate, times) for name, rate in machine.rates.items()})


def with_latency(work: Work, machine: Machine) -> float:
    """Count a link's latency as if nothing hid it."""
    came = work.up_bytes + work.disk_read_bytes
    rate = machine.rates.get("host_to_device", Rate(per_s=1.0, latency_s=0.0, source="given"))
    return rate.seconds(came, work.layers)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="everything overlaps",
        patches=((expected, "step_cost", always_overlapped),),
        killed_by=(
            oracles.steps_away_take_what_was_worked_out,
            oracles.where_the_host_computes_bytes_are_read_and_written,
        ),
    ),
    Mutant(
        name="every disk is cold",
        patches=((expected, "step_cost", always_cold),),
        killed_by=(oracles.steps_away_take_what_was_worked_out,),
    ),
    Mutant(
        name="nothing is staged",
        patches=((expected, "step_cost", without_staging),),
        killed_by=(
            oracles.steps_away_take_what_was_worked_out,
            oracles.where_the_host_computes_bytes_are_read_and_written,
        ),
    ),
    Mutant(
        name="a host has a link",
        patches=((expected, "step_cost", across_a_link),),
        killed_by=(oracles.where_the_host_computes_bytes_are_read_and_written,),
    ),
    Mutant(
        name="nothing is launched",
        patches=((expected, "step_cost", without_launches),),
        killed_by=(oracles.fewer_bytes_take_less_in_proportion_until_launches_bind,),
    ),
    Mutant(
        name="nothing is computed",
        patches=((expected, "step_cost", without_arithmetic),),
        killed_by=(oracles.fewer_bytes_take_less_in_proportion_until_launches_bind,),
    ),
    Mutant(
        name="nothing is missed",
        patches=((expected, "step_cost", without_links),),
        killed_by=(oracles.a_rate_that_nobody_measured_is_missed,),
        error=pytest.fail.Exception,  # type: ignore[arg-type]
    ),
    Mutant(
        name="nothing is fitted",
        patches=((expected, "fitted", not_fitted),),
        killed_by=(
            oracles.the_full_cache_takes_what_it_took,
            oracles.fewer_bytes_take_less_in_proportion_until_launches_bind,
        ),
    ),
    Mutant(
        name="the link is fitted",
        patches=((expected, "fitted", all_slowed),),
        killed_by=(oracles.a_slow_model_makes_no_link_slow,),
    ),
    Mutant(
        name="latency is a floor",
        patches=((expected, "link_seconds", with_latency),),
        killed_by=(oracles.nothing_crosses_a_link_faster_than_its_bandwidth,),
    ),
)
