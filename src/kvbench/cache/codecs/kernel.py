"""Which kernel reads packed entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvbench.kernels.packed import Kernel, why_not
from kvbench.types import ModelView

Wanted = Literal["auto", "native", "triton", "reference"]
WantedOfPages = Literal["auto", "native", "triton", "reference", "flex"]


@dataclass(frozen=True, kw_only=True)
class ReadByKernel:
    """A codec whose packed entries a kernel reads.

    Args:
        kernel: "native" (C++ on a CPU), "triton" (on a CUDA device), "reference" (plain torch), or "auto", the one for
            the device where that is possible, and the reference elsewhere.
    """

    kernel: Wanted

    def __post_init__(self) -> None:
        """Refuse kernels that do not exist."""
        check_kernel(self.kernel, "strategy.codec.kernel")

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """Return what reads packed entries of a model with this dtype on this device."""
        return chosen_kernel(self.kernel, device, dtype)

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the kernel that was asked for cannot be had, or None."""
        return lacking_kernel(self.kernel, view, "strategy.codec.kernel")


def check_kernel(kernel: Wanted, key: str) -> None:
    """Refuse kernels that do not exist."""
    if kernel not in ("auto", "native", "triton", "reference"):
        raise ValueError(f"{key} must be auto, native, triton or reference; got {kernel!r}.")


def chosen_kernel(kernel: WantedOfPages, device: torch.device, dtype: torch.dtype) -> Kernel:
    """Return what reads entries of a model with this dtype on this device."""
    if kernel != "auto":
        return kernel
    wanted: Kernel = "triton" if device.type == "cuda" else "native"
    return wanted if why_not(wanted, device, dtype) is None else "reference"


def lacking_kernel(kernel: WantedOfPages, view: ModelView, key: str) -> str | None:
    """Return why the kernel that was asked for cannot be had, or None."""
    reason = None if kernel == "auto" else why_not(kernel, view.device, view.dtype)
    return None if reason is None else f"{reason}; set {key}=auto or reference"
