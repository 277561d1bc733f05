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
        kernel: "native" (C++ on a CPU), "triton" (on a CUDA device), "reference" (plain torch), or "auto", the one for
            the device where that is possible, and the reference elsewhere.
    """

    kernel: Literal["auto", "native", "triton", "reference"]

    def __post_init__(self) -> None:
        """Refuse kernels that do not exist."""
        if self.kernel not in ("auto", "native", "triton", "reference"):
            raise ValueError(f"strategy.codec.kernel must be auto, native, triton or reference; got {self.kernel!r}.")

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """Return what reads packed entries of a model with this dtype on this device."""
        if self.kernel != "auto":
            return self.kernel
        wanted: Kernel = "triton" if device.type == "cuda" else "native"
        return wanted if why_not(wanted, device, dtype) is None else "reference"

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the kernel that was asked for cannot be had, or None."""
        reason = None if self.kernel == "auto" else why_not(self.kernel, view.device, view.dtype)
        return None if reason is None else f"{reason}; set strategy.codec.kernel=auto or reference"
