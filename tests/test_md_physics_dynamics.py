"""Equations of motion through the compiled loop of MD: conserved energies, heat current, deformation, momentum."""

import md_physics as physics
import numpy as np
import pytest
from ase import Atoms, units

from ase_nepcg import MD
from ase_nepcg.md import HNEMD, NPT, NVE, Bussi, Deform, Langevin, NoseHoover, Thermo

T = 300.0
KT = units.kB * T


def energies(md, steps, interval) -> np.ndarray:
    """Conserved energy every ``interval`` steps, eV."""
    values = []
    md.attach(lambda: values.append(md.conserved_energy()), interval)
    md.run(steps)
    return np.array(values)


def test_energy_fluctuates_with_the_square_of_the_time_step():
    """Over the same 2 ps; 2 for a method of first order, as one with forces of the wrong time would be."""
    rms = []
    for timestep in (1.0, 2.0, 4.0):
        md = MD(physics.water(3), timestep, NVE(), progress=False)
        values = energies(md, round(2000 / timestep), round(8 / timestep))
        time = np.arange(len(values))
        rms.append((values - np.polyval(np.polyfit(time, values, 1), time)).std())
    assert 3 < rms[1] / rms[0] < 5
    assert 3 < rms[2] / rms[1] < 5


def test_energy_does_not_drift():
    """64 water beads at 2 fs over 40 ps: less than 1 meV per bead and ns, by two errors of the slope.

    The error is that of a line through averages over blocks. Forces that are off by 1e-3 eV/Å at the cutoff or at the
    skin of the neighbour list would show. One nanosecond: ``test_md_physics_long.py``.
    """

    def measure(seed, length):
        md = MD(physics.heat(physics.water(4), T, seed), 2.0, NVE(), seed=seed, progress=False)
        md.run(250)
        slope, error = physics.drift(energies(md, 20_000 * length, 40), 0.08e-3)
        # meV per bead and ns, of which 1 is the limit
        return {"drift": (abs(slope) + 2 * error) * 1e3 / 64}

    physics.confirmed(measure, limit=1.0)


ENSEMBLES = {
    "langevin": Langevin(T, 0.02),
    "bussi": Bussi(T, 50.0),
    "nose_hoover": NoseHoover(T, 50.0),
    "npt scr": NPT(T, 0.5, 50.0, 300.0),
    "npt scr triclinic": NPT(T, 0.5, 50.0, 300.0, coupling="triclinic"),
    "npt mttk": NPT(T, 0.5, 50.0, 300.0, method="mttk"),
    "deform": Deform("x", 0.01, T, 50.0),
    "deform, free": Deform("x", 0.01, T, 50.0, free="yz", pressure_GPa=0.5, tau_p_fs=300.0),
    "hnemd": HNEMD(T, (5e-3, 0.0, 0.0), 50.0),
    "hnemd convective": HNEMD(T, (5e-3, 0.0, 0.0), 50.0, convective=True),
}


@pytest.mark.parametrize("case", ENSEMBLES)
def test_conserved_energy_does_not_drift(case):
    """Over 10 ps at 2 fs the changes of 0.5 ps have a mean of zero within their error, and add up to little.

    What is conserved with stochastic barostats walks at random; a heat or work that is left out adds up to the energy
    that the thermostat exchanges, eV within a few ps.
    """

    def measure(seed, length):
        atoms = physics.heat(physics.water(3), T, seed)
        md = MD(atoms, 2.0, ENSEMBLES[case], seed=seed, progress=False)
        md.run(50)
        values = energies(md, 5000 * length, 250)[1:]
        assert abs(values[-1] - values[0]) < 0.02 * 81 * KT
        changes = np.diff(values)
        return {"drift": changes.mean() / (changes.std(ddof=1) / np.sqrt(len(changes)))}

    physics.confirmed(measure)


# --- heat -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convective", [False, True])
def test_driving_force_does_the_work_of_the_heat_current(convective):
    """sum F_ext . v = F_e . J at the same state, F_ext by the forces of the run less those of the calculator.

    J of the calculator has the convective part sum E_i v_i; without ``convective`` it does no work. Its kinetic part
    acts as a force that the run does not count among the forces.
    """
    field = np.array([3e-3, -1e-3, 2e-3])
    atoms = physics.water(3)
    md = MD(atoms, 2.0, HNEMD(T, tuple(field), 50.0, convective=convective), seed=1, progress=False)
    for _ in range(3):
        md.run(100)
        plain = atoms.copy()
        plain.calc = physics.calculator()
        driven = md.simulation.state.f - plain.get_forces()
        velocities, masses = atoms.get_velocities(), atoms.get_masses()
        kinetic = 0.5 * masses * (velocities**2).sum(axis=1)
        work = (driven * velocities).sum()
        current = plain.calc.get_property("heat_current", plain)
        if convective:
            work += ((kinetic - kinetic.mean())[:, None] * velocities).sum(axis=0) @ field
        else:
            current = current - (plain.get_potential_energies() + kinetic) @ velocities
        # equal masses and no momentum: the mean that is subtracted does no work
        assert work == pytest.approx(field @ current, rel=1e-9)
        assert abs(work) > 1e-5
        np.testing.assert_allclose(driven.sum(axis=0), 0, atol=1e-12)


def test_no_field_gives_the_run_of_its_thermostat():
    """A field of 1e-14 /Å (none at all is refused) changes nothing that is seen after 200 steps."""
    positions = []
    for ensemble in (HNEMD(T, (1e-14, 0.0, 0.0), 50.0), NoseHoover(T, 50.0)):
        atoms = physics.water(3)
        MD(atoms, 2.0, ensemble, seed=1, progress=False).run(200)
        positions.append(atoms.get_positions())
    assert np.abs(positions[0] - physics.water(3).get_positions()).max() > 0.3
    np.testing.assert_allclose(*positions, rtol=0, atol=1e-8)


def test_heat_flows_along_the_field():
    """The work of the field is positive (second law); here by 13 errors, with a conductivity of 0.24 W/(m K)."""
    field = (0.1, 0.0, 0.0)
    atoms = physics.water(3)
    md = MD(atoms, 2.0, HNEMD(T, field, 50.0, convective=True), seed=1, progress=False)
    work = []
    md.attach(lambda: work.append(md.simulation.q[0, -1]), 250)
    md.run(10_000)
    changes = np.diff(work)
    assert changes.mean() > 4 * changes.std(ddof=1) / np.sqrt(len(changes))


def test_heat_current_of_a_cluster_moves_the_energy():
    """J = d/dt sum r_i E_i without periodic boundaries, the derivative from three steps of a run."""
    cluster = Atoms("Ar13", positions=physics.crystal(repeat=2).get_positions()[:13])
    cluster.set_masses([18.015] * 13)
    cluster.rattle(0.1, seed=2)
    cluster.calc = physics.calculator()
    physics.heat(cluster, T, 3)
    timestep, moments, currents = 0.1, [], []

    def sample():
        kinetic = 0.5 * cluster.get_masses() * (cluster.get_velocities() ** 2).sum(axis=1)
        moments.append((cluster.get_potential_energies() + kinetic) @ cluster.get_positions())
        # on a copy: what the calculator holds belongs to the run
        other = cluster.copy()
        other.calc = physics.calculator()
        other.get_potential_energy()
        currents.append(other.calc.get_property("heat_current", other))

    md = MD(cluster, timestep, NVE(), progress=False)
    md.attach(sample, 1)
    md.run(40)
    moments, currents = np.array(moments), np.array(currents)
    derivative = (moments[2:] - moments[:-2]) / (2 * timestep * units.fs)
    # the convective part alone is not enough
    assert np.abs(currents).max() > 0.01
    np.testing.assert_allclose(derivative, currents[1:-1], rtol=0, atol=1e-4 * np.abs(currents).max())


# --- deformation, momentum ------------------------------------------------------------------------------------------


def test_deformation_has_its_rate_and_strains_a_crystal_elastically():
    """A crystal under 3 GPa, strained by 0.2 % in 5 ps: its stress grows by C11 of the calculator times the strain, and
    that of the other two axes by C12. If these are free they keep their stress, and the slope is Young's modulus.

    At 1 mK: free cells of 54 beads fluctuate, at 10 K by 0.2 % in length.
    """
    rate, ps = 0.0004, 5.0
    still = physics.crystal()
    cell = still.cell.array.copy()

    def stress(strain):
        other = physics.crystal()
        other.set_cell(cell * [1 + strain, 1, 1], scale_atoms=True)
        return other.get_stress() / units.GPa

    c11, c12 = ((stress(2e-3) - stress(-2e-3)) / 4e-3)[:2]
    young = c11 - 2 * c12**2 / (c11 + c12)
    for free, expected in ((None, (c11, c12)), ("yz", (young, 0.0))):
        atoms = physics.heat(physics.crystal(), 2e-3, 1)
        pressure = float(-physics.crystal().get_stress()[0] / units.GPa)
        ensemble = Deform(
            "x", rate, 1e-3, 50.0, free, pressure_GPa=pressure, tau_p_fs=200.0, compressibility_per_GPa=0.05
        )
        md, rows = MD(atoms, 2.0, ensemble, seed=1, progress=False), []
        md.attach(lambda md=md, rows=rows: rows.append(md.stress_GPa()), 5)
        md.run(round(500 * ps))
        assert atoms.cell.lengths()[0] == pytest.approx(cell[0, 0] * (1 + rate * ps), rel=1e-12)
        if free is None:
            np.testing.assert_array_equal(atoms.cell.array[1:], cell[1:])
        strain = np.arange(len(rows)) * 0.01 * rate
        late = strain > 0.2 * strain[-1]
        slope = np.polyfit(strain[late], np.array(rows)[late, :3], 1)[0]
        assert slope[0] == pytest.approx(expected[0], rel=0.05)
        assert (slope[1] + slope[2]) / 2 == pytest.approx(expected[1], abs=0.05 * c12)


@pytest.mark.parametrize("ensemble", [Bussi(T, 20.0), NoseHoover(T, 40.0), NPT(T, 0.5, 20.0, 200.0)], ids=repr)
def test_no_flying_ice_cube(ensemble):
    """Scaled velocities would keep a momentum that is there at the start, and with it most of the energy: here it has
    ten times that of the beads, which would freeze."""
    atoms = physics.water(3)
    push = np.sqrt(10 * 81 * KT / atoms.get_masses().sum())
    atoms.set_velocities(atoms.get_velocities() + np.array([push, 0, 0]))
    md = MD(atoms, 2.0, ensemble, seed=1, progress=False)
    md.run(500)
    thermo = md.attach(Thermo(), 1)
    md.run(3000)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-9 * atoms.get_masses().sum() * push
    mean, error = thermo.results()["temperature_K"]
    assert error < 10
    assert mean == pytest.approx(T, abs=4 * error)


def test_langevin_brings_the_centre_of_mass_to_its_temperature():
    """Its energy, ten times that of all beads at the start, is 3/2 kT on average after some friction times: the
    friction acts on it as on every velocity, and it is not taken off."""
    atoms = physics.water(3)
    push = np.sqrt(10 * 81 * KT / atoms.get_masses().sum())
    atoms.set_velocities(atoms.get_velocities() + np.array([push, 0, 0]))
    md, values = MD(atoms, 2.0, Langevin(T, 0.05), seed=1, progress=False), []
    start = np.linalg.norm(atoms.get_momenta().sum(axis=0))
    md.run(20)
    # 40 fs, two friction times
    left = np.linalg.norm(atoms.get_momenta().sum(axis=0)) / start
    assert left == pytest.approx(np.exp(-2), rel=0.15)
    md.run(480)
    md.attach(lambda: values.append((atoms.get_momenta().sum(axis=0) ** 2).sum() / atoms.get_masses().sum() / KT), 20)
    md.run(10_000)
    # independent after 40 fs; chi-square of three degrees of freedom
    assert np.mean(values) == pytest.approx(3.0, abs=4 * np.sqrt(6 / (len(values) / 1.4)))
