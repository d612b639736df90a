"""Numba-CUDA kernels of ase_nepcg; used through ``NEP(model, device="cuda")`` and ``MD(..., device="cuda")``."""

import importlib

_MODULES = {
    "CudaBackend": "backend",
    "CudaEvaluator": "evaluate",
    "Population": "train",
    "SeveralDevices": "several",
}

__all__ = ["CudaBackend", "CudaEvaluator", "Population", "SeveralDevices"]


def __getattr__(name):
    # importing the package imports neither numba nor a driver
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
