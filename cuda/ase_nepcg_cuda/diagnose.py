"""What there is of CUDA, whether the kernels compile and run, and what to do if not: ``nepcg info --cuda``."""

from __future__ import annotations

import importlib.metadata
import re
from typing import NamedTuple

from ase_nepcg import devices

__all__ = ["Finding", "diagnose", "newest_ptx", "ptx_of_driver"]

_WHEELS = ("numba", "numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
# since then kernels may have more than 4 kB of arguments
_FOR_MANY_ARGUMENTS = 12, 1


class Finding(NamedTuple):
    """One line: what, the answer, and what to do (empty: nothing)."""

    what: str
    answer: str
    advice: str = ""


def ptx_of_driver(version: tuple[int, int]) -> tuple[int, int]:
    """The newest PTX version that a driver of this CUDA version loads (CUDA 12.0 brought PTX 8.0, 13.0 PTX 9.0; one
    more with each release, none with 12.6)."""
    major, minor = version
    return major - 4, minor - (major == 12 and minor >= 6)


def newest_ptx() -> tuple[int, int]:
    """The PTX version that the installed compiler writes."""
    from .lists import build_lists
    from .ptx import compile_stage

    clear = build_lists("mixed").clear
    major, minor = re.search(r"\.version (\d+)\.(\d+)", compile_stage(clear, "mixed")).groups()
    return int(major), int(minor)


def diagnose() -> list[Finding]:
    """Driver, wheels, device, compiler and a kernel that runs, in this order."""
    version = devices.driver_version()
    found = [
        Finding("driver", f"CUDA {version[0]}.{version[1]}")
        if version
        else Finding("driver", "none (libcuda.so.1 was not found)", "install the NVIDIA driver of your GPU")
    ]
    extra = "cuda12" if version is not None and version[0] < 13 else "cuda13"
    installed = {}
    for wheel in _WHEELS:
        try:
            installed[wheel] = importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            continue
    found.append(Finding("packages", ", ".join(f"{name} {number}" for name, number in installed.items())))
    if "numba-cuda" not in installed:
        found.append(Finding("numba-cuda", "not installed", f"pip install 'ase_nepcg[{extra}]'"))
        return found
    if devices.simulated():
        found.append(Finding("device", "the simulator (NUMBA_ENABLE_CUDASIM): for tests, very slow"))
        found.append(_run())
        return found
    try:
        ptx = newest_ptx()
        found.append(Finding("compiler", f"writes PTX {ptx[0]}.{ptx[1]}"))
    except Exception as error:
        # whatever a broken installation does
        found.append(Finding("compiler", _short(error), f"pip install --force-reinstall 'ase_nepcg[{extra}]'"))
        return found
    if version is None:
        return found
    loads = ptx_of_driver(version)
    if ptx > loads:
        found.append(
            Finding(
                "driver and compiler",
                f"the driver (CUDA {version[0]}.{version[1]}) loads PTX up to {loads[0]}.{loads[1]}, the compiler "
                f"writes {ptx[0]}.{ptx[1]}",
                f"pip install 'nvidia-nvvm=={version[0]}.{version[1]}.*' 'nvidia-cuda-nvrtc=={version[0]}."
                f"{version[1]}.*', or install a newer driver",
            )
        )
    if version < _FOR_MANY_ARGUMENTS:
        found.append(
            Finding(
                "driver for MD",
                f"CUDA {version[0]}.{version[1]} takes at most 4 kB of arguments, the kernel of many steps has more",
                "install a driver of CUDA {}.{} or newer; forces and training work with this one".format(
                    *_FOR_MANY_ARGUMENTS
                ),
            )
        )
    if (reason := devices.why_no_cuda()) is not None:
        found.append(Finding("device", reason))
        return found
    from numba import cuda

    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    major, minor = device.compute_capability
    memory = cuda.current_context().get_memory_info().total
    found.append(Finding("device", f"{name}, compute capability {major}.{minor}, {memory / 2**30:.0f} GiB"))
    found.append(_run())
    return found


def _run() -> Finding:
    """A small evaluation, compared with the CPU."""
    import numpy as np

    from ase_nepcg import NEPModel
    from ase_nepcg.potential.evaluate import Geometry, evaluate

    from .evaluate import CudaEvaluator

    rng = np.random.default_rng(0)
    positions = np.stack(np.meshgrid([0.0, 2.4], [0.0, 2.4], [0.0, 2.4]), -1).reshape(-1, 3)
    geometry = Geometry(positions + rng.uniform(-0.3, 0.3, (8, 3)), np.eye(3), np.zeros(3, bool), np.zeros(8, int))
    model = NEPModel.random(["Ar"], seed=1)
    try:
        difference = np.abs(CudaEvaluator(model)(geometry).forces - evaluate(model, geometry).forces).max()
    except Exception as error:
        # whatever the driver says
        return Finding("kernels", _short(error), "see the lines above; use device='cpu' meanwhile")
    if difference > 1e-4:
        return Finding("kernels", f"forces differ from the CPU's by {difference:.1e} eV/Å", "please report this")
    return Finding("kernels", f"compile and run; forces as on the CPU to {difference:.0e} eV/Å")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
