"""Which kernel reads packed entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvbench.kernels.packed import Kernel, why_not
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class ReadByKernel:
    """A codec whose packed entries a kernel reads.

    Args:
        kernel: "native" (C++ on a CPU), "reference" (plain torch), or "auto", native where that is possible.
    """

    kernel: Literal["auto", "native", "reference"]

    def __post_init__(self) -> None:
        """Refuse kernels that do not exist."""
        if self.kernel not in ("auto", "native", "reference"):
            raise ValueError(f"strategy.codec.kernel must be auto, native or reference; got {self.kernel!r}.")

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """Return what reads packed entries of a model with this dtype on this device."""
        if self.kernel != "auto":
            return self.kernel
        return "native" if why_not("native", device, dtype) is None else "reference"

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the kernel that was asked for cannot be had, or None."""
        reason = None if self.kernel == "auto" else why_not(self.kernel, view.device, view.dtype)
        return None if reason is None else f"{reason}; set strategy.codec.kernel=auto or reference"
