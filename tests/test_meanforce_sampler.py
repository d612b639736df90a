"""Runs with held sites: settings, stopping, checkpoints, interrupts, failures."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms, FixBondLengths, FixCom

from ase_nepcg import Mapping, sample_mean_force
from ase_nepcg.checkpoint import CheckpointError
from ase_nepcg.mapping import MappingError
from ase_nepcg.meanforce.sampler import Sampler, SamplingError, Settings, UnreliableError

pytestmark = pytest.mark.filterwarnings(
    "ignore:the run of:RuntimeWarning",
    "ignore:forces or energy:RuntimeWarning",
    "ignore:interrupted:RuntimeWarning",
    "ignore:the kinetic temperature:RuntimeWarning",
)


class Springs(Calculator):
    """Atoms of a molecule of two on springs, and each atom on a spring to its lattice site: everything harmonic."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, sites, fail_after=None, scale=1.0):
        super().__init__(scale=scale)
        self.sites, self.fail_after, self.calls = np.array(sites, float), fail_after, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        x = self.atoms.positions
        d = x[1::2] - x[::2]
        u = x - self.sites
        forces = -0.2 * self.parameters.scale * u
        forces[::2] += 5.0 * d
        forces[1::2] -= 5.0 * d
        energy = 0.1 * self.parameters.scale * (u**2).sum() + 2.5 * (d**2).sum()
        if self.fail_after is not None and self.calls > self.fail_after:
            forces[3, 1] = np.nan
        self.results = {"energy": energy, "forces": forces}


@pytest.fixture
def dimers():
    rng = np.random.default_rng(2)
    sites = rng.normal(size=(8, 3)) + 4 * np.repeat(np.arange(4), 2)[:, None]
    atoms = Atoms("CO" * 4, positions=sites + 0.1 * rng.normal(size=(8, 3)))
    atoms.calc = Springs(sites)
    return atoms


@pytest.fixture
def pairs(dimers):
    return Mapping.from_groups([[0, 1], [2, 3], [4, 5], [6, 7]], "CO", dimers)


SHORT = {"temperature_K": 300.0, "equilibration_ps": 0.02, "seed": 3, "progress": False}


@pytest.fixture
def nep(many, make_calculator):
    """A periodic system with a NEP calculator, i.e. the compiled path, and its mapping."""
    many.calc = make_calculator("plain")
    mapping = Mapping.from_groups(np.arange(324).reshape(-1, 3)[:40].tolist(), "B", many)
    return many, mapping


NEP_SHORT = {**SHORT, "timestep_fs": 0.1, "equilibration_ps": 0.003}


def same(a, b):
    for name in ("forces", "force_errors", "n_effective", "virial", "virial_error", "mean_energy", "drift"):
        x, y = getattr(a, name), getattr(b, name)
        if x is None or y is None:
            assert x is y
        else:
            assert np.array_equal(x, y), name
    return True


# ---- what comes out -----------------------------------------------------------------------------------------------


def test_seed_makes_a_run_reproducible(dimers, pairs):
    first, again = (sample_mean_force(dimers, pairs, time_ps=0.2, **SHORT) for _ in range(2))
    assert same(first, again)
    other = sample_mean_force(dimers, pairs, time_ps=0.2, **{**SHORT, "seed": 4})
    assert not np.array_equal(first.forces, other.forces)
    assert first.seed == 3


def test_without_a_seed_runs_differ(dimers, pairs):
    settings = {**SHORT, "seed": None}
    a, b = (sample_mean_force(dimers, pairs, time_ps=0.1, **settings) for _ in range(2))
    assert a.seed != b.seed
    assert not np.array_equal(a.forces, b.forces)


def test_atoms_are_not_changed(dimers, pairs):
    dimers.set_momenta(np.ones((8, 3)))
    before = dimers.copy()
    sample_mean_force(dimers, pairs, time_ps=0.1, **SHORT)
    assert dimers == before
    assert np.array_equal(dimers.get_momenta(), before.get_momenta())
    assert dimers.constraints == []


def test_without_stress_there_is_no_virial(dimers, pairs):
    result = sample_mean_force(dimers, pairs, time_ps=0.1, **SHORT)
    assert result.virial is result.virial_error is result.virial_atomic is result.virial_pull is None
    assert "virial" not in result.frame.info


def test_compiled_path_gives_a_virial_and_counts_samples(nep):
    atoms, mapping = nep
    result = sample_mean_force(atoms, mapping, time_ps=0.02, interval=2, **NEP_SHORT)
    assert result.n_samples == 100
    assert result.time_ps == pytest.approx(0.02)
    assert result.virial.shape == result.virial_error.shape == (3, 3)
    assert np.array_equal(result.virial, result.virial.T)
    assert result.forces.shape == result.force_errors.shape == result.n_effective.shape == (40, 3)
    assert (result.n_effective <= 100).all()


def test_threads_do_not_change_a_bit(nep, make_calculator):
    atoms, mapping = nep
    results = []
    for threads in (1, 2):
        atoms.calc = make_calculator("plain", threads=threads)
        results.append(sample_mean_force(atoms, mapping, time_ps=0.01, **NEP_SHORT))
    assert same(*results)


def test_force_error_stops_the_run(dimers, pairs):
    result = sample_mean_force(dimers, pairs, force_error=0.02, time_ps=50.0, **SHORT)
    assert result.converged
    assert result.reliable
    assert result.force_error <= 0.02
    assert result.time_ps < 50.0
    strict = sample_mean_force(dimers, pairs, force_error=1e-6, time_ps=0.3, **SHORT)
    assert not strict.converged
    assert strict.time_ps == pytest.approx(0.3)


def test_constant_energy_starts_with_the_average_energy(dimers, pairs):
    # the kinetic temperature of a small system would be far off without that
    settings = {**SHORT, "ensemble": "nve", "equilibration_ps": 2.0}
    temperatures = [
        sample_mean_force(dimers, pairs, time_ps=0.3, **{**settings, "seed": seed}).temperature_K for seed in range(4)
    ]
    assert np.mean(temperatures) == pytest.approx(300, abs=60)
    # a total energy drawn at random would make it scatter by 300 sqrt(1/12) = 87
    assert np.std(temperatures) < 60


# ---- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "time_ps=, force_error="),
        ({"time_ps": 0.0}, "time_ps"),
        ({"time_ps": float("nan")}, "time_ps"),
        ({"time_ps": "20"}, "time_ps"),
        ({"time_ps": 0.001}, "holds 2 samples"),
        ({"force_error": -1}, "force_error"),
        ({"time_ps": 1, "temperature_K": 0}, "temperature_K"),
        ({"time_ps": 1, "temperature_K": -5}, "temperature_K"),
        ({"time_ps": 1, "timestep_fs": 0}, "timestep_fs"),
        ({"time_ps": 1, "friction_per_fs": 0}, "friction_per_fs"),
        ({"time_ps": 1, "equilibration_ps": -1}, "equilibration_ps"),
        ({"time_ps": 1, "interval": 0}, "interval"),
        ({"time_ps": 1, "interval": 1.5}, "interval"),
        ({"time_ps": 1, "seed": -1}, "seed"),
        ({"time_ps": 1, "seed": 1.5}, "seed"),
        ({"time_ps": 1, "ensemble": "npt"}, "held beads exclude each other"),
        ({"time_ps": 1, "ensemble": "NVT"}, "expected 'nvt' or 'nve'"),
        ({"time_ps": 1, "ensemble": "nve", "thermal_response": True}, "nvt"),
    ],
)
def test_settings_that_make_no_sense(dimers, pairs, settings, message):
    with pytest.raises(ValueError, match=message):
        sample_mean_force(dimers, pairs, **{**SHORT, **settings})


def test_numpy_numbers_are_numbers(dimers, pairs):
    settings = {**SHORT, "temperature_K": np.float64(300), "seed": np.int64(3)}
    assert same(
        sample_mean_force(dimers, pairs, time_ps=np.float32(0.125), interval=np.int32(1), **settings),
        sample_mean_force(dimers, pairs, time_ps=0.125, **SHORT),
    )


def test_atoms_must_have_a_calculator_and_fit(dimers, pairs):
    fewer = dimers[:6]
    fewer.calc = Springs(dimers.calc.sites[:6])
    with pytest.raises(MappingError, match="8"):
        sample_mean_force(fewer, pairs, time_ps=1, **SHORT)
    masses = dimers.get_masses()
    for bad in (0.0, np.nan):
        atoms = dimers.copy()
        atoms.calc = dimers.calc
        atoms.arrays["masses"] = np.where(np.arange(8) == 2, bad, masses)
        with pytest.raises(MappingError, match="mass"):
            sample_mean_force(atoms, pairs, time_ps=1, **SHORT)
    dimers.calc = None
    with pytest.raises(ValueError, match="calculator"):
        sample_mean_force(dimers, pairs, time_ps=1, **SHORT)


def test_constraints_that_a_mean_force_excludes(dimers, pairs):
    for constraint, message in (
        (FixBondLengths([[1, 2]]), "joins two beads"),
        (FixAtoms([0]), "FixAtoms"),
        (FixCom(), "FixCom"),
    ):
        dimers.set_constraint(constraint)
        with pytest.raises(MappingError, match=message):
            sample_mean_force(dimers, pairs, time_ps=1, **SHORT)
    # fixed atoms that are sites are held anyway
    dimers.set_constraint(FixAtoms([0, 1]))
    mixed = pairs.with_atomistic([0, 1])
    assert sample_mean_force(dimers, mixed, time_ps=0.05, **SHORT).forces.shape == (5, 3)


def test_too_few_samples_give_no_error_bar(dimers, pairs):
    sampler = Sampler(dimers, pairs, Settings(temperature_K=300.0, seed=1))
    with pytest.raises(UnreliableError, match="0 samples"):
        sampler.estimate()


def test_short_runs_are_warned_about(dimers, pairs):
    with pytest.warns(RuntimeWarning, match="too short for its slowest correlation"):
        result = sample_mean_force(dimers, pairs, time_ps=0.05, **SHORT)
    assert not result.reliable


# ---- checkpoints --------------------------------------------------------------------------------------------------


def interrupt_after(monkeypatch, engine, calls):
    """The engine raises KeyboardInterrupt in the middle of its n-th call."""
    original, count = engine.advance, [0]

    def advance(self, run, *arguments):
        count[0] += 1
        original(self, run, *arguments)
        if count[0] == calls:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "advance", advance)


def test_resumed_run_equals_an_unbroken_one(dimers, pairs, tmp_path, monkeypatch):
    from ase_nepcg.md.external import CalculatorEngine

    whole = sample_mean_force(dimers, pairs, time_ps=0.4, **SHORT)
    path = tmp_path / "run.npz"
    for calls in (15, 60, 300, 97):
        with monkeypatch.context() as patch:
            interrupt_after(patch, CalculatorEngine, calls)
            if calls < 200:
                with pytest.raises(KeyboardInterrupt) if calls == 15 else contextlib.nullcontext():
                    sample_mean_force(dimers, pairs, time_ps=0.4, checkpoint=path, **SHORT)
            else:
                partial = sample_mean_force(dimers, pairs, time_ps=0.4, checkpoint=path, **SHORT)
                assert partial.interrupted
                assert partial.n_samples < whole.n_samples
    resumed = sample_mean_force(dimers, pairs, time_ps=0.4, checkpoint=path, **SHORT)
    assert same(resumed, whole)
    assert not resumed.interrupted


@pytest.mark.parametrize("settings", [{}, {"thermal_response": True}, {"ensemble": "nve"}])
def test_resumed_compiled_run_equals_an_unbroken_one(nep, tmp_path, monkeypatch, settings):
    from ase_nepcg.md.held import NepEngine

    atoms, mapping = nep
    settings = {**NEP_SHORT, **settings}
    whole = sample_mean_force(atoms, mapping, time_ps=0.03, **settings)
    path = tmp_path / "run.npz"
    for calls in (2, 7, 9):
        with monkeypatch.context() as patch:
            interrupt_after(patch, NepEngine, calls)
            with contextlib.suppress(KeyboardInterrupt):
                sample_mean_force(atoms, mapping, time_ps=0.03, checkpoint=path, **settings)
    resumed = sample_mean_force(atoms, mapping, time_ps=0.03, checkpoint=path, **settings)
    assert same(resumed, whole)
    if settings.get("thermal_response"):
        assert np.array_equal(resumed.forces_dT2, whole.forces_dT2)


def test_finished_run_is_returned_and_can_be_made_longer(dimers, pairs, tmp_path):
    path = tmp_path / "run.npz"
    first = sample_mean_force(dimers, pairs, time_ps=0.2, checkpoint=path, **SHORT)
    calls = dimers.calc.calls
    assert same(first, sample_mean_force(dimers, pairs, time_ps=0.2, checkpoint=path, **SHORT))
    assert dimers.calc.calls == calls
    longer = sample_mean_force(dimers, pairs, time_ps=0.3, checkpoint=path, **SHORT)
    assert same(longer, sample_mean_force(dimers, pairs, time_ps=0.3, **SHORT))


def test_seed_of_the_checkpoint_is_taken_up(dimers, pairs, tmp_path):
    path, settings = tmp_path / "run.npz", {**SHORT, "seed": None}
    first = sample_mean_force(dimers, pairs, time_ps=0.1, checkpoint=path, **settings)
    longer = sample_mean_force(dimers, pairs, time_ps=0.2, checkpoint=path, **settings)
    assert longer.seed == first.seed
    assert same(longer, sample_mean_force(dimers, pairs, time_ps=0.2, **{**SHORT, "seed": first.seed}))


def test_resumed_run_stops_where_the_first_would_have(dimers, pairs, tmp_path):
    whole = sample_mean_force(dimers, pairs, force_error=0.03, time_ps=20, **SHORT)
    path = tmp_path / "run.npz"
    sample_mean_force(dimers, pairs, time_ps=0.3, checkpoint=path, **SHORT)
    assert same(sample_mean_force(dimers, pairs, force_error=0.03, time_ps=20, checkpoint=path, **SHORT), whole)


def test_checkpoint_of_another_run_is_refused(dimers, pairs, tmp_path):
    path = tmp_path / "run.npz"
    sample_mean_force(dimers, pairs, time_ps=0.05, checkpoint=path, **SHORT)
    content = path.read_bytes()

    def refused(message, atoms=dimers, mapping=pairs, **settings):
        with pytest.raises(CheckpointError, match=message):
            sample_mean_force(atoms, mapping, time_ps=0.05, checkpoint=path, **{**SHORT, **settings})
        assert path.read_bytes() == content

    refused("temperature_K=300", temperature_K=310.0)
    refused("timestep_fs", timestep_fs=0.25)
    refused("thermal_response", thermal_response=True)
    refused("seed=3", seed=4)
    refused("another mapping", mapping=pairs.with_species("XX"))
    moved = dimers.copy()
    moved.calc = dimers.calc
    moved.positions[0] += 0.1
    refused("another configuration", atoms=moved)
    other = dimers.copy()
    other.calc = Springs(dimers.calc.sites, scale=2.0)
    refused("another calculator", atoms=other)


@pytest.mark.parametrize("keep", [0, 1000])
def test_truncated_checkpoint_is_refused_and_kept(dimers, pairs, tmp_path, keep):
    path = tmp_path / "run.npz"
    sample_mean_force(dimers, pairs, time_ps=0.05, checkpoint=path, **SHORT)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        sample_mean_force(dimers, pairs, time_ps=0.05, checkpoint=path, **SHORT)
    assert path.stat().st_size == keep


def test_checkpoint_size_does_not_depend_on_the_length(dimers, pairs, tmp_path):
    sizes = []
    for time_ps in (0.05, 2.0):
        path = tmp_path / f"{time_ps}.npz"
        sample_mean_force(dimers, pairs, time_ps=time_ps, checkpoint=path, **SHORT)
        sizes.append(path.stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 100


# ---- interrupts and failures --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_interrupt_keeps_what_was_accumulated(nep):
    atoms, mapping = nep
    sample_mean_force(atoms, mapping, time_ps=0.002, **NEP_SHORT)  # compiles
    sent = []

    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(1.0, send)
    # a shell that runs the tests in the background has them ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        result = sample_mean_force(atoms, mapping, time_ps=5.0, **NEP_SHORT)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    seconds = time.perf_counter() - sent[0]
    assert result.interrupted
    assert result.n_samples > 10
    assert np.isfinite(result.force_errors).all()
    # 0.2 s on an idle machine (tests/benchmarks/bench_meanforce.py measures it)
    assert seconds < 2.0


def test_forces_that_are_not_finite_name_the_step(dimers, pairs, tmp_path, monkeypatch):
    from ase.io import read

    monkeypatch.chdir(tmp_path)
    dimers.calc.fail_after = 80
    with pytest.raises(SamplingError, match=r"step 80 cannot be completed: the force on atom 3 is not finite") as error:
        sample_mean_force(dimers, pairs, time_ps=1.0, **SHORT)
    (path,) = tmp_path.glob("*.xyz")
    assert path.name in str(error.value)
    good = read(path)
    assert np.isfinite(good.positions).all()
    assert len(good) == 8
    assert not np.array_equal(good.positions, dimers.positions)


def test_failed_run_can_be_resumed(dimers, pairs, tmp_path):
    whole = sample_mean_force(dimers, pairs, time_ps=0.1, **SHORT)
    path = tmp_path / "run.npz"
    dimers.calc = Springs(dimers.calc.sites, fail_after=100)
    with pytest.raises(SamplingError):
        sample_mean_force(dimers, pairs, time_ps=0.1, checkpoint=path, **SHORT)
    dimers.calc = Springs(dimers.calc.sites)
    assert same(sample_mean_force(dimers, pairs, time_ps=0.1, checkpoint=path, **SHORT), whole)


def test_calculator_that_fails_at_once(dimers, pairs):
    dimers.calc.fail_after = 0
    with pytest.raises(SamplingError, match="given configuration"):
        sample_mean_force(dimers, pairs, time_ps=0.1, **SHORT)
