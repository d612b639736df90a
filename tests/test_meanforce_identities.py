"""Mean forces against exact potentials of mean force, the truth of their errors, and temperatures.

Systems and exact averages are in ``toys.py``. All seeds are fixed.
"""

import numpy as np
import pytest
from ase.units import kB

from ase_nepcg import Mapping
from ase_nepcg.meanforce import sample_mean_force
from ase_nepcg.meanforce.sampler import Sampler, Settings

# whether a short run is long enough is not what these tests are about
pytestmark = pytest.mark.filterwarnings(
    "ignore:the run of:RuntimeWarning",
    "ignore:forces or energy:RuntimeWarning",
    "ignore:the kinetic temp:RuntimeWarning",
)

CHAIN = {"temperature_K": 400.0, "timestep_fs": 3.0, "friction_per_fs": 0.05, "equilibration_ps": 0.6}
CRADLE = {"temperature_K": 600.0, "timestep_fs": 4.0, "friction_per_fs": 0.02, "equilibration_ps": 0.6}
# pulls of how many short runs
REPEATS = 50


def chain(toys, kind, **keywords):
    """Atoms of chains with a mapping of that kind."""
    # only a field keeps a molecule without any site from leaving
    atoms, bonds = toys.chain(field=0.3 if kind == "implicit" else 0.0, **keywords)
    blocks = np.arange(len(atoms)).reshape(-1, 4)
    if kind == "sites":
        return atoms, Mapping.from_sites(atoms, blocks[:, 1], "A", bonds=bonds)
    if kind == "implicit":
        return atoms, Mapping.from_groups(blocks[: len(blocks) // 2], "A", atoms, bonds=bonds)
    if kind == "sizes":
        return atoms, Mapping.from_groups(np.split(np.arange(len(atoms)), [1, 3, 8, 13, 14, 17]), "A", atoms)
    mapping = Mapping.from_groups(blocks, "A", atoms)
    return atoms, mapping.with_atomistic(blocks[[1, 5]].ravel()) if kind == "mixed" else mapping


def cradle(toys, kind, **keywords):
    atoms, groups, bonds = toys.cradle(kind, **keywords)
    return atoms, Mapping.from_groups(groups, ["bead", "P", "Q"] * (len(groups) // 3), atoms, bonds=bonds)


def sample(atoms, mapping, **settings):
    return sample_mean_force(atoms, mapping, **{"progress": False, "seed": 1} | settings)


def check_all(toys, result, exact, precise=1):
    """Forces, both virials and energy."""
    toys.check(result.forces, exact["forces"], result.force_errors)
    toys.check(result.virial, exact["virial"], result.virial_error)
    toys.check(result.mean_energy, exact["mean_energy"], result.mean_energy_error)
    if result.virial_atomic is not None:
        toys.check(result.virial_atomic, exact["virial"], result.virial_atomic_error)
        assert result.virial_pull < 3
    # the errors are small enough for all this to mean something
    assert result.force_error < 0.05 * precise * np.abs(exact["forces"]).max()
    assert np.abs(result.virial_error).max() < 0.1 * precise * np.abs(exact["virial"]).max()


# --- exact potentials of mean force -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["groups", "sizes", "sites", "mixed", "implicit"])
def test_harmonic_chain(toys, kind):
    atoms, mapping = chain(toys, kind)
    result = sample(atoms, mapping, **CHAIN, time_ps=12.0)
    check_all(toys, result, atoms.calc.average(mapping.bind(atoms), atoms.positions, kB * 400.0))
    if kind != "implicit":
        assert np.abs(result.forces.sum(axis=0)).max() < 1e-12


@pytest.mark.parametrize("kind", ["groups", "sites"])
def test_harmonic_chain_at_constant_energy(toys, kind):
    """Modes keep their energies, so that only what is linear in the positions has the canonical average."""
    atoms, mapping = chain(toys, kind)
    result = sample(atoms, mapping, **CHAIN, time_ps=12.0, ensemble="nve")
    assert not result.reliable  # vibrations without end
    exact = atoms.calc.average(mapping.bind(atoms), atoms.positions, kB * 400.0)
    toys.check(result.forces, exact["forces"], result.force_errors, low=0.3)
    toys.check(result.virial, exact["virial"], result.virial_error, low=0.1)
    assert result.force_error < 0.01 * np.abs(exact["forces"]).max()


@pytest.fixture(scope="module")
def anharmonic(toys):
    """kind -> atoms, bound mapping and averages of a long run."""
    runs = {}

    def run(kind):
        if kind not in runs:
            atoms, mapping = cradle(toys, kind)
            runs[kind] = atoms, mapping.bind(atoms), sample(atoms, mapping, **CRADLE, time_ps=20.0)
        return runs[kind]

    return run


@pytest.mark.parametrize("kind", ["group", "site"])
def test_anharmonic_bead(toys, anharmonic, kind):
    atoms, bound, result = anharmonic(kind)
    check_all(toys, result, toys.cradle_average(atoms, bound, kind, kB * 600.0))
    assert np.abs(result.forces.sum(axis=0)).max() < 1e-12


def test_wrong_averages_are_noticed(toys, anharmonic):
    """These comparisons have the power to fail: another site, another temperature."""
    atoms, bound, result = anharmonic("group")
    for kind, kT in (("site", kB * 600.0), ("group", kB * 400.0)):
        wrong = toys.cradle_average(atoms, bound, kind, kT)
        with pytest.raises(AssertionError, match="deviation"):
            toys.check(result.forces, wrong["forces"], result.force_errors)


@pytest.mark.parametrize("kind", ["group", "linear"])
def test_rigid_bead(toys, kind):
    """Rigid dimers and linear molecules of three atoms: all directions have the same measure.

    The forces of the bonds are in no average; two degrees of freedom are left per molecule.
    """
    atoms, mapping = cradle(toys, kind, rigid=True)
    result = sample(atoms, mapping, **CRADLE, time_ps=10.0)
    assert result.virial_atomic is None
    check_all(toys, result, toys.cradle_average(atoms, mapping.bind(atoms), kind, kB * 600.0), precise=2)
    assert abs(result.kinetic_temperature_K - 600.0) < 4 * result.kinetic_temperature_error_K
    assert result.kinetic_temperature_error_K < 60


# --- errors -----------------------------------------------------------------------------------------------------------


def check_short_runs(atoms, mapping, expected, settings):
    """Errors of many short runs are true, averages unbiased; ``expected = {name: (name of its error, exact value)}``.

    The error of a single number, the energy, is uncertain itself, and that of a covariance is large where its value is:
    for these the deviations of all runs are compared with the errors of all runs.
    """
    values, errors = {name: [] for name in expected}, {name: [] for name in expected}
    for seed in range(REPEATS):
        result = sample(atoms, mapping, **settings, seed=seed, thermal_response=True)
        for name, (error, _) in expected.items():
            values[name].append(np.ravel(getattr(result, name)))
            errors[name].append(np.ravel(getattr(result, error)))
    for name, (_, exact) in expected.items():
        deviations, error = np.array(values[name]) - np.ravel(exact), np.array(errors[name])
        if name in ("forces", "virial", "virial_atomic"):
            spread, allowed = np.sqrt(((deviations / error) ** 2).mean()), 0.2
        else:
            spread, allowed = np.sqrt((deviations**2).mean() / (error**2).mean()), 0.35
        assert abs(spread - 1) < allowed, f"{name}: deviations have a standard deviation of {spread:.2f} errors"
        bias = deviations.mean(axis=0) / deviations.std(axis=0) * np.sqrt(REPEATS)
        assert np.abs(bias).max() < 4.5, f"{name}: biased by {np.abs(bias).max():.1f} errors"


def test_errors_are_true_for_a_chain(toys):
    atoms, mapping = chain(toys, "groups", replicas=1)
    exact = atoms.calc.average(mapping.bind(atoms), atoms.positions, kB * 400.0)
    expected = {
        "forces": ("force_errors", exact["forces"]),
        "virial": ("virial_error", exact["virial"]),
        "virial_atomic": ("virial_atomic_error", exact["virial"]),
        "mean_energy": ("mean_energy_error", exact["mean_energy"]),
        # the mean force of a harmonic system does not depend on temperature
        "forces_dT": ("forces_dT_errors", np.zeros_like(exact["forces"])),
        "virial_dT": ("virial_dT_error", np.zeros((3, 3))),
    }
    check_short_runs(atoms, mapping, expected, CHAIN | {"equilibration_ps": 0.3, "time_ps": 3.6})


def test_errors_are_true_for_an_anharmonic_bead(toys):
    atoms, mapping = cradle(toys, "group", replicas=1)
    bound = mapping.bind(atoms)
    exact, above, below = (toys.cradle_average(atoms, bound, "group", kB * T) for T in (600.0, 605.0, 595.0))
    expected = {
        "forces": ("force_errors", exact["forces"]),
        "virial": ("virial_error", exact["virial"]),
        "virial_atomic": ("virial_atomic_error", exact["virial"]),
        "mean_energy": ("mean_energy_error", exact["mean_energy"]),
        "forces_dT": ("forces_dT_errors", (above["forces"] - below["forces"]) / 10.0),
        "virial_dT": ("virial_dT_error", (above["virial"] - below["virial"]) / 10.0),
    }
    check_short_runs(atoms, mapping, expected, CRADLE | {"equilibration_ps": 0.5, "time_ps": 6.0})


# --- temperatures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["groups", "sites", "mixed"])
def test_kinetic_temperature_and_equipartition(toys, kind):
    """``<m v^2> = 3 kT (1 - m/M)`` for an atom in a group of mass M, whatever its mass; frozen sites do not move."""
    atoms, mapping = chain(toys, kind)
    bound = mapping.bind(atoms)
    steps = 10
    # 0.5 fs: the kinetic temperature of the integrator is low by (omega dt)^2 / 4
    settings = Settings(400.0, timestep_fs=1.0, friction_per_fs=0.2, equilibration_ps=0.2, seed=5)
    sampler = Sampler(atoms, mapping, settings)
    squares = []
    for k in range(1, 501):
        sampler.run(time_ps=0.001 * steps * k, progress=False)
        squares.append((sampler.held.v**2).sum(axis=1))
    squares = np.array(squares) * bound.masses
    share = np.where(bound.site_of >= 0, bound.masses / bound.site_masses[bound.site_of], 0.0)
    expected = 3 * kB * 400.0 * (1 - share)
    moves = expected > 1e-12
    assert (squares[:, ~moves] < 1e-20).all()
    assert (~moves).sum() == bound.is_site.sum()
    ratio = squares.mean(axis=0)[moves] / expected[moves]
    error = np.sqrt(2 / 3 / len(squares))
    toys.check(ratio, 1.0, error)
    light = bound.masses[moves] < 6
    toys.check([ratio[light].mean(), ratio[~light].mean()], 1.0, error / np.sqrt([light.sum(), (~light).sum()]))
    assert sampler.n_dof == 3 * (len(atoms) - len(mapping))
    energy = sampler.held.table.mean[-1]
    kinetic = 2 * energy / (sampler.n_dof * kB)
    assert abs(kinetic / 400.0 - 1) < 4 * sampler.estimate().error[-1] / energy + 0.003
    assert abs(squares.sum(axis=1).mean() / (2 * energy) - 1) < 0.03
