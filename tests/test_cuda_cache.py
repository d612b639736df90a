"""Compiled CUDA kernels on disk: what tells them apart, and that a second process finds what the first has made.

In processes of their own, as the simulator and the compiler exclude each other; machine code is made without a device.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda with its compiler is not installed"
)

FINGERPRINTS = """
import json, sys
from ase_nepcg.md.ensembles.langevin import Langevin
from ase_nepcg.md.ensembles.npt import NPTbySCR
from ase_nepcg_cuda import ptx
from ase_nepcg_cuda.advance import build_advance
from ase_nepcg_cuda.cache import fingerprint
from ase_nepcg_cuda.gradient import build_gradient
from ase_nepcg_cuda.integrate import build_kernels_of_halves

found = {}

def keep(name, kernel):
    found[name] = fingerprint(kernel.py_func, kernel.targetoptions)

water, atoms = ptx.SHAPES["water CG"], ptx.SHAPES["water AA"]
for shape in (water, atoms):
    for name in ("mixed", "double"):
        for stage, one in ptx.stages_of(shape, name).items():
            keep(f"{stage} {shape} {name}", one.kernel)
        for k, one in enumerate(build_gradient(shape, name)):
            # sums over sites take their precision from their arguments
            keep(f"gradient {k} {shape} {name if k < 2 else ''}", getattr(one, "kernel", one))
for ensemble in (Langevin, NPTbySCR):
    for kind in ("block", "grid"):
        for k, half in enumerate(build_kernels_of_halves(ensemble, ensemble.n_state, kind)):
            keep(f"half {k} {ensemble} {kind}", half)
        for observes in (False, True):
            made = build_advance(water, "mixed", ensemble, ensemble.n_state, kind, observes)
            keep(f"advance {ensemble} {kind} {observes}", made)
print(json.dumps(found))
"""

COMPILE = """
import hashlib, json, sys
import numba
from numba.cuda.dispatcher import _Kernel
from ase_nepcg_cuda import ptx
from ase_nepcg_cuda.lists import build_lists

cc = tuple(json.loads(sys.argv[1]))
# there is no context to which it could be bound; what is kept is made by this
_Kernel.bind = lambda self: self._codelibrary.get_cubin()
stage = build_lists("mixed").clear
kernel = stage.kernel
with ptx.pretend(cc):
    made = kernel.compile((numba.int64, ptx._argument_types(stage.signature, "mixed")))
    code = bytes(made._codelibrary.get_cubin().code)
print(json.dumps([
    sum(kernel._cache_hits.values()), sum(kernel._cache_misses.values()), hashlib.sha256(code).hexdigest(),
    [str(one) for one in made.argument_types], made.entry_name,
]))
"""

OTHER_VALUES = """
from ase_nepcg_cuda.cache import fingerprint
import numpy as np

def make(value):
    def kernel(x):
        x[0] = value
    kernel.__module__ = "ase_nepcg_cuda.test"
    return kernel

def mark(value, **options):
    return fingerprint(make(value), options)

def nested(value):
    return lambda x: x + value

values = [1, 1.0, True, None, "1", (1,), (1.0,), np.float32(1.0), np.ones(1), np.ones(1, np.float32), np.zeros(1), len]
assert len({mark(value) for value in values}) == len(values)
assert mark(np.arange(3)) == mark(np.arange(3))
assert mark(1.0) != mark(1.0, fastmath=True)
one, two = nested(1), nested(2)
for function in (one, two):
    function.__module__ = "ase_nepcg_cuda.test"
assert mark(one) != mark(two)
try:
    mark(object())
except TypeError as error:
    assert "make.<locals>.kernel uses a" in str(error) and "cannot be told" in str(error)
else:
    raise AssertionError("an object was taken for a value")
"""


def run(script, *arguments, **environment):
    settings = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"} | environment
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


def test_fingerprints_tell_kernels_apart_and_are_the_same_in_every_process():
    first, second = (run(FINGERPRINTS, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first == second
    # these do not depend on the model
    neighbours = ("place", "moved", "clear", "fill_bins", "sort_bins", "find", "select", "pair_up", "settle", "gather")
    own = {name: mark for name, mark in first.items() if not name.startswith(neighbours)}
    assert len(own) > 30
    same = {}
    for name, mark in own.items():
        same.setdefault(mark, []).append(name)
    assert [names for names in same.values() if len(names) > 1] == []


def test_values_that_a_kernel_uses_are_told_apart():
    run(OTHER_VALUES)


def test_a_second_process_loads_what_the_first_has_compiled(tmp_path):
    first = run(COMPILE, "[9, 0]", NUMBA_CACHE_DIR=str(tmp_path))
    assert first[:2] == [0, 1]
    (path,) = tmp_path.glob("ase_nepcg/kernels-*/*.pickle")
    assert path.name.startswith("clear-")
    second = run(COMPILE, "[9, 0]", NUMBA_CACHE_DIR=str(tmp_path))
    assert second == [1, 0, *first[2:]]
    # another device has its own
    other = run(COMPILE, "[8, 0]", NUMBA_CACHE_DIR=str(tmp_path))
    assert other[:2] == [0, 1]
    assert other[2] != first[2]
    assert len(list(path.parent.iterdir())) == 2
    path.write_bytes(path.read_bytes()[:100])
    assert run(COMPILE, "[9, 0]", NUMBA_CACHE_DIR=str(tmp_path))[:2] == [0, 1]
    assert run(COMPILE, "[9, 0]", NUMBA_CACHE_DIR=str(tmp_path)) == second
