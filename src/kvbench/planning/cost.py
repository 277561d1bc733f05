"""Work on the resources of a machine, and how long it takes: what overlaps takes the longest, what depends adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvbench.planning.machine import Machine, Resource


@dataclass(frozen=True)
class Use:
    """Work on one resource.

    Args:
        resource: which.
        amount: bytes, operations or launches.
        starts: transfers or calls that it is cut into.
    """

    resource: Resource
    amount: float
    starts: float = 1


@dataclass(frozen=True)
class Overlapped:
    """Work that goes on at the same time.

    Args:
        parts: of it.
    """

    parts: tuple[Cost, ...]


@dataclass(frozen=True)
class Dependent:
    """Work of which each part waits for the one before.

    Args:
        parts: of it, in order.
    """

    parts: tuple[Cost, ...]


Cost = Use | Overlapped | Dependent


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How long work takes; modelled, never measured.

    Args:
        seconds: from beginning to end.
        by_resource: of those, what the longest chain spends on each resource [s].
    """

    seconds: float
    by_resource: Mapping[Resource, float]

    @property
    def binding(self) -> Resource:
        """The resource that the longest chain spends most on."""
        return max(self.by_resource, key=lambda resource: self.by_resource[resource])


def predict(cost: Cost, machine: Machine) -> Prediction:
    """Return how long work takes on a machine.

    Raises:
        ValueError: if it needs a resource of which nothing is known.
    """
    if isinstance(cost, Use):
        seconds = machine.seconds(cost.resource, cost.amount, cost.starts)
        return Prediction(seconds=seconds, by_resource={cost.resource: seconds})
    parts = [predict(part, machine) for part in cost.parts]
    if isinstance(cost, Overlapped):
        return max(parts, key=lambda part: part.seconds)
    spent: dict[Resource, float] = {}
    for part in parts:
        for resource, seconds in part.by_resource.items():
            spent[resource] = spent.get(resource, 0.0) + seconds
    return Prediction(seconds=sum(part.seconds for part in parts), by_resource=spent)


def amounts(cost: Cost) -> dict[Resource, float]:
    """Return what work does on each resource altogether."""
    if isinstance(cost, Use):
        return {cost.resource: cost.amount}
    total: dict[Resource, float] = {}
    for part in cost.parts:
        for resource, amount in amounts(part).items():
            total[resource] = total.get(resource, 0.0) + amount
    return total
