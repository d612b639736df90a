"""Numba-CUDA kernels of ase_nepcg. Nothing here yet: ``NEP(device="cuda")`` says so."""
