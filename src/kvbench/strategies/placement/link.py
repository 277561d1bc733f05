"""The link that what lies elsewhere crosses: that of this machine, or one whose time is modelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kvbench.cache.placement.tiers import Traffic


@dataclass(frozen=True, kw_only=True)
class Link:
    """What moves between the host's memory and the device.

    Args:
        link: "real", or "modelled" to note beside what is measured how long a step's traffic would take a link.
        link_gb_per_s: of the link that is modelled, in 10^9 bytes, up or down.
        link_latency_us: before the first byte of what is sent for: a layer's entries, or the pages it lacks; twice
            where the host attends: down and up.
    """

    link: Literal["real", "modelled"]
    link_gb_per_s: float
    link_latency_us: float

    def __post_init__(self) -> None:
        """Refuse a link that nothing can cross."""
        if self.link_gb_per_s <= 0 or self.link_latency_us < 0:
            raise ValueError(
                f"strategy.placement.link_gb_per_s must be above 0 and link_latency_us at least 0; got "
                f"{self.link_gb_per_s} and {self.link_latency_us}."
            )

    @property
    def _ways(self) -> int:
        """Times that what is sent for waits for the link."""
        return 1

    def link_ms(self, before: Traffic, after: Traffic, steps: int) -> float | None:
        """Return the time that what moved in so many steps would take the link, per step; None where it is real."""
        if self.link == "real":
            return None
        num_bytes = after.up + after.down - before.up - before.down
        waiting_us = (after.fetches - before.fetches) * self._ways * self.link_latency_us
        return (num_bytes / (self.link_gb_per_s * 1e9) * 1e3 + waiting_us / 1e3) / steps
