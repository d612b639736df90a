"""The kernels compile for three generations of GPUs, without a GPU, into as many registers as there are.

In a process of its own, as the simulator and the compiler exclude each other.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from ase_nepcg_cuda import ptx

from ase_nepcg import NEPModel
from ase_nepcg.potential.layout import Shape

pytestmark = pytest.mark.skipif(
    ptx.find_assembler() is None or importlib.util.find_spec("numba_cuda") is None,
    reason="numba-cuda with its compiler and ptxas are not installed (extra ptx)",
)
#: kernels that go over pairs of sites: no double precision there
PAIRS = ("sums", "network", "partial_forces", "gather", "find", "select")


@pytest.fixture(scope="module")
def resources(tmp_path_factory):
    """Function: compute capability -> {kernel [shape]: numbers}; kernels other than those of forces and lists for the
    newest only, to save time."""
    folder, found = tmp_path_factory.mktemp("ptx"), {}

    def of(cc):
        if cc not in found:
            file = folder / f"{cc}.json"
            environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
            command = [sys.executable, "-m", "ase_nepcg_cuda.ptx", "--cc", cc, "--json", str(file)]
            command += ["--whole"] if cc == "9.0" else []
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=900)
            found[cc] = json.loads(file.read_text())
        return found[cc]

    return of


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cc", ["7.5", "8.0", "9.0"])
def test_coarse_grained_models_need_no_stack(resources, cc):
    table = resources(cc)
    assert all(f"sums [{title}]" in table for title in ptx.SHAPES)
    for title in ptx.COARSE_GRAINED:
        for kernel in PAIRS[:4]:
            found = table[f"{kernel} [{title}]"]
            assert (found["stack"], found["spill_stores"], found["spill_loads"]) == (0, 0, 0), (kernel, title)
    assert {name.split(" [")[0] for name in table} >= {*PAIRS, "place", "moved", "sort_bins", "pair_up"}


@pytest.mark.timeout(900)
def test_no_double_precision_between_pairs_of_sites(resources):
    for name, found in resources("9.0").items():
        if name.split(" [")[0].split(",")[0] in PAIRS:
            assert found["doubles"] == 0, name
    # the count does count
    assert resources("9.0")["place"]["doubles"] > 0


@pytest.mark.timeout(900)
def test_other_kernels_need_no_stack_and_that_of_many_steps_hardly_any(resources):
    models = tuple(f"[{title}]" for title in ptx.SHAPES if title != "water CG")
    table = {name: found for name, found in resources("9.0").items() if not name.endswith(models)}
    for name in ("begin, Langevin, block", "score [water CG]", "tangents [water CG]", "mean force, grid [water CG]"):
        assert name in table
    assert sum(name.startswith("advance") for name in table) == 2
    for name, found in table.items():
        # of many steps a few counters of the outer loops: 0 with the compiler of this writing, 48 bytes before
        most = 64 if name.startswith("advance") else 0
        assert max(found["stack"], found["spill_stores"], found["spill_loads"]) <= most, name


def test_shapes_are_those_of_models():
    model = NEPModel.zeros(["Ar"])
    assert ptx.SHAPES["water CG"] == Shape.of(model)
    metal = NEPModel.zeros(["Au"], l_max=(4, 2, 1), neurons=80, zbl=(1.0, 2.0))
    assert ptx.SHAPES["metal, 5-body"] == Shape.of(metal)
