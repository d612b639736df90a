"""Ensembles through the compiled loop of MD: distributions of kinetic energy, potential energy and volume, pressure.

27 water beads or fewer, so that three degrees of freedom are several per cent of all. Forms by physical_validation:
``test_md_physics_long.py``.
"""

import functools

import md_physics as physics
import numpy as np
import pytest
from ase import units

from ase_nepcg import MD
from ase_nepcg.constraints import FixBeads
from ase_nepcg.md import NPT, Bussi, Langevin, NoseHoover, Thermo

T, T_HIGH = 300.0, 375.0
P, P_HIGH = 0.5, 0.8
KT = units.kB * T
# five pairs of a light and a heavy bead
HELD = [[2 * k, 2 * k + 1] for k in range(5)]
MAKE = {
    "langevin": lambda T, P: Langevin(T, 0.02),
    "bussi": lambda T, P: Bussi(T, 20.0),
    "nose_hoover": lambda T, P: NoseHoover(T, 40.0),
    "npt scr": lambda T, P: NPT(T, P, 20.0, 100.0),
    "npt mttk": lambda T, P: NPT(T, P, 40.0, 150.0, method="mttk"),
}
THERMOSTATS = [name for name in MAKE if "npt" not in name]
BAROSTATS = [name for name in MAKE if "npt" in name]


@functools.cache
def series(case, held, temperature, pressure, seed, length):
    """A run of 40 ps times ``length``; it serves several tests, as the potential energy does not know the masses."""
    atoms = physics.heat(physics.water(3, mixed=True), temperature, seed)
    if held:
        atoms.set_constraint(FixBeads(HELD))
    return physics.record(atoms, MAKE[case](temperature, pressure), 40 * length, seed=seed)


@pytest.mark.parametrize(
    ("name", "held"),
    [*((name, False) for name in MAKE), *((name, True) for name in THERMOSTATS)],
    ids=lambda value: {True: "held", False: "free"}.get(value, value),
)
def test_kinetic_energy(name, held):
    """Of all beads, and of light and heavy ones on their own.

    3N for 3N - 3 degrees of freedom, or three taken off too many or too few under FixBeads, would be seen: the error of
    the number is below a fourth of three. Noise that does not know the mass would give the two kinds different
    temperatures, one that forgets the constraint too much heat.
    """
    atoms = physics.water(3, mixed=True)
    # Langevin's noise moves the centre of mass
    groups = HELD if held else [] if name == "langevin" else [list(range(len(atoms)))]
    free = physics.degrees_of_freedom(atoms, groups)
    light = atoms.get_masses() < 40

    def measure(seed, length):
        run = series(name, held, T, P, seed, length)
        both = (run.light + run.heavy) / KT
        assert physics.mean_error(both)[1] < 0.75
        pulls = physics.chi_square_pulls(both, free.sum())
        pulls["light"] = physics.pull(run.light / KT, free[light].sum())
        pulls["heavy"] = physics.pull(run.heavy / KT, free[~light].sum())
        return pulls

    physics.confirmed(measure)


def slope_pull(low, high, expected):
    slope, error = physics.log_ratio_slope(low, high)
    # fluctuations that are wrong by a factor of two are more than three errors off
    assert error < 0.2 * abs(expected)
    return {"slope": (slope - expected) / error}


@pytest.mark.parametrize("case", [*THERMOSTATS, "npt scr"])
def test_two_temperatures(case):
    """ln(p_high(U)/p_low(U)) has the slope 1/kT_low - 1/kT_high, of U + P V at constant pressure.

    A thermostat with the right mean but too small fluctuations, as weak coupling has them, has a larger slope.
    """
    pressure = P * units.GPa if case == "npt scr" else 0.0

    def measure(seed, length):
        low, high = (series(case, False, temperature, P, seed, length) for temperature in (T, T_HIGH))
        expected = (1 / T - 1 / T_HIGH) / units.kB
        return slope_pull(*(run.potential + pressure * run.volume for run in (low, high)), expected)

    physics.confirmed(measure)


@pytest.mark.parametrize("case", BAROSTATS)
def test_two_pressures(case):
    """ln(p_high(V)/p_low(V)) has the slope (P_low - P_high)/kT.

    A barostat with the right mean but too small fluctuations (weak coupling) has a larger slope.
    """

    def measure(seed, length):
        low, high = (series(case, False, T, pressure, seed, length) for pressure in (P, P_HIGH))
        return slope_pull(low.volume, high.volume, (P - P_HIGH) * units.GPa / KT)

    physics.confirmed(measure)


@pytest.mark.parametrize("case", BAROSTATS)
def test_mean_pressure(case):
    """Eight beads: the pressure of Thermo has the mean P0 - <kT/V>, 0.02 GPa below the target here.

    The volume distribution that is sampled is that of N beads, but the kinetic part of what is reported has the 3N - 3
    degrees of freedom that there are. Were the missing kT/V not in the barostat, the mean would be P0 (ten errors off
    in the run of MTTK; the mean of SCR, whose pressure scatters more, in ``test_md_physics_long.py``).
    """
    ensemble = {
        "npt scr": NPT(T, P, 20.0, 60.0),
        "npt mttk": NPT(T, P, 40.0, 80.0, method="mttk"),
    }[case]

    def measure(seed, length):
        atoms = physics.heat(physics.water(2), T, seed)
        md = MD(atoms, 2.0, ensemble, seed=seed, progress=False)
        md.run(1000)
        thermo, recorder = md.attach(Thermo(), 1), md.attach(physics.Recorder(4000 * length), 10)
        md.run(40_000 * length)
        mean, error = thermo.results()["pressure_GPa"]
        missing = KT * np.mean(1 / recorder.results().volume) / units.GPa
        if case == "npt mttk":
            assert error < missing / 5
        return {"pressure": (mean - P + missing) / error}

    physics.confirmed(measure)
