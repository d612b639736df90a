"""Trajectories as input of the compiled observers: files of all kinds give what the run itself accumulates."""

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.io import Trajectory
from ase.md import VelocityVerlet

from ase_nepcg import MD, NEP, analysis
from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.frames import observe, read_frames, spacing_fs
from ase_nepcg.data import WATER_BEAD, water_beads
from ase_nepcg.labels import get_labels, set_labels
from ase_nepcg.md import MSD, NVE, RDF, VACF, HeatCurrent, Thermo
from ase_nepcg.md.outputs import open_output

OBSERVERS = {"rdf": RDF(5.0, 50), "msd": MSD(6, 2), "vacf": VACF(6, 2)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder with run.traj, run.xyz, run.nc (every 20 fs), and what the observers found in the run."""
    folder = tmp_path_factory.mktemp("run")
    atoms = water_beads(4)
    atoms.calc = NEP(WATER_BEAD, threads=1)
    rng = np.random.default_rng(1)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(units.kB * 300 * atoms.get_masses())[:, None])
    with MD(atoms, 2.0, NVE(), seed=1, progress=False) as md:
        for suffix in ("traj", "xyz", "nc"):
            md.add_output(open_output(folder / f"run.{suffix}", 10))
        handles = {name: md.attach(observer, 10) for name, observer in OBSERVERS.items()}
        md.run(120)
    return folder, {name: handle.results() for name, handle in handles.items()}


# single precision of positions: a pair may change its bin
@pytest.mark.parametrize(("suffix", "exact"), [("traj", 1e-14), ("xyz", 1e-6), ("nc", 1e-6)])
def test_files_give_what_the_run_accumulates(run, suffix, exact):
    folder, expected = run
    for name, field in (("rdf", "g"), ("msd", "msd"), ("vacf", "vacf")):
        found = observe(OBSERVERS[name], folder / f"run.{suffix}")
        a, b = getattr(found, field), getattr(expected[name], field)
        if name == "rdf" and suffix != "traj":
            # a pair at the edge of a bin
            assert np.abs(a - b).mean() < 1e-3
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=exact * np.abs(b).max())
        if name != "rdf":
            np.testing.assert_allclose(found.time_fs, np.arange(7) * 20.0, rtol=1e-6)
        assert found.samples == 13


def test_amber_files_are_complete(run):
    folder, _ = run
    frames, expected = list(read_frames(folder / "run.nc")), ase.io.read(folder / "run.traj", ":")
    assert len(frames) == len(expected) == 13
    for frame, other in zip(frames, expected, strict=True):
        assert np.array_equal(get_labels(frame), get_labels(other))
        assert np.array_equal(frame.get_masses(), other.get_masses())
        assert np.array_equal(frame.pbc, other.pbc)
        np.testing.assert_allclose(frame.cell.array, other.cell.array, atol=1e-10)
        np.testing.assert_allclose(frame.positions, other.positions, atol=1e-5)
        np.testing.assert_allclose(frame.get_momenta(), other.get_momenta(), atol=1e-5)


def test_sources(run):
    folder, _ = run
    path = folder / "run.traj"
    frames = ase.io.read(path, ":")
    with Trajectory(path) as reader:
        expected = [len(list(read_frames(source))) for source in (path, str(path), frames, reader, iter(frames))]
    assert expected == [13] * 5
    assert len(list(read_frames(frames[0]))) == 1
    assert len(list(read_frames([path, folder / "run.xyz"]))) == 26


def test_trajectory_of_ase_says_its_spacing(tmp_path):
    atoms = bulk("Ar", cubic=True).repeat(2)
    atoms.calc = LennardJones(epsilon=0.01, sigma=3.4, rc=5.0)
    atoms.set_momenta(np.random.default_rng(1).normal(size=(len(atoms), 3)))
    path = tmp_path / "ase.traj"
    driver = VelocityVerlet(atoms, 3.0 * units.fs, trajectory=str(path), loginterval=4)
    driver.run(40)
    driver.close() if hasattr(driver, "close") else None
    result = analysis.diffusion(path, 4, origins_every=1)
    np.testing.assert_allclose(result.time_fs, 12.0 * np.arange(5))
    # a slow twin: numpy over all origins
    x = np.array([frame.positions for frame in ase.io.read(path, ":")])
    twin = [np.mean(((x[k:] - x[: len(x) - k]) ** 2).sum(axis=2)) for k in range(5)]
    np.testing.assert_allclose(result.msd[0], twin, rtol=1e-10)


def test_spacing(run):
    folder, _ = run
    frames = ase.io.read(folder / "run.xyz", ":2")
    assert spacing_fs("run.xyz", *frames, None) == pytest.approx(20.0)
    assert spacing_fs(frames, *frames, 20.0) == pytest.approx(20.0)
    with pytest.raises(AnalysisError, match=r"frame_fs=10 was given, but the file says 20 fs"):
        spacing_fs("run.xyz", *frames, 10.0)
    plain = [Atoms("H"), Atoms("H")]
    assert spacing_fs(plain, *plain, 5.0) == 5.0
    with pytest.raises(AnalysisError, match="the time between frames is not known; give frame_fs"):
        spacing_fs(plain, *plain, None)
    for bad in (0.0, -1.0, np.nan, "20"):
        with pytest.raises(AnalysisError, match="frame_fs: expected the time"):
            spacing_fs(plain, *plain, bad)


def walk(n=40, wrapped=False):
    """Four sites that walk through a triclinic cell."""
    rng = np.random.default_rng(3)
    atoms = Atoms("H4", positions=rng.normal(size=(4, 3)), cell=[[4, 0, 0], [1, 5, 0], [0, 1, 4.5]], pbc=True)
    frames = []
    for _ in range(n):
        frame = atoms.copy()
        if wrapped:
            frame.wrap()
        frames.append(frame)
        atoms.positions += rng.normal(scale=0.5, size=(4, 3))
    return frames


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ((1.0, 1.0), "the second frame is 0 fs later than the first"),
        ((1.0, 0.5), "the second frame is -500 fs later than the first"),
        ((1.0, np.nan), "frame 1: time_ps is nan"),
        (("1.0", 2.0), "frame 0: time_ps is '1.0', expected a number"),
    ],
)
def test_times_that_make_no_sense(times, message):
    frames = walk(2)
    for frame, time in zip(frames, times, strict=True):
        frame.info["time_ps"] = time
    with pytest.raises(AnalysisError, match=message):
        analysis.diffusion(frames, 3, origins_every=1)
    # which do not matter here
    assert analysis.rdf(frames, 3.0).samples == 2


def test_wrapped_positions_are_refused_or_unwrapped():
    expected = analysis.diffusion(walk(), 10, frame_fs=1.0)
    with pytest.raises(AnalysisError, match=r"site \d moves by more than half the cell .* unwrap=True"):
        analysis.diffusion(walk(wrapped=True), 10, frame_fs=1.0)
    found = analysis.diffusion(walk(wrapped=True), 10, frame_fs=1.0, unwrap=True)
    np.testing.assert_allclose(found.msd, expected.msd, rtol=1e-10)


@pytest.mark.parametrize("pbc", [True, (True, False, True)])
def test_unwrapped_where_the_cell_changes(pbc):
    """As of a barostat: sites follow the cell, and cross it several times."""
    rng = np.random.default_rng(5)
    fractions = rng.random((6, 3))
    whole, wrapped = [], []
    for _ in range(60):
        fractions += rng.normal(scale=0.08, size=(6, 3)) + np.array([0.05, 0.0, 0.0])
        cell = np.array([[6.0, 0, 0], [1, 5, 0], [0.5, 1, 4.5]]) * (1 + 0.03 * rng.normal(size=3))
        whole.append(Atoms("H6", positions=fractions @ cell, cell=cell, pbc=pbc))
        wrapped.append(whole[-1].copy())
        wrapped[-1].wrap()
    assert np.abs(whole[-1].positions - wrapped[-1].positions).max() > 10
    expected = analysis.diffusion(whole, 20, frame_fs=1.0)
    found = analysis.diffusion(wrapped, 20, frame_fs=1.0, unwrap=True)
    np.testing.assert_allclose(found.msd, expected.msd, rtol=1e-10)


def _flat(frames):
    frames[5].cell[2] = frames[5].cell[1]


PROPERTIES = {
    "rdf": lambda frames: analysis.rdf(frames, 3.0),
    "adf": lambda frames: analysis.adf(frames, 3.0),
    "coordination": lambda frames: analysis.coordination(frames, 3.0),
    "diffusion": lambda frames: analysis.diffusion(frames, 3, origins_every=1, frame_fs=10.0),
    "vdos": lambda frames: analysis.vdos(frames, 300.0, segments=1, frame_fs=10.0),
}


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames[5].set_chemical_symbols("H3O"), "frame 5 has other sites than frame 0"),
        (lambda frames: frames.__setitem__(5, frames[5][:3]), r"frame 5 has other sites .*\(3 and 4"),
        (lambda frames: frames[5].set_pbc([True, True, False]), "frame 5 has pbc"),
        (lambda frames: frames[5].positions.__setitem__((2, 1), np.nan), "frame 5: positions are not finite"),
        (lambda frames: frames[5].cell.array.__setitem__((2, 1), np.inf), "frame 5: cell are not finite"),
        (lambda frames: frames[0].cell.array.__setitem__((2, 1), np.nan), "frame 0: cell are not finite"),
        (lambda frames: frames[6].arrays["momenta"].__setitem__((2, 1), np.nan), "frame 6: momenta are not finite"),
        (_flat, r"frame 5: pbc is \[True, True, True\], but the cell .* has no vectors for that"),
        (lambda frames: frames.__setitem__(5, "frame"), "expected frames .*, got str"),
    ],
)
def test_frames_that_do_not_belong_together(name, change, message):
    frames = walk(12)
    for frame in frames:
        frame.set_momenta(np.ones((4, 3)))
    PROPERTIES[name](frames)
    change(frames)
    error = FileNotFoundError if "got str" in message else AnalysisError
    with pytest.raises(error, match=None if error is FileNotFoundError else message):
        PROPERTIES[name](frames)


@pytest.mark.parametrize("name", PROPERTIES)
def test_frames_may_be_the_same_atoms_each_time(name):
    """As a run yields them."""
    frames = walk(12)
    for frame in frames:
        frame.set_momenta(frame.positions)
    live = frames[0].copy()

    def states():
        for frame in frames:
            live.positions[:] = frame.positions
            live.set_momenta(frame.positions)
            yield live

    one, two = PROPERTIES[name](frames), PROPERTIES[name](states())
    np.testing.assert_array_equal(one.as_table()[1], two.as_table()[1])


def test_velocities_need_momenta_and_masses():
    beads = walk(12)
    for frame in beads:
        set_labels(frame, "WAT")
        frame.set_momenta(np.ones((4, 3)))
    needing = {
        "vdos": PROPERTIES["vdos"],
        "vacf": lambda frames: analysis.vacf(frames, 3, origins_every=1, frame_fs=10.0),
        "drift": lambda frames: analysis.diffusion(frames, 3, origins_every=1, frame_fs=10.0, remove_drift=True),
    }
    for measure in needing.values():
        with pytest.raises(AnalysisError, match="frame 0: the beads have no masses"):
            measure(beads)
    PROPERTIES["diffusion"](beads)
    for frame in beads:
        frame.set_masses(np.full(4, 18.0))
    for measure in needing.values():
        measure(beads)
    del beads[7].arrays["momenta"]
    for name in ("vdos", "vacf"):
        with pytest.raises(AnalysisError, match="frame 7 has no momenta"):
            needing[name](beads)


def test_gap_in_time():
    frames = walk(10)
    for k, frame in enumerate(frames):
        frame.info["time_ps"] = 0.1 * k + (0.5 if k > 6 else 0.0)
        frame.set_momenta(np.ones((4, 3)))
    for measure in (
        lambda: analysis.diffusion(frames, 3, origins_every=1),
        lambda: analysis.vacf(frames, 3, origins_every=1),
        lambda: analysis.vdos(frames, 300.0, segments=1),
    ):
        with pytest.raises(AnalysisError, match="frames 6 and 7 are 600 fs apart, others 100 fs"):
            measure()
    assert analysis.rdf(frames, 3.0).samples == 10


def test_bad_sources(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_frames(tmp_path / "missing.traj"))
    for name in ("bad.traj", "bad.xyz", "bad.nc"):
        (tmp_path / name).write_text("this is no trajectory\n")
        with pytest.raises(AnalysisError, match=name.replace(".", r"\.")):
            list(read_frames(tmp_path / name))
    with pytest.raises(AnalysisError, match="there are no frames"):
        list(read_frames([]))
    with pytest.raises(AnalysisError, match="expected a file, Atoms or a list"):
        list(read_frames(3))
    with pytest.raises(AnalysisError, match="expected frames"):
        list(read_frames([1, 2]))


def test_what_trajectories_do_not_hold():
    for observer in (Thermo(), HeatCurrent(5)):
        with pytest.raises(AnalysisError, match="attach it to the run"):
            observe(observer, walk(3))
    with pytest.raises(AnalysisError, match="no momenta"):
        observe(VACF(2, 1), walk(3), frame_fs=1.0)
    with pytest.raises(AnalysisError, match="give frame_fs"):
        observe(MSD(2, 1), walk(3))
