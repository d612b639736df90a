"""Which device computes, and why not the other one."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys

from ase.calculators.calculator import CalculatorSetupError

__all__ = ["DEVICES", "PRECISIONS", "choose", "driver_version", "resolve", "simulated", "visible", "why_no_cuda"]

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "double", "mixed")


def simulated() -> bool:
    """Whether CUDA kernels run in numba's simulator, as Python: for tests."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


@functools.cache
def driver_version() -> tuple[int, int] | None:
    """CUDA version of the installed NVIDIA driver, or None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value <= 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def visible() -> list[str]:
    """CUDA devices of this process by the names that CUDA_VISIBLE_DEVICES takes; none without a driver."""
    if driver_version() is None:
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [str(number) for number in range(count.value)]


@functools.cache
def why_no_cuda() -> str | None:
    """Why ``device="cuda"`` is not possible here and what to do, in one sentence; None where it is."""
    if simulated():
        return None
    version = driver_version()
    if version is None:
        return "no NVIDIA driver (libcuda.so.1) was found: use device='cpu', or install the driver of your GPU"
    if importlib.util.find_spec("numba_cuda") is None:
        extra = "cuda13" if version[0] >= 13 else "cuda12"
        return f"numba-cuda is not installed: pip install 'ase_nepcg[{extra}]' (the driver is of CUDA {version[0]})"
    from numba import cuda

    try:
        cuda.current_context()
    except Exception as error:
        # whatever the driver says: numba raises several types here
        return f"the CUDA device cannot be used: {' '.join(str(error).split())} (see nepcg info --cuda)"
    return None


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def resolve(device: str) -> str:
    """ "cpu" or "cuda" for "auto", which takes a usable CUDA device where there is one and says so once.

    The simulator is never chosen by "auto".
    """
    if device != "auto":
        return device
    if simulated() or driver_version() is None or why_no_cuda() is not None:
        return "cpu"
    from numba import cuda

    name = cuda.get_current_device().name
    name = name.decode() if isinstance(name, bytes) else name
    _say_once(f"ase_nepcg: NEP models are evaluated on {name} in mixed precision (device='cpu' for the CPU)")
    return "cuda"


def choose(device: str, precision: str) -> tuple[str, str]:
    """What "auto" stands for here: "cpu" or "cuda", and "double" or "mixed".

    Raises CalculatorSetupError for other words and for what is not possible.
    """
    for name, value, valid in (("device", device, DEVICES), ("precision", precision, PRECISIONS)):
        if value not in valid:
            raise CalculatorSetupError(f"{name}={value!r}: expected one of {', '.join(valid)}")
    device = resolve(device)
    if device == "cuda" and (reason := why_no_cuda()) is not None:
        raise CalculatorSetupError(f"device='cuda': {reason}")
    if device == "cpu" and precision == "mixed":
        raise CalculatorSetupError("precision='mixed' belongs to device='cuda'; the CPU kernels use 'double'")
    if precision == "auto":
        precision = "mixed" if device == "cuda" else "double"
    return device, precision
