"""Long forms of ``test_md_physics.py`` by the library physical_validation, and energy over a nanosecond.

P. T. Merz & M. R. Shirts, PLoS ONE 13, e0202764 (2018). Run with ``--run-slow``; the library is in the extra
``validation``.
"""

import functools
import warnings

import md_physics as physics
import numpy as np
import pytest
from ase import units

from ase_nepcg import MD
from ase_nepcg.constraints import FixBeads
from ase_nepcg.md import NPT, NVE, Bussi, Langevin, NoseHoover, Thermo

pytestmark = pytest.mark.slow

T, T_HIGH = 300.0, 375.0
P, P_HIGH = 0.5, 0.8
KT = units.kB * T
PS = 300
HELD = [[2 * k, 2 * k + 1] for k in range(5)]
MAKE = {
    "langevin": lambda T, P: Langevin(T, 0.02),
    "bussi": lambda T, P: Bussi(T, 50.0),
    "nose_hoover": lambda T, P: NoseHoover(T, 50.0),
    "npt scr": lambda T, P: NPT(T, P, 50.0, 150.0),
    "npt mttk": lambda T, P: NPT(T, P, 50.0, 200.0, method="mttk"),
}
THERMOSTATS = [name for name in MAKE if "npt" not in name]
BAROSTATS = [name for name in MAKE if "npt" in name]


@pytest.fixture(scope="module")
def pv():
    with warnings.catch_warnings():
        # of pymbar at import
        warnings.simplefilter("ignore")
        return pytest.importorskip("physical_validation", exc_type=ImportError)


@functools.cache
def series(case, temperature, pressure, held=False):
    atoms = physics.heat(physics.water(3, mixed=True), temperature, 1)
    if held:
        atoms.set_constraint(FixBeads(HELD))
    return physics.record(atoms, MAKE[case](temperature, pressure), PS, seed=1, interval=10)


def simulation(pv, case, temperature, pressure, held=False):
    """The run in the library's containers; its energies are in eV, lengths in Å, pressures in eV/Å^3 there."""
    run = series(case, temperature, pressure, held)
    constant = "NPT" if "npt" in case else "NVT"
    kinetic = 0.5 * (run.light + run.heavy)
    return pv.data.SimulationData(
        units=pv.data.UnitData(
            kb=units.kB,
            energy_conversion=units.mol / units.kJ,
            length_conversion=0.1,
            volume_conversion=1e-3,
            temperature_conversion=1.0,
            pressure_conversion=1 / units.bar,
            time_conversion=1 / (1000 * units.fs),
            energy_str="eV",
            length_str="A",
            volume_str="A^3",
            temperature_str="K",
            pressure_str="eV/A^3",
            time_str="ASE",
        ),
        dt=20 * units.fs,
        system=pv.data.SystemData(
            natoms=27,
            nconstraints=3 * len(HELD) if held else 0,
            ndof_reduction_tra=0 if held or case == "langevin" else 3,
            ndof_reduction_rot=0,
        ),
        ensemble=pv.data.EnsembleData(
            constant,
            natoms=27,
            volume=run.volume[0] if constant == "NVT" else None,
            pressure=pressure * units.GPa if constant == "NPT" else None,
            temperature=temperature,
        ),
        observables=pv.data.ObservableData(
            kinetic_energy=kinetic,
            potential_energy=run.potential,
            total_energy=run.potential + kinetic,
            volume=run.volume,
        ),
    )


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("case", MAKE)
def test_kinetic_energy(pv, case, held):
    """Mean and width of the distribution as temperatures, in errors from bootstrap."""
    if held and case in BAROSTATS:
        pytest.skip("held beads are refused at constant pressure")
    pulls = pv.kinetic_energy.distribution(
        simulation(pv, case, T, P, held), strict=False, verbosity=0, bootstrap_seed=1
    )
    print(case, held, pulls)
    assert max(pulls) < 3


@pytest.mark.parametrize("case", MAKE)
def test_two_temperatures(pv, case):
    pulls = pv.ensemble.check(
        *(simulation(pv, case, temperature, P) for temperature in (T, T_HIGH)), verbosity=0, bootstrap_seed=1
    )
    print(case, pulls)
    assert max(pulls) < 3


@pytest.mark.parametrize("case", BAROSTATS)
def test_two_pressures(pv, case):
    pulls = pv.ensemble.check(
        *(simulation(pv, case, T, pressure) for pressure in (P, P_HIGH)), verbosity=0, bootstrap_seed=1
    )
    print(case, pulls)
    assert max(pulls) < 3


def test_mean_pressure_of_stochastic_cell_rescaling():
    """Eight beads over a nanosecond: kT/V below the target (the text of the short form), and not the target itself."""
    md = MD(physics.heat(physics.water(2), T, 1), 2.0, NPT(T, P, 20.0, 60.0), seed=1, progress=False)
    md.run(1000)
    thermo, recorder = md.attach(Thermo(), 1), md.attach(physics.Recorder(50_000), 10)
    md.run(500_000)
    mean, error = thermo.results()["pressure_GPa"]
    missing = KT * np.mean(1 / recorder.results().volume) / units.GPa
    print(mean, error, missing)
    assert abs(mean - P + missing) < 3 * error
    assert error < missing / 5


def test_energy_over_a_nanosecond():
    """64 water beads at 2 fs: less than 1 meV per bead and ns."""
    md, values = MD(physics.water(4), 2.0, NVE(), progress=False), []
    md.attach(lambda: values.append(md.conserved_energy()), 500)
    md.run(500_000)
    slope, error = physics.drift(values, 1e-3)
    print(slope * 1e3 / 64, error * 1e3 / 64)
    assert (abs(slope) + 2 * error) * 1e3 / 64 < 1
    assert abs(values[-1] - values[0]) * 1e3 / 64 < 1
