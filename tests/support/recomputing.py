"""Oracles of how much is computed again: pipelines played block by block, and every length tried."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from kvbench.planning import recompute as again
from kvbench.planning.recompute import MODES, LayerFetch, Mode
from tests.support.planning import GB, GROUPED, LLAMA_2_7B, fetch_of, rate


def played(recomputed: int, tokens: int, fetch: LayerFetch) -> float:
    """Play a link and a device, block by block, and return when both are done."""
    size = fetch.block if fetch.mode == "pipelined" else max(1, recomputed)
    sizes = [min(size, recomputed - start) for start in range(0, recomputed, size)]
    sent = computed = 0.0
    for number in sizes:
        if fetch.mode != "resident":
            sent += fetch.link.latency_s + number * fetch.activation_bytes / fetch.link.per_s
        took = fetch.compute.latency_s + number * fetch.recompute_flops / fetch.compute.per_s
        computed = max(computed, sent) + took
    if tokens > recomputed:
        sent += fetch.link.latency_s + (tokens - recomputed) * fetch.kv_bytes / fetch.link.per_s
    return max(sent, computed)


def fetches() -> Iterator[LayerFetch]:
    """Yield layers with slow and fast links, slow and fast devices, and activations of different size."""
    latencies = ((0.0, 0.0), (1e-5, 0.0), (0.0, 1e-4), (2e-4, 3e-5), (1e-2, 1e-2))
    for mode, block, share, (of_link, of_call), flops in product(
        MODES, (1, 16, 64), (0.1, 0.5, 0.99), latencies, (1e9, 2e11, 1e14)
    ):
        yield LayerFetch(
            activation_bytes=share * 16384,
            kv_bytes=16384,
            recompute_flops=2 * 4096 * 8192,
            link=rate(25 * GB, of_link),
            compute=rate(flops, of_call),
            block=block,
            mode=mode,
        )


def lengths_take_as_long_as_played() -> None:
    """The time of every length is what a link and a device take that are played block by block."""
    for fetch in fetches():
        for recomputed in range(0, 71, fetch.block):
            expected = played(recomputed, 70, fetch)
            assert abs(fetch.seconds(recomputed, 70) - expected) <= 1e-9 * expected


def no_other_length_takes_less() -> None:
    """The chosen length is a multiple of the block, and of all of them the one that is played fastest."""
    chosen = set()
    for fetch in fetches():
        for tokens in (0, 5, 64, 150):
            found = again.recompute_length(tokens, fetch)
            lengths = range(0, tokens + 1, fetch.block)
            assert found.value in lengths
            best = min(played(length, tokens, fetch) for length in lengths)
            assert played(found.value, tokens, fetch) <= best * (1 + 1e-9), (fetch, tokens, found)
            chosen.add("none" if found.value == 0 else "all" if found.value + fetch.block > tokens else "some")
    assert chosen == {"none", "some", "all"}


def the_worked_layer_gains_what_was_worked_out() -> None:
    """Llama 2 7B over 25 GB/s at 200 Tflop/s: shares of 0.661, 0.988 and 0.661, gains of 1.494, 1.976 and 2.953."""
    worked: tuple[tuple[Mode, float, float], ...] = (
        ("paper", 0.6614, 1.494),
        ("pipelined", 0.9882, 1.976),
        ("resident", 0.6614, 2.953),
    )
    for mode, share, gain in worked:
        fetch = fetch_of(LLAMA_2_7B, mode, rate(25 * GB), rate(200e12), block=1)
        tokens = 100_000
        found = again.recompute_length(tokens, fetch).value
        assert found / tokens == pytest.approx(share, abs=1e-4)
        assert fetch.seconds(0, tokens) / fetch.seconds(found, tokens) == pytest.approx(gain, abs=1e-3)


def grouped_heads_compute_nothing_again() -> None:
    """With four queries to a head activations are twice the keys and values: none, and why."""
    modes: tuple[Mode, ...] = ("paper", "pipelined")
    for mode in modes:
        found = again.recompute_length(4096, fetch_of(GROUPED, mode, rate(1e9), rate(1e18)))
        assert found.value == 0
        assert found.reason == (
            "a token's activations (8,192 bytes) are not smaller than its keys and values (4,096 bytes): moving them "
            "saves nothing"
        )
    assert again.recompute_length(4096, fetch_of(GROUPED, "resident", rate(1e9), rate(1e18))).value == 4096


def a_faster_link_means_fewer_and_a_faster_device_more() -> None:
    """Lengths fall with the link's bandwidth and rise with the device's operations."""
    for mode in MODES:

        def length(link: float, flops: float, mode: Mode = mode) -> int:
            fetch = fetch_of(LLAMA_2_7B, mode, rate(link, 1e-5), rate(flops, 1e-5), block=128)
            return again.recompute_length(4096, fetch).value

        by_link = [length(link * GB, 200e12) for link in (5, 10, 25, 50, 100, 400)]
        by_flops = [length(25 * GB, flops * 1e12) for flops in (1, 10, 50, 100, 200, 400)]
        assert by_link == sorted(by_link, reverse=True)
        assert by_flops == sorted(by_flops)
        assert len(set(by_link)) > 3
        assert len(set(by_flops)) > 3
