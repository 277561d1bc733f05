"""Oracles of what is planned: pipelines played block by block, every length tried, and sums worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from kvbench.planning import cost, machine, policy, split
from kvbench.planning.cost import Dependent, Overlapped, Use
from kvbench.planning.machine import Machine, Rate
from kvbench.planning.network import Network
from kvbench.planning.policy import Policy, Setup
from kvbench.planning.recompute import LayerFetch, Mode

GB, GIB = 1e9, 2**30
LLAMA_2_7B = Network(
    windows=(0,) * 32, hidden=4096, intermediate=11008, vocabulary=32000, query_heads=32, kv_heads=32, key_dim=128,
    value_dim=128, number_bytes=2, weights_bytes=13_500_000_000, read_parameters=6_750_000_000, launches=1000,
)  # fmt: skip
GROUPED = replace(LLAMA_2_7B, kv_heads=8)  # four queries to a head
SMALL = Network(
    windows=(0, 0, 0, 32), hidden=64, intermediate=128, vocabulary=100, query_heads=8, kv_heads=8, key_dim=8,
    value_dim=8, number_bytes=2, weights_bytes=400_000, read_parameters=190_000, launches=60,
)  # fmt: skip


def rate(per_s: float, latency_s: float = 0.0) -> Rate:
    """Return a rate that was given."""
    return Rate(per_s=per_s, latency_s=latency_s, source="given")


def made(*, is_host: bool = False, **rates: Rate) -> Machine:
    """Return a machine with some rates."""
    return Machine(name="a pretended device", is_host=is_host, rates=rates)  # type: ignore[arg-type]


def whole(latency_s: float = 0.0) -> Machine:
    """Return a machine of which everything is known, slow enough for the small network."""
    return made(
        device_memory=rate(2e9),
        device_flops=rate(1e11),
        recompute_flops=rate(1e10, latency_s),
        host_to_device=rate(2e7, latency_s),
        device_to_host=rate(2e7, latency_s),
        disk_read=rate(4e6, latency_s),
        disk_write=rate(2e6, latency_s),
        launch=rate(1e6),
    )


A100 = made(device_memory=rate(2.0e12), device_flops=rate(300e12), launch=rate(1e12))


def setup_of(network: Network, *, group: int = 32, block: int = 16, prefill_chunk: int = 0) -> Setup:
    """Return what the policies of a network share."""
    return Setup(network=network, group=group, block=block, prefill_chunk=prefill_chunk)


def resident(context: int, *, bits: int = 16, batch_size: int = 1) -> Policy:
    """Return a policy that keeps everything on the device."""
    return Policy(device=context, host=0, disk=0, recompute=0, bits=bits, batch_size=batch_size)


def fetch_of(network: Network, mode: Mode, link: Rate, compute: Rate, *, block: int = 16) -> LayerFetch:
    """Return how one row of a layer comes back."""
    return LayerFetch(
        activation_bytes=network.activation_bytes,
        kv_bytes=network.kv_bytes(16, 32),
        recompute_flops=network.recompute_flops,
        link=link,
        compute=compute,
        block=block,
        mode=mode,
    )


# -- time -------------------------------------------------------------------------------------------------------------


def work_overlaps_or_waits_as_worked_out() -> None:
    """2 s on the link and then 1 s of the device, beside 2.5 s of the disk: 3 s, most of them the link's."""
    known = made(host_to_device=rate(10.0, 0.5), device_memory=rate(100.0), disk_read=rate(2.0), host_flops=rate(1.0))
    chain = Dependent((Use("host_to_device", 10.0, 2), Use("device_memory", 100.0)))
    both = Overlapped((chain, Use("disk_read", 5.0), Use("host_flops", 0)))
    found = cost.predict(both, known)
    assert (found.seconds, found.binding) == (3.0, "host_to_device")
    assert found.by_resource == {"host_to_device": 2.0, "device_memory": 1.0}
    assert cost.amounts(Dependent((both, chain)))["host_to_device"] == 20.0
    alone = replace(known, is_host=True)
    assert cost.predict(both, alone).seconds == 2.5  # there is no link to cross


def steps_take_what_was_worked_out() -> None:
    """Llama 2 7B at 4,096 tokens and 2 TB/s: 7.8 ms, 7.0 in 2 bits; with 16 rows 24.0 and 10.0."""
    setup = setup_of(LLAMA_2_7B)
    for batch_size, bits, expected in ((1, 16, 7.8), (1, 2, 7.0), (16, 16, 24.0), (16, 2, 10.0)):
        step = policy.decode_cost(resident(4096, bits=bits, batch_size=batch_size), setup)
        assert cost.predict(step, A100).seconds * 1e3 == pytest.approx(expected, abs=0.08)
        assert cost.predict(step, A100).binding == "device_memory"


def a_step_away_moves_what_is_counted_by_hand() -> None:
    """Of 100 tokens 20 on the device, 50 on the host, 30 on disk, 16 computed again; three full layers, two rows."""
    asked = Policy(device=20, host=50, disk=30, recompute=16, bits=16, batch_size=2)
    moved = cost.amounts(policy.decode_cost(asked, setup_of(SMALL)))
    token, activation = 2 * 8 * 16 * 2, 2 * 64 * 2  # bytes of both rows in a layer
    assert moved["disk_read"] == 3 * 30 * token
    assert moved["device_to_host"] == 3 * token  # of a step's new token alone
    assert moved["host_to_device"] == 3 * (16 * activation + (50 - 16 + 30) * token)
    assert moved["recompute_flops"] == 3 * 16 * 2 * (2 * 64 * 128)
    assert moved["device_memory"] == 190_000 * 2 + (3 * 100 + 32) * token + 3 * 80 * token
    assert moved["device_flops"] == 2 * (2 * 190_000 + 4 * (3 * 100 + 32) * 8 * 8)
    assert moved["launch"] == 60
    packed = cost.amounts(policy.decode_cost(replace(asked, bits=4, recompute=0), setup_of(SMALL, group=64)))
    assert packed["host_to_device"] == 3 * 80 * 2 * 128 * (0.5 + 4 / 64)


def a_prompt_takes_what_is_counted_by_hand() -> None:
    """100 tokens in two passes: pairs of the window's layer are fewer, logits are made once, weights are read twice."""
    asked = Policy(device=20, host=50, disk=30, recompute=16, bits=16, batch_size=2)
    moved = cost.amounts(policy.prefill_cost(asked, setup_of(SMALL, prefill_chunk=64)))
    token, activation = 2 * 8 * 16 * 2, 2 * 64 * 2
    pairs = 3 * sum(range(1, 101)) + sum(min(length, 32) for length in range(1, 101))
    body = 190_000 - 64 * 100
    assert moved["device_flops"] == 2 * (2 * (100 * body + 64 * 100) + 4 * pairs * 8 * 8)
    assert moved["device_memory"] == 2 * 190_000 * 2 + (3 * 100 + 32) * token
    assert moved["device_to_host"] == 3 * (16 * activation + 64 * token)
    assert moved["disk_write"] == 3 * 30 * token
    assert moved["launch"] == 120


# -- memory -----------------------------------------------------------------------------------------------------------


def bytes_are_those_counted_by_hand() -> None:
    """The same 100 tokens: weights, cache, two layers on their way, and a pass's activations and logits."""
    asked = Policy(device=20, host=50, disk=30, recompute=16, bits=16, batch_size=2)
    found = policy.held(asked, setup_of(SMALL, prefill_chunk=64))
    token, activation = 2 * 8 * 16 * 2, 2 * 64 * 2
    staged = 2 * ((80 - 16) * token + 16 * token) + 16 * activation
    passing = 2 * (64 * (10 * 64 + 2 * 128) * 2 + 100 * 4)
    assert found.device == 400_000 + (3 * 20 + 32) * token + staged + passing
    assert found.host == 3 * (16 * activation + 34 * token)
    assert found.disk == 3 * 30 * token


def no_more_tokens_would_fit() -> None:
    """The split is the largest that fits in nine tenths, over all layers, with scales, staging and activations."""
    kept = set()
    networks = (SMALL, replace(SMALL, windows=(0,) * 8))
    memories = (450_000, 800_000, 1_200_000, 10**8)
    for network, bits, rows, chunk, memory, recompute in product(
        networks, (16, 2), (1, 3), (0, 16), memories, (False, True)
    ):
        setup = setup_of(network, prefill_chunk=chunk)
        found = split.split_by_memory(
            200, setup, bits=bits, batch_size=rows, memory_bytes=memory, recompute=recompute
        ).value
        ways = [
            Policy(
                device=device,
                host=200 - device,
                disk=0,
                recompute=(200 - device) * recompute,
                bits=bits,
                batch_size=rows,
            )
            for device in range(201)
        ]
        fitting = [way.device for way in ways if policy.held(way, setup).device <= 0.9 * memory]
        assert found == max(fitting, default=0)
        kept.add("none" if not fitting else "all" if found == 200 else "some")
    assert kept == {"none", "some", "all"}


def the_worked_memory_keeps_the_worked_tokens() -> None:
    """24 GiB: 21.6 less 12.57 of weights and 0.67 of a pass; 0.5 MiB a token over 32 layers, less two of staging."""
    memory, token = 24 * GIB, 2 * 4096 * 2
    passing = 4096 * (10 * 4096 + 2 * 11008) * 2 + 32000 * 4
    room = 0.9 * memory - 13_500_000_000 - passing - 2 * 32768 * token
    setup = setup_of(LLAMA_2_7B, prefill_chunk=4096)
    found = split.split_by_memory(32768, setup, bits=16, batch_size=1, memory_bytes=memory, recompute=False)
    assert found.value == int(room // ((32 - 2) * token))
    assert 0 < found.value < 32768


def a_share_is_of_whole_tokens() -> None:
    """0.29 of 100 tokens are 29, although 0.29 * 100 is less in floating point."""
    shares = [(100, 0.29), (7, 0.5), (10, 0.0), (10, 1.0), (0, 0.5)]
    assert [split.split_by_ratio(*share).value for share in shares] == [29, 3, 0, 10, 0]


# -- records ----------------------------------------------------------------------------------------------------------


def row(name: str, value: float, **others: object) -> dict[str, Any]:
    """Return a row of `kvbench hardware`."""
    return {"name": name, "value": value, "device": "cuda:0", "device_name": "a GPU", "shape": "", **others}


ROWS = [
    row("read", 3e12),
    row("gemm", 4e14),
    row("gemm_recompute", 2e14, shape="8192x4096x8192"),
    row("host_to_device", 5e10),
    row("host_to_device_latency", 1e-5),
    row("launch", 2e5),
]


def a_record_is_read_as_it_was_written() -> None:
    """Each rate is that of its row; the product of keys and values counts for the network it was measured for."""
    found = machine.machine_of(ROWS, recompute_shape="4096x8192")
    assert found.rate("device_memory") == Rate(per_s=3e12, latency_s=0.0, source="measured")
    assert found.rate("device_flops").per_s == 4e14
    assert found.rate("recompute_flops").per_s == 2e14
    assert found.seconds("host_to_device", 5e10, 3) == pytest.approx(1 + 3e-5)
    assert (found.name, found.is_host) == ("a GPU", False)
    assert machine.machine_of([row("read", 1.0, device="cpu")], recompute_shape="").is_host
    other = machine.machine_of(ROWS, recompute_shape="4096x2048")
    assert "recompute_flops" not in other.rates
