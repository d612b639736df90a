"""Which backend a run gets."""

import pytest

from ase_nepcg.md.backends import SKIN, make_backend
from ase_nepcg.md.cpu import CpuBackend


@pytest.mark.parametrize(("settings", "skin"), [({}, SKIN), ({"skin": 1.5}, 1.5)])
def test_the_cpu(models, settings, skin):
    backend = make_backend(models["plain"], "cpu", "double", threads=1, **settings)
    assert isinstance(backend, CpuBackend)
    assert backend._evaluator.threads == 1
    assert backend._evaluator.neighbors.skin == skin


@pytest.mark.parametrize("precision", ["mixed", "double"])
def test_a_cuda_device(models, precision):
    pytest.importorskip("numba_cuda")
    from ase_nepcg_cuda import CudaBackend

    backend = make_backend(models["plain"], "cuda", precision, skin=0.8)
    assert isinstance(backend, CudaBackend)
    assert (backend.evaluator.precision, backend.evaluator.skin) == (precision, 0.8)
