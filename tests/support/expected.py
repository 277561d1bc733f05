"""Oracles of what a measured step should have taken: sums worked out by hand on a machine of round numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvbench.planning import cost, expected
from kvbench.planning.expected import Work
from tests.support.planning import made, rate

FULL = Work(
    read_bytes=1000.0, operations=500.0, launches=10.0, up_bytes=0.0, down_bytes=0.0, disk_read_bytes=0.0,
    disk_written_bytes=0.0, near_bytes=0.0, recompute_flops=0.0, layers=0, overlaps=False, is_cold=False,
)  # fmt: skip
AWAY = replace(
    FULL, up_bytes=300.0, down_bytes=10.0, disk_read_bytes=100.0, disk_written_bytes=4.0, near_bytes=50.0,
    recompute_flops=60.0, layers=2,
)  # fmt: skip
GPU = made(
    device_memory=rate(1000.0), device_flops=rate(1000.0), launch=rate(20.0), recompute_flops=rate(100.0, 0.1),
    host_to_device=rate(200.0, 0.05), device_to_host=rate(100.0, 0.05), disk_read=rate(50.0),
    disk_read_warm=rate(400.0), disk_write=rate(8.0),
)  # fmt: skip
HOST = made(
    is_host=True, device_memory=rate(1000.0), device_flops=rate(1000.0), launch=rate(20.0), host_memory=rate(1000.0),
    recompute_flops=rate(100.0), disk_read=rate(50.0), disk_read_warm=rate(400.0), disk_write=rate(8.0),
)  # fmt: skip


def the_full_cache_takes_what_it_took() -> None:
    """Whatever a step of the full cache was measured to take, the machine that was fitted to it takes."""
    for machine in (GPU, HOST):
        for measured_s in (0.5, 1.0, 7.0):
            slow = expected.fitted(machine, FULL, measured_s)
            found = cost.predict(expected.step_cost(FULL, is_host=machine.is_host), slow)
            assert found.seconds == pytest.approx(measured_s)
            assert found.binding == "device_memory"


def fewer_bytes_take_less_in_proportion_until_launches_bind() -> None:
    """A step measured at 3 s for 1,000 bytes takes 2.4 s for 800, and 1.5 for none: its 10 launches of 0.05 s, x3."""
    slow = expected.fitted(GPU, FULL, 3.0)
    for read, seconds, binding in ((800.0, 2.4, "device_memory"), (0.0, 1.5, "device_flops")):
        found = cost.predict(expected.step_cost(replace(FULL, read_bytes=read), is_host=False), slow)
        assert found.seconds == pytest.approx(seconds)
        assert found.binding == binding
    many = replace(FULL, launches=30.0)
    assert cost.predict(expected.step_cost(many, is_host=False), slow).binding == "launch"


def steps_away_take_what_was_worked_out() -> None:
    """On a GPU 400 bytes come in 2 + 0.1 s, 100 of them from memory that keeps files in 0.25 more, cold in 2."""
    again, model, store, write = 0.6 + 0.2, (1000 + 400 + 100) / 1000, 0.1 + 0.1, 0.5
    compute = again + model + store + write
    for is_cold, disk in ((False, 0.25), (True, 2.0)):
        fetch = disk + 2.0 + 0.1
        for overlaps, seconds in ((False, fetch + compute), (True, max(fetch, compute))):
            work = replace(AWAY, overlaps=overlaps, is_cold=is_cold)
            found = cost.predict(expected.step_cost(work, is_host=False), GPU)
            assert found.seconds == pytest.approx(seconds)
    assert found.binding == "host_to_device"


def where_the_host_computes_bytes_are_read_and_written() -> None:
    """450 bytes come in 0.9 s of its memory, beside a step of 0.6 + 1 + 0.02 + 0.5 s; there is no link."""
    fetch, compute = 0.25 + 0.9, 0.6 + 1.0 + 0.02 + 0.5
    for overlaps, seconds in ((False, fetch + compute), (True, compute)):
        found = cost.predict(expected.step_cost(replace(AWAY, overlaps=overlaps), is_host=True), HOST)
        assert found.seconds == pytest.approx(seconds)


def a_slow_model_makes_no_link_slow() -> None:
    """A step of the full cache that took ten times what it should says nothing of the link, nor of the disk."""
    slow = expected.fitted(GPU, FULL, 10.0)
    for name, known in GPU.rates.items():
        assert slow.rates[name].per_s == pytest.approx(known.per_s / (10 if name in expected.FITTED else 1))
    bring = replace(FULL, read_bytes=0.0, operations=0.0, launches=0.0, up_bytes=2000.0, layers=1, overlaps=True)
    assert cost.predict(expected.step_cost(bring, is_host=False), slow).seconds == pytest.approx(20.0)  # of memory
    brief = expected.fitted(GPU, FULL, 1.0)
    assert cost.predict(expected.step_cost(bring, is_host=False), brief).seconds == pytest.approx(10.05)  # of the link


def a_rate_that_nobody_measured_is_missed() -> None:
    """A link without a record is an error that says its name; a step that does not cross it needs none."""
    bare = made(device_memory=rate(1000.0), device_flops=rate(1000.0), launch=rate(20.0))
    assert cost.predict(expected.step_cost(FULL, is_host=False), bare).seconds == pytest.approx(1.0)
    with pytest.raises(ValueError, match="host_to_device"):
        cost.predict(expected.step_cost(replace(FULL, up_bytes=1.0), is_host=False), bare)


def nothing_crosses_a_link_faster_than_its_bandwidth() -> None:
    """400 bytes at 200 a second are 2 s without any latency; none where there is no link, or nobody measured it."""
    assert expected.link_seconds(AWAY, GPU) == pytest.approx(2.0)
    assert expected.link_seconds(FULL, GPU) == 0
    assert expected.link_seconds(AWAY, HOST) == 0
    assert expected.link_seconds(AWAY, made(device_memory=rate(1.0))) == 0
