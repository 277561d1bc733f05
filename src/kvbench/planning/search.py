"""Which ways to keep a cache are not beaten in everything by another one that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from kvbench.planning.cost import Prediction, predict
from kvbench.planning.machine import Machine
from kvbench.planning.policy import Held, Policy, Setup, decode_cost, held, prefill_cost
from kvbench.planning.recompute import LayerFetch, recompute_length
from kvbench.planning.split import SAFETY, split_by_memory, split_by_ratio

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes that there are.

    Args:
        device: of the device's memory, of which a tenth is left.
        host: of the host's memory for the cache.
        disk: for the cache.
    """

    device: float
    host: float
    disk: float

    def misfit(self, needed: Held) -> str | None:
        """Return what does not fit, or None."""
        room = Held(device=SAFETY * self.device, host=self.host, disk=self.disk)
        places = (
            ("device memory", needed.device, room.device),
            ("host memory", needed.host, room.host),
            ("disk", needed.disk, room.disk),
        )
        for place, wanted, there in places:
            if wanted > there:
                return f"{wanted / _GIB:,.2f} GiB of {place} are needed, of which {there / _GIB:,.2f} may be used"
        return None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A policy that fits, and what is predicted of it; nothing of it was measured.

    Args:
        policy: where tokens are kept and how.
        held: bytes in each place.
        prefill: reading the prompt.
        decode: a decode step.
    """

    policy: Policy
    held: Held
    prefill: Prediction
    decode: Prediction

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all rows per second."""
        return self.policy.batch_size / self.decode.seconds

    @property
    def reason(self) -> str:
        """What a decode step waits for."""
        share = self.decode.by_resource[self.decode.binding] / self.decode.seconds
        return f"{self.decode.binding} takes {share:.0%} of a step"


def policy_search(
    setup: Setup,
    machine: Machine,
    *,
    context: int,
    batch_sizes: Sequence[int],
    bits: Sequence[int],
    limits: Limits,
    steps: int,
) -> list[Plan]:
    """Return the plans that no other plan beats in the time of a step, tokens per second and bits together.

    Args:
        setup: the network, and how its cache is kept.
        machine: where it runs.
        context: tokens of a layer when a step is predicted.
        batch_sizes: rows at once, each tried.
        bits: per number of keys and values, each tried.
        limits: bytes that there are.
        steps: parts into which tokens are cut for the shares that are tried.

    Raises:
        ValueError: if nothing fits.
    """
    tried = [
        policy
        for batch_size in batch_sizes
        for width in bits
        for policy in policies(setup, machine, context, batch_size, width, limits, steps)
    ]
    fitting = [policy for policy in tried if limits.misfit(held(policy, setup)) is None]
    if not fitting:
        least = min(tried, key=lambda policy: held(policy, setup).device)
        raise ValueError(
            f"nothing fits: even with {least.bits} bits, a batch of {least.batch_size} and {least.away:,} of "
            f"{context:,} tokens away, {limits.misfit(held(least, setup))}. Raise memory= (or host=, disk=), or lower "
            f"context=, batch= or prefill_chunk=."
        )
    return pareto([_plan(policy, setup, machine) for policy in fitting])


def policies(
    setup: Setup, machine: Machine, context: int, batch_size: int, bits: int, limits: Limits, steps: int
) -> Iterator[Policy]:
    """Yield what is tried for a batch: shares of tokens on the device, host and disk, and of those computed again."""
    fits = partial(split_by_memory, context, setup, bits=bits, batch_size=batch_size, memory_bytes=limits.device)
    shares = {split_by_ratio(context, step / steps).value for step in range(steps + 1)}
    shares |= {fits(recompute=recompute).value for recompute in (False, True)}
    for device in sorted(shares, reverse=True):
        for part in range(steps + 1):
            disk = split_by_ratio(context - device, part / steps).value
            host = context - device - disk
            if machine.is_host and host:
                continue  # the host's memory is the device's
            for recompute in sorted(_recomputed(setup, machine, host, batch_size, bits, steps)):
                yield Policy(device=device, host=host, disk=disk, recompute=recompute, bits=bits, batch_size=batch_size)


def _recomputed(setup: Setup, machine: Machine, host: int, batch_size: int, bits: int, steps: int) -> set[int]:
    network = setup.network
    if host < setup.block or network.activation_bytes >= setup.kv_bytes(bits):
        return {0}
    fetch = LayerFetch(
        activation_bytes=batch_size * network.activation_bytes,
        kv_bytes=batch_size * setup.kv_bytes(bits),
        recompute_flops=batch_size * network.recompute_flops,
        link=machine.rate("host_to_device"),
        compute=machine.rate("recompute_flops"),
        block=setup.block,
        mode="pipelined",
    )
    grid = {host * step // steps // setup.block * setup.block for step in range(steps + 1)}
    return grid | {recompute_length(host, fetch).value}


def _plan(policy: Policy, setup: Setup, machine: Machine) -> Plan:
    return Plan(
        policy=policy,
        held=held(policy, setup),
        prefill=predict(prefill_cost(policy, setup), machine),
        decode=predict(decode_cost(policy, setup), machine),
    )


def pareto(plans: Sequence[Plan]) -> list[Plan]:
    """Return the plans that no other beats, the fastest first; of equal ones the first."""
    kept: list[Plan] = []
    ordered = sorted(plans, key=lambda plan: (plan.decode.seconds, -plan.tokens_per_s, -plan.policy.bits))
    for plan in ordered:
        if not any(_covers(other, plan) for other in kept):
            kept.append(plan)
    return kept


def _covers(other: Plan, plan: Plan) -> bool:
    """Return whether another plan is at least as good in everything."""
    return (
        other.decode.seconds <= plan.decode.seconds
        and other.tokens_per_s >= plan.tokens_per_s
        and other.policy.bits >= plan.policy.bits
    )
