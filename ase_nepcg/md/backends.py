"""Who computes the forces of a run and advances it: the CPU or a CUDA device."""

from __future__ import annotations

from .cpu import CpuBackend
from .setup import MDError

__all__ = ["SKIN", "make_backend", "on_devices"]

#: of the neighbour list, Å
SKIN = 1.0


def make_backend(model, device: str, precision: str, *, threads=None, temperature_K=None, skin: float = SKIN):
    """The backend of ``device``, "cpu" or "cuda" (what :func:`ase_nepcg.devices.choose` says); ``skin`` in Å."""
    if device == "cuda":
        from ase_nepcg_cuda import CudaBackend

        return CudaBackend(model, precision=precision, temperature_K=temperature_K, skin=skin)
    return CpuBackend(model, threads=threads, temperature_K=temperature_K, skin=skin)


def on_devices(backend, devices, replicas: int):
    """A backend like ``backend`` for a batch of ``replicas`` on several CUDA ``devices``; MDError."""
    if isinstance(backend, CpuBackend):
        raise MDError(
            f"devices={devices!r}: the runs are on the CPU, which has no devices; use NEP(..., device='cuda')"
        )
    from ase_nepcg_cuda import SeveralDevices

    return SeveralDevices(backend, devices, replicas)
