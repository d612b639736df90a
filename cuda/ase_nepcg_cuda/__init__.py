"""Numba-CUDA kernels of ase_nepcg; used through ``NEP(model, device="cuda")``."""

__all__ = ["CudaEvaluator"]


def __getattr__(name):
    # importing the package imports neither numba nor a driver
    if name == "CudaEvaluator":
        from .evaluate import CudaEvaluator

        return CudaEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
