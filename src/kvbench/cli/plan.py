"""`kvbench plan`: where a cache should be kept, predicted from what a machine can do; nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from kvbench.cli.amounts import amount, number, numbers, shown
from kvbench.configuration import check, compose
from kvbench.configuration.errors import ConfigError, hint
from kvbench.folders import hardware_record
from kvbench.models.spec import ModelSpec
from kvbench.planning.machine import Machine, Rate, Resource, machine_of, read_records
from kvbench.planning.network import Network
from kvbench.planning.policy import Setup
from kvbench.planning.search import Limits, Plan, policy_search
from kvbench.sizing import network_of

NEEDED = ("model", "context", "batch", "memory")
TRIED = {"bits": "32,16,8,4,2", "prefill_chunk": "0", "block": "256", "group": "32", "steps": "8"}
LIMITS = ("host", "disk")
GIVEN: Mapping[str, tuple[str, tuple[Resource, ...]]] = {  # a key, its unit, what it says
    "device_bandwidth": ("B/s", ("device_memory",)),
    "device_flops": ("flop/s", ("device_flops", "recompute_flops")),
    "link": ("B/s", ("host_to_device", "device_to_host")),
    "disk_bandwidth": ("B/s", ("disk_read", "disk_write")),
    "launch": ("s", ("launch",)),
}
KEYS = (*NEEDED, *TRIED, *LIMITS, "hardware", *GIVEN, "link_latency")
_UNITS: Mapping[Resource, str] = {"device_flops": "flop/s", "recompute_flops": "flop/s", "launch": "launches/s"}


def main(settings: Sequence[str]) -> None:
    """Print the plans that no other beats.

    Args:
        settings: such as ["model=llama-3.1-8b", "context=32768", "batch=4", "memory=24GiB"].
    """
    known, overrides = _parsed(settings)
    spec = check(compose([*overrides, "strategy=baseline", "quality=none"])).model
    context = number("context", known["context"], least=1)
    if spec.max_positions is not None and context > spec.max_positions:
        raise ConfigError(f"model={spec.title} reads at most {spec.max_positions:,} tokens; got context={context}.")
    network = network_of(spec)
    machine = machine_from(known, f"{network.hidden}x{network.kv_width}")
    tried = {**TRIED, **known}
    plans = policy_search(
        Setup(
            network=network,
            group=number("group", tried["group"], least=1),
            block=number("block", tried["block"], least=1),
            prefill_chunk=number("prefill_chunk", tried["prefill_chunk"], least=0),
        ),
        machine,
        context=context,
        batch_sizes=numbers("batch", known["batch"]),
        bits=_bits(tried["bits"], network, "bits" in known),
        limits=Limits(
            device=amount("memory", known["memory"], "B"),
            host=amount("host", known["host"], "B") if "host" in known else inf,
            disk=amount("disk", known["disk"], "B") if "disk" in known else inf,
        ),
        steps=number("steps", tried["steps"], least=1),
    )
    _print(plans, spec, machine, known, Console())


def _parsed(settings: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the settings by key, and what is said of the model."""
    known: dict[str, str] = {}
    overrides = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise ConfigError(f"{setting!r} cannot be read, write key=value. Keys: {', '.join(KEYS)}.")
        if key in known:
            raise ConfigError(f"{key}= is given twice; leave one out.")
        if key.startswith("model"):
            overrides.append(setting)
        elif key not in KEYS:
            raise ConfigError(f"{key}: there is no such setting. {hint(key, KEYS, label='Keys')}")
        known[key] = value
    missing = [f"{key}=" for key in NEEDED if key not in known and not (key == "model" and "model.path" in known)]
    if missing:
        raise ConfigError(
            f"a plan needs {', '.join(missing)}; write kvbench plan model=llama-3.1-8b context=32768 batch=4 "
            f"memory=24GiB, for instance."
        )
    return known, overrides


def machine_from(known: Mapping[str, str], recompute_shape: str) -> Machine:
    """Return the machine of a record or of given numbers; both only where the record is named.

    Args:
        known: settings by key.
        recompute_shape: inputs x outputs of the product that makes keys and values.
    """
    rates: dict[Resource, Rate] = {}
    for key, (unit, resources) in GIVEN.items():
        if key in known:
            value = amount(key, known[key], unit)
            wait = (
                amount("link_latency", known["link_latency"], "s") if key == "link" and "link_latency" in known else 0
            )
            rate = Rate(per_s=1 / value if key == "launch" else value, latency_s=wait, source="given")
            rates |= dict.fromkeys(resources, rate)
    if "link_latency" in known and "link" not in known:
        raise ConfigError("link_latency= goes with link=, such as link=25GB/s link_latency=10us.")
    if rates and "hardware" not in known:
        return Machine(name="the machine whose numbers were given", is_host=False, rates=rates)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    file = Path(known["hardware"]) if "hardware" in known else hardware_record(here)
    measured = machine_of(read_records(file), recompute_shape=recompute_shape)
    is_host = measured.is_host and "link" not in known
    return Machine(name=measured.name, is_host=is_host, rates={**measured.rates, **rates})


def _bits(text: str, network: Network, is_asked: bool) -> list[int]:
    """Return the bits that are tried; what the model does not compute with is left out unless it was asked for."""
    most = 8 * network.number_bytes
    found = numbers("bits", text)
    if is_asked and max(found) > most:
        raise ConfigError(f"bits= must be at most the {most} that the model computes with; got {max(found)}.")
    return [bits for bits in found if bits <= most]


def _print(
    plans: Sequence[Plan], spec: ModelSpec, machine: Machine, known: Mapping[str, str], console: Console
) -> None:
    context = plans[0].policy.context
    console.print(f"{spec.title} | {context:,} tokens, {known['memory']} | modelled, not measured | {machine.name}")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("device/host/disk", "recompute", "bits", "batch", "first token", "step", "tokens/s"):
        table.add_column(title, justify="right")
    for title in ("device", "host", "disk"):
        table.add_column(f"{title} GiB", justify="right")
    table.add_column("binding")
    for plan in plans:
        policy = plan.policy
        shares = "/".join(f"{100 * part / context:.0f}" for part in (policy.device, policy.host, policy.disk))
        table.add_row(
            f"{shares} %",
            f"{policy.recompute:,}",
            str(policy.bits),
            str(policy.batch_size),
            shown(plan.prefill.seconds, "s"),
            shown(plan.decode.seconds, "s"),
            f"{plan.tokens_per_s:,.1f}",
            *(f"{size / 2**30:.2f}" for size in (plan.held.device, plan.held.host, plan.held.disk)),
            plan.decode.binding,
        )
    console.print(table)
    for line in _notes(machine, known):
        console.print(line, soft_wrap=True)


def _notes(machine: Machine, known: Mapping[str, str]) -> list[str]:
    """Return what the numbers are made of."""
    rates = [
        f"{resource} {shown(rate.per_s, _UNITS.get(resource, 'B/s'))}"
        + (f" after {shown(rate.latency_s, 's')}" if rate.latency_s else "")
        + f" ({rate.source})"
        for resource, rate in machine.rates.items()
    ]
    unlimited = [f"{key}=" for key in LIMITS if key not in known]
    lines = [
        f"rates: {', '.join(rates)}",
        "times: as if whole steps reached these rates, which they rarely do: compare plans with one another",
    ]
    if unlimited:
        lines.append(f"no limit: {', '.join(unlimited)}")
    if machine.is_host:
        lines.append("no host: the device is the processor itself, whose memory is the host's")
    return [*lines, "plans: none of those tried has a faster step, more tokens/s and more bits than one shown"]
