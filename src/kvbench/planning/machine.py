"""What a machine can do, as the time that an amount takes; nothing has a default."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

Resource = Literal[
    "device_memory",
    "device_flops",
    "recompute_flops",
    "host_to_device",
    "device_to_host",
    "disk_read",
    "disk_read_warm",
    "disk_write",
    "host_memory",
    "host_flops",
    "launch",
]
Source = Literal["measured", "given"]

LINKS: tuple[Resource, ...] = ("host_to_device", "device_to_host")
KEYS: Mapping[Resource, str] = {  # what is typed where a number is given instead of measured
    "device_memory": "device_bandwidth=2TB/s",
    "device_flops": "device_flops=300Tflop/s",
    "recompute_flops": "device_flops=300Tflop/s",
    "host_to_device": "link=25GB/s",
    "device_to_host": "link=25GB/s",
    "disk_read": "disk_bandwidth=3GB/s",
    "disk_read_warm": "disk_bandwidth=3GB/s",
    "disk_write": "disk_bandwidth=3GB/s",
    "host_memory": "host_bandwidth=50GB/s",
    "host_flops": "host_flops=1Tflop/s",
    "launch": "launch=5us",
}
_MEASURED: Mapping[Resource, str] = {  # by what `kvbench hardware` calls it
    "device_memory": "read",
    "device_flops": "gemm",
    "host_to_device": "host_to_device",
    "device_to_host": "device_to_host",
    "disk_read": "disk_read_cold_1M",
    "disk_read_warm": "disk_read_warm_1M",
    "disk_write": "disk_write_1M",
    "host_memory": "host_read",
    "host_flops": "host_gemm",
    "launch": "launch",
}
_LATENCY = "_latency"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The time of an amount: so much to begin, and then so much per second.

    Args:
        per_s: bytes, operations or launches per second.
        latency_s: of every transfer or call [s].
        source: whether it was measured, or given for another machine.
    """

    per_s: float
    latency_s: float
    source: Source

    def __post_init__(self) -> None:
        """Refuse what is no rate."""
        if not (self.per_s > 0 and isfinite(self.per_s) and self.latency_s >= 0 and isfinite(self.latency_s)):
            raise ValueError(
                f"a rate must be above 0 and its latency at least 0; got {self.per_s} per second after "
                f"{self.latency_s} s. Measure again with kvbench hardware, or give other numbers."
            )

    def seconds(self, amount: float, starts: float = 1) -> float:
        """Return the time of an amount [s]; nothing takes none.

        Args:
            amount: bytes, operations or launches.
            starts: transfers or calls that it is cut into.
        """
        return starts * self.latency_s + amount / self.per_s if amount else 0.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device, its host and what lies between them.

    Args:
        name: of the device, for messages.
        is_host: whether the device is the host itself, so that there is no link to cross.
        rates: what is known.
    """

    name: str
    is_host: bool
    rates: Mapping[Resource, Rate]

    def rate(self, resource: Resource) -> Rate:
        """Return how fast something is.

        Raises:
            ValueError: if that was neither measured nor given.
        """
        if resource in self.rates:
            return self.rates[resource]
        model = " model=<the model>" if resource == "recompute_flops" else ""
        raise ValueError(
            f"nothing says how fast {resource} is on {self.name}: measure it there with kvbench hardware{model}, or "
            f"give a number such as {KEYS[resource]}."
        )

    def seconds(self, resource: Resource, amount: float, starts: float) -> float:
        """Return the time of an amount [s]."""
        if not amount or (self.is_host and resource in LINKS):
            return 0.0
        return self.rate(resource).seconds(amount, starts)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the rows that `kvbench hardware` wrote.

    Raises:
        ValueError: with the command that writes them, if there are none.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"no machine was measured: there is no {path}. Run kvbench hardware, or name a record with hardware=<file>."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"hardware={path} cannot be read ({error}); write it again with kvbench hardware.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"name", "value"} <= row.keys() for row in rows):
        raise ValueError(f"hardware={path} is no record of a machine; write it again with kvbench hardware.")
    return rows


def machine_of(rows: Iterable[Mapping[str, Any]], *, recompute_shape: str) -> Machine:
    """Return the machine that rows describe; what they lack is missed only when it is asked for.

    Args:
        rows: of `kvbench hardware`.
        recompute_shape: inputs x outputs of the product that makes keys and values, as rows write it: "4096x8192".
    """
    found = {row["name"]: row for row in rows}
    products = [row for row in found.values() if row["name"] == "gemm_recompute"]
    named = {resource: found[name] for resource, name in _MEASURED.items() if name in found}
    if products and str(products[0]["shape"]).partition("x")[2] == recompute_shape:
        named["recompute_flops"] = products[0]
    first = next(iter(found.values()), None)
    device = "this machine" if first is None else str(first["device_name"])
    is_host = first is not None and first["device"] == "cpu"
    return Machine(name=device, is_host=is_host, rates={key: _rate(row, found) for key, row in named.items()})


def _rate(row: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> Rate:
    latency = found.get(f"{row['name']}{_LATENCY}")
    return Rate(
        per_s=float(row["value"]), latency_s=0.0 if latency is None else float(latency["value"]), source="measured"
    )
