"""Who computes the forces of a run and advances it: the CPU or a CUDA device."""

from __future__ import annotations

from .cpu import CpuBackend

__all__ = ["SKIN", "make_backend"]

#: of the neighbour list, Å
SKIN = 1.0


def make_backend(model, device: str, precision: str, *, threads=None, temperature_K=None, skin: float = SKIN):
    """The backend of ``device``, "cpu" or "cuda" (what :func:`ase_nepcg.devices.choose` says); ``skin`` in Å."""
    if device == "cuda":
        from ase_nepcg_cuda import CudaBackend

        return CudaBackend(model, precision=precision, temperature_K=temperature_K, skin=skin)
    return CpuBackend(model, threads=threads, temperature_K=temperature_K, skin=skin)
