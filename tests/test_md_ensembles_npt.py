"""Settings of NPT: what is accepted, what becomes of it, and what the errors say. Nothing is compiled here."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from ase import units

from ase_nepcg.errors import NepCGError
from ase_nepcg.md.ensembles import mttk, scr
from ase_nepcg.md.ensembles.base import EnsembleError, Setup
from ase_nepcg.md.ensembles.npt import NPT, NPTbyMTTK, NPTbySCR
from ase_nepcg.md.ensembles.strain import AXES, HYDROSTATIC, KT, PROJECTOR, RANK, REFERENCE, SHEAR, TARGET


def setup(pbc=(True, True, True), cell=None, n=10, timestep=2.0, **more):
    cell = np.diag([10.0, 11.0, 12.0]) if cell is None else np.array(cell, float)
    known = {"n_sites": n, "n_dof": 3 * n, "n_frozen": 0, "n_held": 0, "masses": np.ones(n)}
    return Setup(pbc=pbc, cell=cell, timestep=timestep * units.fs, **(known | more))


def npt(pressure=0.1, coupling="isotropic", **more):
    return NPT(
        **({"temperature_K": 300.0, "pressure_GPa": pressure, "tau_fs": 100.0, "tau_p_fs": 500.0} | more),
        coupling=coupling,
    )


def projector(p):
    return p[PROJECTOR : PROJECTOR + 9].reshape(3, 3)


SHEET = (True, True, False)
THIRD = np.full((3, 3), 1 / 3)
PLANE = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
Z = np.diag([0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("pressure", "coupling", "pbc", "expected", "target", "rank", "axes"),
    [
        (0.5, "isotropic", (True,) * 3, THIRD, [0.5, 0.5, 0.5], 1, 3),
        (0.5, "semi-isotropic", (True,) * 3, PLANE + Z, [0.5, 0.5, 0.5], 2, 3),
        ((0.5, 0.2), "semi-isotropic", (True,) * 3, PLANE + Z, [0.5, 0.5, 0.2], 2, 3),
        ((0.5, None), "semi-isotropic", (True,) * 3, PLANE, [0.5, 0.5, 0.0], 1, 2),
        ((None, 0.2), "semi-isotropic", (True,) * 3, Z, [0.0, 0.0, 0.2], 1, 1),
        (0.5, "semi-isotropic", SHEET, PLANE, [0.5, 0.5, 0.0], 1, 2),
        ((0.5, None), "semi-isotropic", SHEET, PLANE, [0.5, 0.5, 0.0], 1, 2),
        (0.5, "semi-isotropic", (False, True, True), PLANE[::-1, ::-1], [0.0, 0.5, 0.5], 1, 2),
        (0.5, "anisotropic", (True,) * 3, np.eye(3), [0.5, 0.5, 0.5], 3, 3),
        ((0.1, 0.2, None), "anisotropic", SHEET, np.eye(3) - Z, [0.1, 0.2, 0.0], 2, 2),
        ((None, None, 0.3), "anisotropic", (False, False, True), Z, [0.0, 0.0, 0.3], 1, 1),
        (0.5, "triclinic", (True,) * 3, np.eye(3), [0.5, 0.5, 0.5], 6, 3),
    ],
)
def test_couplings(pressure, coupling, pbc, expected, target, rank, axes):
    ensemble = npt(pressure, coupling)
    ensemble.check(setup(pbc))
    p = ensemble.parameters(setup(pbc))
    assert np.array_equal(projector(p), expected)
    assert np.allclose(p[TARGET : TARGET + 6] / units.GPa, [*target, 0, 0, 0], rtol=1e-12)
    assert p[HYDROSTATIC] == pytest.approx(np.sum(target) / axes * units.GPa)
    assert (p[RANK], p[AXES], p[SHEAR]) == (rank, axes, coupling == "triclinic")
    assert p[KT] == pytest.approx(units.kB * 300)


def test_parameters_of_the_methods():
    six = (0.1, 0.2, 0.3, 0.01, 0.02, 0.03)
    p = npt(six, "triclinic", compressibility_per_GPa=0.6).parameters(setup())
    assert np.allclose(p[TARGET : TARGET + 6], np.array(six) * units.GPa, rtol=1e-12)
    assert p[HYDROSTATIC] == pytest.approx(0.2 * units.GPa)
    assert p[scr.MOBILITY] == pytest.approx(0.6 / units.GPa / (3 * 500 * units.fs))
    assert p[scr.DAMPING] == pytest.approx(np.exp(-2 / 100))
    p = npt(method="mttk").parameters(setup())
    # 27 degrees of freedom without the total momentum
    assert p[mttk.MASS] == pytest.approx(30 * units.kB * 300 * (500 * units.fs) ** 2 / 3)
    cell = np.array([[9.0, 1, 0], [0, 8, 2], [1, 0, 7]])
    for method in ("scr", "mttk"):
        ensemble = npt(method=method)
        q = ensemble.initial(setup(cell=cell))
        assert np.allclose(q[REFERENCE : REFERENCE + 9].reshape(3, 3) @ cell, np.eye(3), atol=1e-14)
        assert len(q) == ensemble.n_state
        assert not q[REFERENCE + 9 :].any()
        assert len(ensemble.parameters(setup())) == ensemble.n_params
        assert ensemble.n_dof(setup()) == 27


def test_one_class_per_method():
    first, second = npt(), npt(method="mttk")
    assert type(first) is NPTbySCR
    assert type(second) is NPTbyMTTK
    assert type(NPT(300, 0.0, 100, 1000, "isotropic", "mttk")) is NPTbyMTTK
    assert first.kernels() is scr.KERNELS
    assert second.kernels() is mttk.KERNELS
    assert first.name != second.name
    for ensemble in (first, second):
        assert isinstance(ensemble, NPT)
        assert ensemble.changes_cell
        assert ensemble.without_momentum
        assert not ensemble.takes_constraints
        assert ensemble.temperature == 300.0
        for other in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble)), dataclasses.replace(ensemble)):
            assert type(other) is type(ensemble)
            assert other == ensemble
    assert first != second
    with pytest.raises(EnsembleError, match=r"method 'scr', got 'mttk': use NPT"):
        dataclasses.replace(first, method="mttk")


def test_todict_makes_the_same_again():
    for ensemble in (npt(np.float64(0.1)), npt([0.1, 0.2, None], "anisotropic", method="mttk")):
        settings = json.loads(json.dumps(ensemble.todict()))
        assert settings.pop("name") == "npt"
        again = NPT(**settings)
        assert again == ensemble
        assert type(again) is type(ensemble)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature_K": 0.0}, "temperature_K must be a positive number, got 0.0"),
        ({"temperature_K": -10}, "temperature_K must be a positive number, got -10"),
        ({"tau_fs": 0}, "tau_fs must be a positive number"),
        ({"tau_p_fs": float("nan")}, "tau_p_fs must be a positive number, got nan"),
        ({"compressibility_per_GPa": -0.4}, "compressibility_per_GPa must be a positive number"),
        ({"coupling": "isotopic"}, "no coupling 'isotopic'; did you mean 'isotropic'?"),
        ({"coupling": "semiisotropic"}, "did you mean 'semi-isotropic'?"),
        ({"coupling": None}, "no coupling None; valid names: anisotropic, isotropic, semi-isotropic, triclinic"),
        ({"method": "mtk"}, "no method 'mtk'; did you mean 'mttk'?"),
        ({"method": "berendsen"}, "no method 'berendsen'; valid names: mttk, scr"),
        ({"pressure_GPa": (0.1, 0.1, 0.1)}, "'isotropic' must be one number; got 3"),
        ({"pressure_GPa": (0.1,)}, "'isotropic' must be one number; got 1"),
        ({"pressure_GPa": (0.1, 0.1, 0.1), "coupling": "semi-isotropic"}, "in the plane, along the third axis; got 3"),
        ({"pressure_GPa": (0.1, 0.1), "coupling": "anisotropic"}, "one number, or three: x, y, z; got 2"),
        ({"pressure_GPa": (0.1,) * 3, "coupling": "triclinic"}, "or six: xx, yy, zz, yz, xz, xy; got 3"),
        ({"pressure_GPa": np.eye(3), "coupling": "anisotropic"}, "None: this axis keeps its length"),
        ({"pressure_GPa": None}, "must be one number; finite numbers; got None"),
        ({"pressure_GPa": "1"}, "finite numbers; got '1'"),
        ({"pressure_GPa": True}, "finite numbers; got True"),
        ({"pressure_GPa": float("inf")}, "finite numbers; got inf"),
        ({"pressure_GPa": (None,) * 3, "coupling": "anisotropic"}, "None for all axes, so no axis scales"),
        ({"pressure_GPa": (0.1,) * 5 + (None,), "coupling": "triclinic"}, "finite numbers; got"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(EnsembleError) as error:
        NPT(**({"temperature_K": 300.0, "pressure_GPa": 0.1, "tau_fs": 100.0, "tau_p_fs": 500.0} | settings))
    assert message in str(error.value)
    assert isinstance(error.value, NepCGError | ValueError)


OPEN_Z = "pressure on axis z, which is not periodic"


@pytest.mark.parametrize(
    ("ensemble", "atoms", "message"),
    [
        (npt(), {"pbc": SHEET}, OPEN_Z),
        (npt(coupling="anisotropic"), {"pbc": SHEET}, OPEN_Z),
        (npt((0.1, 0.1, 0.0), "anisotropic"), {"pbc": SHEET}, OPEN_Z),
        (npt((0.1, 0.0), "semi-isotropic"), {"pbc": SHEET}, OPEN_Z),
        (npt(coupling="triclinic"), {"pbc": (False, True, True)}, "pressure on axis x, which is not periodic"),
        (npt(coupling="semi-isotropic"), {"pbc": (False, True, False)}, "but x and z are not periodic"),
        (npt(), {"n_frozen": 2}, "frozen atoms (FixAtoms)"),
        (npt(), {"n_held": 1}, "held beads (FixBeads)"),
        (npt(), {"n": 1}, "no degrees of freedom are left"),
        (
            npt(coupling="semi-isotropic"),
            {"pbc": SHEET, "cell": np.diag([9.0, 9, 0])},
            "a non-periodic axis needs a cell",
        ),
        (npt(), {"cell": np.zeros((3, 3))}, "needs a cell with a volume"),
        (npt(), {"timestep": 60.0}, "tau_p_fs must be at least 10 time steps, here 600 fs, got 500"),
        (
            npt(coupling="semi-isotropic"),
            {"pbc": SHEET, "cell": [[10, 0, 2], [0, 10, 0], [0, 0, 20]]},
            "component of 2 Å along it; turn the atoms",
        ),
    ],
)
def test_refused_atoms(ensemble, atoms, message):
    with pytest.raises(EnsembleError) as error:
        ensemble.check(setup(**atoms))
    assert message in str(error.value)


def test_non_periodic_cell_vector_may_be_tilted():
    npt(coupling="semi-isotropic").check(setup(SHEET, [[10, 1, 0], [3, 10, 0], [2, 1, 20]]))
