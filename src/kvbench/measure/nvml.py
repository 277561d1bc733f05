"""What NVIDIA's management library says about a GPU, without a package: it comes with the driver."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_SENSOR_GPU = 0


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """A GPU at one moment; a field is None where the driver does not say.

    Args:
        driver: version of the driver.
        sm_mhz: rate of the multiprocessors.
        memory_mhz: rate of the memory.
        temperature_c: of the chip.
        throttle_reasons: bits that say why the rates are not higher.
    """

    driver: str | None
    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    throttle_reasons: int | None


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None  # no driver here
    return library if library.nvmlInit_v2() == 0 else None


def read_gpu(uuid: str) -> GpuState | None:
    """Return the state of a GPU, or None without the library or the GPU.

    Args:
        uuid: of the GPU, as the driver writes it: "GPU-...".
    """
    library = _library()
    handle = ctypes.c_void_p()
    if library is None or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
        return None
    return GpuState(
        driver=_driver(library),
        sm_mhz=_number(library.nvmlDeviceGetClockInfo, handle, _CLOCK_SM),
        memory_mhz=_number(library.nvmlDeviceGetClockInfo, handle, _CLOCK_MEMORY),
        temperature_c=_number(library.nvmlDeviceGetTemperature, handle, _SENSOR_GPU),
        throttle_reasons=_number(library.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
    )


def energy_j(uuid: str) -> float | None:
    """Return what a GPU has used since the driver was loaded [J], or None where the driver does not say.

    Args:
        uuid: as of `read_gpu`.
    """
    library, handle = _library(), ctypes.c_void_p()
    if library is None or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
        return None
    millijoules = _number(library.nvmlDeviceGetTotalEnergyConsumption, handle)
    return None if millijoules is None else millijoules / 1e3


def _driver(library: Any) -> str | None:
    text = ctypes.create_string_buffer(80)
    return text.value.decode() if library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(80)) == 0 else None


def _number(function: Any, *arguments: Any) -> int | None:
    value = ctypes.c_ulonglong(0)  # wide enough for both kinds of answer; the machine is little-endian
    return value.value if function(*arguments, ctypes.byref(value)) == 0 else None
