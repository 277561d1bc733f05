"""Oracles of what is chosen of all ways to keep a cache, and what planning is refused with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from kvbench.planning import cost, machine, policy, search, split
from kvbench.planning import recompute as again
from kvbench.planning.machine import Machine, Rate, Resource
from kvbench.planning.policy import Policy
from kvbench.planning.recompute import LayerFetch
from kvbench.planning.search import Limits, Plan
from tests.support.planning import A100, LLAMA_2_7B, SMALL, fetch_of, rate, setup_of, whole

LIMITS = Limits(device=565_000, host=30_000, disk=10**9)  # one row does not fit without packing
ROOMY = replace(LIMITS, host=200_000)
SEARCHED = setup_of(SMALL, prefill_chunk=16)


def searched(limits: Limits = LIMITS, known: Machine | None = None) -> list[Plan]:
    """Return the plans of the small network."""
    return search.policy_search(
        SEARCHED, whole() if known is None else known, context=128, batch_sizes=(1, 2, 4), bits=(16, 8, 4, 2),
        limits=limits, steps=4,
    )  # fmt: skip


def every_way(limits: Limits) -> Iterator[tuple[float, float, int]]:
    """Yield time of a step, tokens per second and bits of all ways that fit, at the search's own shares."""
    setup, known = SEARCHED, whole()
    for rows, bits in product((1, 2, 4), (16, 8, 4, 2)):
        fits = [
            split.split_by_memory(
                128, setup, bits=bits, batch_size=rows, memory_bytes=limits.device, recompute=recompute
            ).value
            for recompute in (False, True)
        ]
        for device in {0, 32, 64, 96, 128, *fits}:
            for part in range(5):
                disk = (128 - device) * part // 4
                for recompute in range(0, 129 - device - disk, 16):
                    mine = Policy(
                        device=device, host=128 - device - disk, disk=disk, recompute=recompute, bits=bits,
                        batch_size=rows,
                    )  # fmt: skip
                    needed = policy.held(mine, setup)
                    if needed.device > 0.9 * limits.device or needed.host > limits.host or needed.disk > limits.disk:
                        continue
                    seconds = cost.predict(policy.decode_cost(mine, setup), known).seconds
                    yield seconds, rows / seconds, bits


def nothing_that_was_tried_beats_a_plan() -> None:
    """Of every way at the same shares none is better in everything, and each is covered by some plan."""
    for limits in (LIMITS, ROOMY, replace(LIMITS, device=700_000)):
        found = [(plan.decode.seconds, plan.tokens_per_s, plan.policy.bits) for plan in searched(limits)]
        assert len(found) >= 5
        for seconds, speed, bits in every_way(limits):
            assert any(s <= seconds * (1 + 1e-9) and t >= speed * (1 - 1e-9) and w >= bits for s, t, w in found)
        for one, other in product(found, found):
            assert one == other or not (one[0] <= other[0] and one[1] >= other[1] and one[2] >= other[2])


def plans_fit() -> None:
    """All that is planned fits, in nine tenths of the device; some of it lies elsewhere, some is computed again."""
    unpacked = []
    for limits in (LIMITS, ROOMY):
        for plan in searched(limits):
            assert plan.held.device <= 0.9 * limits.device
            assert plan.held.host <= limits.host
            assert plan.policy.context == 128
            unpacked += [plan] if plan.policy.bits == 16 else []
    on_disk, on_host = unpacked
    assert min(on_disk.policy.host, on_disk.policy.disk) > 0
    assert min(on_host.policy.host, on_host.policy.recompute) > on_host.policy.disk == 0
    assert on_disk.reason == "disk_read takes 100% of a step"


def more_of_anything_is_never_slower() -> None:
    """More memory, and a faster link, never make the fastest plan slower; they make it faster at least once."""
    by_memory = [fastest(searched(replace(ROOMY, device=memory))) for memory in (560_000, 575_000, 600_000, 700_000)]
    machines = [replace(whole(), rates={**whole().rates, **links_of(times)}) for times in (1, 2, 8)]
    by_link = [fastest(searched(ROOMY, known)) for known in machines]
    for found in (by_memory, by_link):
        assert found == sorted(found, reverse=True)
        assert found[0] > found[-1]


def links_of(times: float) -> Mapping[Resource, Rate]:
    """Return links of so many times the small machine's bandwidth."""
    return {"host_to_device": rate(times * 2e7), "device_to_host": rate(times * 2e7)}


def fastest(plans: list[Plan]) -> float:
    """Return the time of the fastest step without packing."""
    return min(plan.decode.seconds for plan in plans if plan.policy.bits == 16)


def a_device_that_is_the_host_has_no_tokens_away_but_on_disk() -> None:
    """A processor's memory is the host's: no link is crossed, and no rate of one is asked for."""
    known = replace(whole(), is_host=True)
    known = replace(known, rates={key: value for key, value in known.rates.items() if key not in machine.LINKS})
    plans = searched(LIMITS, known)
    assert {plan.policy.host for plan in plans} == {0}
    assert any(plan.policy.disk for plan in plans)


def written(text: str) -> None:
    """Read a record with that text."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "hardware.json"
        file.write_text(text, encoding="utf-8")
        machine.read_records(file)


MHA: Callable[..., LayerFetch] = partial(fetch_of, LLAMA_2_7B, link=rate(1.0), compute=rate(1.0))
ERRORS: Mapping[str, tuple[Callable[[], object], str]] = {
    "a rate of nothing": (partial(rate, 0.0), r"a rate must be above 0 .* got 0\.0 per second.* kvbench hardware"),
    "a negative latency": (partial(rate, 1.0, -1.0), r"latency at least 0; got 1\.0 per second after -1\.0 s"),
    "a link that nobody measured": (
        partial(A100.rate, "host_to_device"),
        r"how fast host_to_device is on a pretended device: measure it there with kvbench hardware, or give .* link=",
    ),
    "a product that nobody measured": (partial(A100.rate, "recompute_flops"), r"kvbench hardware model=<the model>"),
    "no record": (
        partial(machine.read_records, Path("nowhere.json")),
        r"there is no nowhere\.json\. Run kvbench hardware, or name a record with hardware=",
    ),
    "a record that is no json": (partial(written, "{"), r"hardware=.*json cannot be read .* kvbench hardware"),
    "a record of something else": (
        partial(written, json.dumps([{"strategy": "h2o"}])),
        r"hardware=.*json is no record of a machine; write it again with kvbench hardware",
    ),
    "unknown mode of recomputation": (partial(MHA, "late"), r"mode must be one of paper, pipelined, resident; got 'l"),
    "blocks of nothing": (partial(MHA, "paper", block=0), r"block= must be at least 1 token; got 0"),
    "a token of nothing": (
        lambda: replace(MHA("paper"), kv_bytes=0),
        r"a token must have activations, keys and values; got 8192 and 0 bytes",
    ),
    "tokens below 0": (lambda: again.recompute_length(-1, MHA("paper")), r"at least 0 tokens across the link; got -1"),
    "a share above 1": (partial(split.split_by_ratio, 8, 1.5), r"device must be between 0 and 1; got 1\.5"),
    "a plan that does not fit": (
        lambda: searched(Limits(device=300_000, host=0, disk=0)),
        r"nothing fits: even with 2 bits, a batch of 1 and 128 of 128 tokens away, .* GiB of device memory are .*"
        r"Raise memory= \(or host=, disk=\), or lower context=",
    ),
}
