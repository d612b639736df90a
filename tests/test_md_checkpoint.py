"""Checkpoints of MD: a run goes on as if it had never stopped, and files that are not the run's are refused."""

import json
import zipfile

import md_restarts as runs
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from md_restarts import assert_same, start

from ase_nepcg import MD, NEP, NEPModel, checkpoint
from ase_nepcg.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ase_nepcg.data import WATER_BEAD
from ase_nepcg.labels import get_labels
from ase_nepcg.md import RDF, Langevin, Thermo
from ase_nepcg.md.observers.base import OWN
from ase_nepcg.potential.simd import LANES

# samples, origins and blocks are incomplete after the first part
FIRST, SECOND = 302, 60


def restart(path, **keywords):
    return MD.restart(path, progress=False, **keywords)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.npz"


def rewrite(path, arrays=None, kind="md", **changes):
    """The checkpoint with another header, and a hash that fits."""
    header, old = read_checkpoint(path, "md")
    header = {key: value for key, value in header.items() if key not in ("kind", "version")} | changes
    write_checkpoint(path, kind, header, old | (arrays or {}))


# ---- the same run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "held"), [*((name, False) for name in runs.NAMES), *((name, True) for name in runs.CONSTRAINED)]
)
def test_restart_is_the_unbroken_run(tmp_path, name, held):
    whole, part = runs.folders(tmp_path, "whole", "part")
    unbroken = start(whole, name, held)
    unbroken.run(FIRST + SECOND)
    md = start(part, name, held)
    md.run(FIRST)
    lengths = [handle.ints.copy() for handle in md.handles]
    md.checkpoint(part / "run.npz")
    at_checkpoint = runs.contents(part)
    # what follows is forgotten
    md.run(SECOND // 2)
    md.close()
    again = restart(part / "run.npz")
    assert again.nsteps == FIRST
    assert runs.contents(part) == at_checkpoint
    assert type(again.ensemble) is type(md.ensemble)
    assert again.ensemble == md.ensemble
    for handle, ints in zip(again.handles, lengths, strict=True):
        np.testing.assert_array_equal(handle.ints, ints)
    again.run(SECOND)
    assert_same(unbroken, again)
    runs.assert_same_files(whole, part)
    # and these are numbers that move
    assert not np.array_equal(md.atoms.positions, again.atoms.positions)
    assert unbroken.handles[0].results().samples == FIRST + SECOND + 1


def test_blocks_of_observers_are_cut_in_the_middle(tmp_path):
    """What the test above counts on."""
    md = start(tmp_path, "langevin", files=())
    md.run(FIRST)
    ints = md.handles[0].ints
    # the record of a table, see ase_nepcg.md.observers.base
    *_, length, filled, samples = ints[ints[OWN] :][:7]
    assert samples == FIRST + 1
    assert 0 < filled < length
    assert [FIRST % handle.interval for handle in md.handles] == [0, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["langevin", "mttk"])
def test_restarts_of_restarts(path, name):
    unbroken = start(path.parent, name, files=())
    unbroken.run(60)
    md = start(path.parent, name, files=(), checkpoint=path)
    md.run(7)
    for steps in (1, 0, 22, 30):
        md = restart(path)
        md.run(steps)
    assert_same(unbroken, md)


@pytest.mark.parametrize("name", ["nve", "langevin", "scr"])
def test_restart_at_the_start(tmp_path, name):
    whole, part, zero = runs.folders(tmp_path, "whole", "part", "zero")
    unbroken = start(whole, name)
    unbroken.run(20)
    # before anything was written, and after step 0
    start(part, name).checkpoint(part / "run.npz")
    start(zero, name, checkpoint=zero / "run.npz").run(0)
    for folder in (part, zero):
        md = restart(folder / "run.npz")
        assert md.nsteps == 0
        md.run(20)
        assert_same(unbroken, md)
        runs.assert_same_files(whole, folder)


def test_an_observer_that_was_attached_later(path):
    def make():
        md = start(path.parent, files=(), observers=False)
        md.run(4)
        md.attach(Thermo(), 3)
        md.run(7)
        md.attach(RDF(4.0, bins=10), 5)
        return md

    unbroken, md = make(), make()
    unbroken.run(20)
    md.checkpoint(path)
    md = restart(path)
    md.run(20)
    assert_same(unbroken, md)
    # steps 6, 9, ..., 30 and 15, 20, 25, 30
    assert [handle.results().samples for handle in md.handles] == [9, 4]


def test_models_are_kept_to_the_last_bit(path):
    model = NEPModel.random(["WAT"], seed=7)
    md = MD(runs.beads(model=model), 1.0, Langevin(300, 0.01), seed=2, progress=False)
    md.run(5)
    md.checkpoint(path)
    md.run(5)
    again = restart(path)
    again.run(5)
    assert again.calc.model == model
    assert_same(md, again)


def test_settings_of_the_run_survive(path):
    md = start(path.parent, files=(), checkpoint=path, checkpoint_interval=9, seed=2**62)
    steps = md.irun(20)
    while md.nsteps < 12:
        next(steps)
    steps.close()
    again = restart(path)
    assert (again.nsteps, again.max_steps, again.seed) == (12, 20, 2**62)
    assert again.timestep_fs == md.timestep_fs
    assert (again.checkpoint_path, again.checkpoint_interval) == (str(path), 9)
    assert again.todict() == md.todict()
    assert again.time_ps == md.time_ps
    assert again.n_dof == md.n_dof


def test_functions_must_be_attached_again(path):
    calls = []
    md = start(path.parent, files=())
    md.attach(lambda: calls.append(md.nsteps), 4)
    md.run(10)
    md.checkpoint(path)
    again = restart(path)
    again.run(5)
    assert calls == [0, 4, 8]
    again.attach(lambda: calls.append(again.nsteps), 4)
    again.run(5)
    assert calls == [0, 4, 8, 16, 20]


def test_everything_of_the_atoms_survives(path):
    atoms = runs.hold(runs.beads())
    atoms.info |= {"note": "x", "table": np.arange(4.0), "deep": {"a": [1, None, True]}}
    atoms.set_array("chain", np.repeat(["a", "bc", "d"], 9))
    atoms.set_array("weights", np.arange(81.0).reshape(27, 3))
    atoms.set_celldisp([0.5, 0, 0])
    atoms.pbc = (True, True, False)
    md = MD(atoms, 1.0, Langevin(300, 0.01), progress=False)
    md.run(3)
    md.checkpoint(path)
    again = restart(path).atoms
    assert (get_labels(again) == get_labels(atoms)).all()
    assert again.arrays.keys() == atoms.arrays.keys()
    for name, array in atoms.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        assert again.arrays[name].dtype == array.dtype
    assert again.info.keys() == atoms.info.keys()
    assert (again.info["note"], again.info["deep"]) == ("x", atoms.info["deep"])
    np.testing.assert_array_equal(again.info["table"], np.arange(4.0))
    assert (again.pbc == atoms.pbc).all()
    np.testing.assert_array_equal(again.get_celldisp(), atoms.get_celldisp())
    assert [c.todict() for c in again.constraints] == [c.todict() for c in atoms.constraints]


def test_what_cannot_be_kept_of_info_is_named_once(path):
    atoms = runs.beads()
    atoms.info |= {"object": object(), "set": {1, 2}, "good": 3}
    md = MD(atoms, 1.0, Langevin(300, 0.01), progress=False)
    with pytest.warns(RuntimeWarning, match=r"'object', 'set' cannot be kept"):
        md.checkpoint(path)
    md.checkpoint(path)
    again = restart(path).atoms
    assert "object" not in again.info
    assert again.info["good"] == 3
    assert "object" in atoms.info


def test_no_pickles(path):
    start(path.parent, files=("run.csv",)).checkpoint(path)
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        header = json.loads(file["header"].tobytes())
    assert header["kind"] == "md"
    with zipfile.ZipFile(path) as archive:
        assert all(name.endswith(".npy") for name in archive.namelist())


# ---- calculators --------------------------------------------------------------------------------------------------


def test_a_calculator_of_the_same_model(path):
    md = start(path.parent, files=())
    md.run(5)
    md.checkpoint(path)
    calc = NEP(WATER_BEAD, threads=2)
    again = restart(path, calc=calc)
    assert again.calc is again.atoms.calc is calc
    assert restart(path).calc.parameters.threads == 1
    for run in (md, again):
        run.run(20)
    assert_same(md, again)


def test_another_model_is_refused(path):
    start(path.parent, files=()).checkpoint(path)
    for calc in (NEP(NEPModel.random(["WAT"], seed=8), threads=1), LennardJones()):
        with pytest.raises(CheckpointError, match=r"run\.npz: made with another model.*leave calc out"):
            restart(path, calc=calc)


def test_another_temperature_of_the_model_is_refused(path, atoms, make_calculator):
    atoms.calc = make_calculator("full", temperature_K=310.0)
    MD(atoms, 0.1, Langevin(310.0, 0.01), progress=False).checkpoint(path)
    with pytest.raises(CheckpointError, match=r"temperature_K=310.*got a calculator with 300.*leave calc out"):
        restart(path, calc=make_calculator("full", temperature_K=300.0))
    assert restart(path, calc=make_calculator("full", temperature_K=310.0)).nsteps == 0
    assert restart(path).calc.parameters.temperature_K == 310.0


# ---- files that are refused ---------------------------------------------------------------------------------------


def test_damaged_files(path):
    md = start(path.parent, files=())
    md.checkpoint(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for keep in (0, 1, 30, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match=r"run\.npz: .*(damaged|truncated|not a checkpoint)"):
            restart(path)
    # the list of contents at the end, where everything has a meaning, and places all over the file
    places = [*range(len(content) - 300, len(content)), *rng.integers(0, len(content), 300).tolist()]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            header, arrays = read_checkpoint(path, "md")
        except CheckpointError:
            continue
        # no harm was done
        np.testing.assert_array_equal(arrays["x"], md.simulation.state.x)
        assert header["seed"] == md.seed
    path.write_bytes(content)
    assert restart(path).nsteps == 0


def test_other_versions_and_kinds(path, monkeypatch):
    start(path.parent, files=()).checkpoint(path)
    rewrite(path, kind="training")
    with pytest.raises(CheckpointError, match=r"expected .*kind 'md'.* got 'training'; .* give that of such a run"):
        restart(path)
    start(path.parent, files=()).checkpoint(path.with_name("new.npz"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_VERSION", 99)
        start(path.parent, files=()).checkpoint(path.with_name("old.npz"))
    with pytest.raises(CheckpointError, match="expected a checkpoint of version 1, got version 99; remove it"):
        restart(path.with_name("old.npz"))


def test_unknown_names(path):
    md = start(path.parent, files=())
    md.checkpoint(path)
    header, _ = read_checkpoint(path, "md")
    observers = header["observers"]
    for changes, message in (
        ({"ensemble": {"name": "Gibbs"}}, r"another version.*unknown ensemble 'Gibbs'.*expected one of .*langevin"),
        ({"ensemble": header["ensemble"] | {"colour": 3}}, r"another version.*colour"),
        (
            {"observers": [observers[0] | {"settings": {"name": "entropy"}}, *observers[1:]]},
            r"another version.*unknown observer 'entropy'.*expected one of",
        ),
    ):
        md.checkpoint(path)
        rewrite(path, **changes)
        with pytest.raises(CheckpointError, match=r"run\.npz: made by " + message):
            restart(path)


def test_another_processor(path):
    start(path.parent, files=()).checkpoint(path)
    rewrite(path, lanes=3)
    with pytest.raises(CheckpointError, match=rf"vectors of 3 numbers, here they have {LANES}; go on with the run on"):
        restart(path)
    start(path.parent, files=(), observers=False).checkpoint(path)
    rewrite(path, lanes=3)
    assert restart(path).nsteps == 0


def test_arrays_of_another_system(path):
    start(path.parent, files=(), observers=False).checkpoint(path)
    rewrite(path, arrays={"x": np.zeros((5, 3))})
    with pytest.raises(CheckpointError, match=r"x has shape \(5, 3\), expected \(27, 3\); the file belongs to another"):
        restart(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        restart(tmp_path / "nothing.npz")
    with pytest.raises(CheckpointError, match="got a folder"):
        restart(tmp_path)


def test_names_that_cannot_be_used_are_refused_at_once(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "numbers.npz"
    text.write_text("not to be lost\n")
    np.savez(other, x=np.zeros(3))
    before = runs.contents(tmp_path)
    for path, message in (
        (text, r"notes\.txt: not a checkpoint of ase_nepcg; .* choose another name"),
        (other, r"numbers\.npz: not a checkpoint of ase_nepcg; .* choose another name"),
        (tmp_path / "nowhere" / "run.npz", r"run\.npz: there is no folder .*nowhere; make it first"),
        (tmp_path, "got a folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            MD(runs.beads(), 1.0, Langevin(300, 0.01), checkpoint=path, trajectory=tmp_path / "run.traj")
        assert runs.contents(tmp_path) == before
    # an older checkpoint of MD may be replaced; it is there until then
    small = Atoms("Ar", positions=[[0, 0, 0]], masses=[18.0])
    small.calc = NEP(NEPModel.random(["Ar"], seed=8), threads=1)
    MD(small, 1.0, Langevin(300, 0.01), progress=False).checkpoint(tmp_path / "run.npz")
    content = (tmp_path / "run.npz").read_bytes()
    md = MD(runs.beads(), 1.0, Langevin(300, 0.01), checkpoint=str(tmp_path / "run.npz").encode(), progress=False)
    assert (tmp_path / "run.npz").read_bytes() == content
    md.run(1)
    assert len(restart(tmp_path / "run.npz").atoms) == 27
