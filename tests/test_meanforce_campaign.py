"""Many configurations: equal to single runs bit for bit, whatever fails, is killed, interrupted or run again."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from tqdm import tqdm

import ase_nepcg
from ase_nepcg import FixBeads, Mapping, devices, locks, sample_many, sample_mean_force
from ase_nepcg.checkpoint import CheckpointError
from ase_nepcg.meanforce import campaign, sampler, workers
from ase_nepcg.meanforce import folder as folder_module
from ase_nepcg.meanforce.campaign import CampaignError, CampaignInterrupted, FolderInUseError, frame_seed
from ase_nepcg.meanforce.results import read_result, write_result
from ase_nepcg.meanforce.sampler import SamplingError

TOYS = '''
"""Calculators for worker processes, which must be able to import them."""
import os, signal, sys, time
from pathlib import Path
import numpy as np
from ase.calculators.calculator import Calculator, all_changes

class Wells(Calculator):
    """Each atom in the nearest well of a cubic lattice; after ``last`` evaluations ``end`` happens."""
    implemented_properties = ["energy", "forces", "stress"]
    default_parameters = {"k": 3.0, "spacing": 3.0, "last": None, "end": "raise"}
    calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        p = self.parameters
        self.calls += 1
        time.sleep(float(os.environ.get("TOY_DELAY", "0")))
        if p.last is not None and self.calls > p.last:
            if p.end == "interrupt":
                raise KeyboardInterrupt
            if p.end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if p.end == "device":
                # a process that starts quickly would do the work of both: it waits for the other
                device = os.environ.get("CUDA_VISIBLE_DEVICES")
                Path(f"{device}.device").touch()
                deadline = time.monotonic() + 60.0
                while len(list(Path.cwd().glob("*.device"))) < 2 and time.monotonic() < deadline:
                    time.sleep(0.02)
                raise RuntimeError(f"this is device {device}")
            if p.end == "exit":
                sys.exit("licence not found")
            raise RuntimeError("electrons got lost")
        away = self.atoms.positions - p.spacing * np.round(self.atoms.positions / p.spacing)
        # pairs of neighbours in the list are coupled, so that mean forces are not zero by symmetry alone
        pull = 0.2 * np.sin(away + np.roll(away, 1, axis=0))
        force = -p.k * away - pull - np.roll(pull, -1, axis=0)
        energy = 0.5 * p.k * (away**2).sum() - 0.2 * np.cos(away + np.roll(away, 1, axis=0)).sum()
        w = -(away.T @ force + force.T @ away) / 2 / self.atoms.get_volume()
        stress = np.array([w[0, 0], w[1, 1], w[2, 2], w[1, 2], w[0, 2], w[0, 1]])
        self.results = {"energy": energy, "forces": force, "stress": stress}

class Stuck(Wells):
    def __reduce__(self):
        raise TypeError("this one holds a socket")
    def __deepcopy__(self, memo):
        raise TypeError("this one holds a socket")
'''

RUN = {"temperature_K": 300.0, "timestep_fs": 2.0, "friction_per_fs": 0.2, "equilibration_ps": 0.1, "time_ps": 0.6}
QUIET = pytest.mark.filterwarnings(
    "ignore:.*(error bars are not reliable|not yet in equilibrium|averages are wrong):RuntimeWarning"
)
pytestmark = QUIET


@pytest.fixture(scope="module")
def folder_of_toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    (folder / "campaign_toys.py").write_text(TOYS)
    return folder


@pytest.fixture
def toys(folder_of_toys, monkeypatch):
    monkeypatch.syspath_prepend(str(folder_of_toys))
    return importlib.import_module("campaign_toys")


def make_frames(n, calc=None, size=2):
    """Gold atoms near the wells, in different places in each frame."""
    lattice = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * 3.0
    frames = []
    for i in range(n):
        moved = lattice + np.random.default_rng(i).normal(scale=0.1, size=lattice.shape)
        frames.append(Atoms(f"Au{len(lattice)}", positions=moved, cell=[3.0 * size] * 3, pbc=True, calculator=calc))
    return frames


@pytest.fixture
def mapping():
    return Mapping.from_atoms_per_bead(make_frames(1)[0], 2, "Ne")


def differences(a, b):
    """Names of what is not the same, bit for bit, in two results."""
    names = [f.name for f in fields(a) if f.name != "frame" and not _same(getattr(a, f.name), getattr(b, f.name))]
    for part in (lambda f: f.arrays, lambda f: f.info, lambda f: f.calc.results, lambda f: {"cell": f.cell.array}):
        one, two = part(a.frame), part(b.frame)
        # the order too: it is that of the columns of a file
        names += [] if list(one) == list(two) else [f"names {list(one)}, {list(two)}"]
        names += [f"frame {name}" for name in one if not _same(one[name], two.get(name))]
    return names + ["pbc"] * (a.frame.pbc.tolist() != b.frame.pbc.tolist())


def _same(x, y):
    if isinstance(x, np.ndarray):
        return isinstance(y, np.ndarray) and x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    return type(x) is type(y) and (x == y or (x != x and y != y))


def single(atoms, mapping, index, seed=5, calc=None, **changes):
    """The run of one configuration of a campaign by itself."""
    atoms = atoms.copy()
    atoms.calc = calc
    return sample_mean_force(atoms, mapping, seed=frame_seed(seed, index), progress=False, **RUN | changes)


def script(folder, arguments, guard=True):
    """A program that runs a campaign of three configurations in the folder ``c``."""
    write(folder / "frames.traj", make_frames(3))
    path = folder / "program.py"
    lines = [
        "from ase.io import read",
        "from campaign_toys import Wells",
        "from ase_nepcg import Mapping, sample_many",
        'if __name__ == "__main__":' if guard else "if True:",
        '    frames = read("frames.traj", ":")',
        '    mapping = Mapping.from_atoms_per_bead(frames[0], 2, "Ne")',
        f'    sample_many(frames, mapping, calculator=Wells(), folder="c", **{RUN | arguments!r})',
    ]
    path.write_text("\n".join(lines))
    return path


def start(path, toys, **environment):
    root = Path(ase_nepcg.__file__).parent.parent
    places = os.pathsep.join([str(root), str(Path(toys.__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": places, **environment}
    return subprocess.Popen(
        [sys.executable, str(path)],
        cwd=path.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has them, and their children, ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def family(session):
    """Processes of a session (by the id of its leader) that are alive, zombies not counted."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if entry.name.isdecimal() and int(sid) == session and state != "Z":
            found.append(int(entry.name))
    return found


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


# ---- results ------------------------------------------------------------------------------------------------------


def test_seeds_are_a_property_of_the_number():
    seeds = {frame_seed(seed, index) for seed in range(20) for index in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert frame_seed(5, 2) == 842499660180124


def test_one_process_gives_what_single_runs_give(toys, mapping):
    frames = make_frames(2)
    before = [atoms.positions.copy() for atoms in frames]
    calc = toys.Wells()
    results = sample_many(frames, mapping, calculator=calc, workers=1, seed=5, progress=False, **RUN)
    assert [differences(results[i], single(frames[i], mapping, i, calc=toys.Wells())) for i in range(2)] == [[], []]
    assert not np.array_equal(results[0].forces, results[1].forces)
    # neither frames nor calculator are changed
    assert calc.calls == 0
    assert all(atoms.calc is None for atoms in frames)
    assert [np.array_equal(a.positions, b) for a, b in zip(frames, before, strict=True)] == [True, True]


@pytest.mark.parametrize("before", [None, "5, 7"])
def test_every_process_sees_one_cuda_device(toys, mapping, monkeypatch, tmp_path, before):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign, "_on_cuda", lambda calculator: True)
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(campaign, "visible", lambda: ["5", "7"])
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
        monkeypatch.setattr(devices, "driver_version", lambda: (13, 0))
    frames = make_frames(4, toys.Wells(last=3, end="device"))
    with pytest.raises(CampaignError) as caught:
        sample_many(frames, mapping, seed=5, progress=False, **RUN)
    said = [failure.reason.partition("device ")[2][0] for failure in caught.value.failures]
    assert len(said) == 4
    assert set(said) == {"5", "7"}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_failures_do_not_lose_the_others(toys, mapping, tmp_path, capfd):
    """An exception, a kill, the end of the program, a calculator that cannot travel, atoms that do not fit."""
    frames = make_frames(7)
    ends = [None, "raise", "kill", None, "exit", None, None]
    for atoms, end in zip(frames, ends, strict=True):
        atoms.calc = toys.Wells(last=None if end is None else 100, end=end)
    frames[3].calc = toys.Stuck()
    frames[5] = make_frames(1, toys.Wells(), size=3)[0]
    os.environ.pop("OMP_NUM_THREADS", None)
    with pytest.raises(CampaignError) as caught:
        sample_many(frames, mapping, workers=2, folder=tmp_path / "c", seed=5, progress=False, **RUN)
    assert isinstance(caught.value, SamplingError)
    assert [failure.index for failure in caught.value.failures] == [1, 2, 3, 4, 5]
    reasons = [failure.reason for failure in caught.value.failures]
    assert "SamplingError: step 10" in reasons[0]
    assert "electrons got lost" in reasons[0]
    assert "electrons got lost" in caught.value.failures[0].traceback
    assert "killed by signal 9 (SIGKILL" in reasons[1]
    assert "cannot be sent to a worker process (TypeError: this one holds a socket); use workers=1" in reasons[2]
    assert reasons[3] == "SystemExit: licence not found"
    assert "MappingError: atoms: the mapping is for 8 atoms, got 27" in reasons[4]
    assert str(caught.value).startswith("5 of 7 configurations failed: configuration 1: SamplingError: step 10")
    assert [result is None for result in caught.value.results] == [False, True, True, True, True, True, False]
    for i in (0, 6):
        assert differences(caught.value.results[i], single(frames[i], mapping, i, calc=toys.Wells())) == []
        assert differences(read_result(tmp_path / "c" / f"{i:05d}.result.npz"), caught.value.results[i]) == []
    # nothing but the state that an error leaves behind
    names = [f"{i:05d}.{kind}.npz" for i in (0, 6) for kind in ("checkpoint", "result")]
    names += ["00001.checkpoint.npz", "campaign.json", "lock"]
    states = [name for name in os.listdir(tmp_path / "c") if name.startswith("00001.checkpoint.npz.step")]
    assert sorted(os.listdir(tmp_path / "c")) == sorted([*names, *states])
    assert len(states) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert "OMP_NUM_THREADS" not in os.environ


def test_skip_leaves_the_failed_ones_out(toys, mapping, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    frames = make_frames(3)
    for atoms, last in zip(frames, (None, 100, None), strict=True):
        atoms.calc = toys.Wells(last=last)
    with pytest.warns(RuntimeWarning, match="left out: 1 of 3 configurations failed: configuration 1: SamplingErr"):
        results = sample_many(frames, mapping, workers=1, on_error="skip", seed=5, progress=False, **RUN)
    assert len(results) == 2
    for i, result in zip((0, 2), results, strict=True):
        assert differences(result, single(frames[i], mapping, i, calc=toys.Wells())) == []


def test_calculators_that_cannot_be_copied_work_in_this_process(toys, mapping):
    frames = make_frames(1, toys.Stuck())
    (result,) = sample_many(frames, mapping, workers=1, seed=5, progress=False, **RUN)
    assert differences(result, single(frames[0], mapping, 0, calc=toys.Wells())) == ["frame calculator"]


def test_every_configuration_may_have_its_own_mapping(toys):
    small, large = make_frames(1)[0], make_frames(1, size=3)[0]
    mappings = [Mapping.from_atoms_per_bead(small, 2, "Ne"), Mapping.from_atoms_per_bead(large, 3, "Ar")]
    results = sample_many([small, large], mappings, calculator=toys.Wells(), workers=1, seed=1, progress=False, **RUN)
    assert [len(result.forces) for result in results] == [4, 9]


@pytest.mark.filterwarnings("default")
def test_warnings_name_the_configuration(toys, mapping):
    short = RUN | {"time_ps": 0.03, "friction_per_fs": 0.01}
    frames = make_frames(2, toys.Wells())
    with pytest.warns(RuntimeWarning) as caught:
        sample_many(frames, mapping, workers=1, seed=5, progress=False, **short)
    texts = [str(entry.message) for entry in caught]
    assert any(text.startswith("configuration 0: the run of 0.03 ps is too short") for text in texts)
    assert any(text.startswith("configuration 1: the run of 0.03 ps is too short") for text in texts)
    assert {entry.filename for entry in caught} == {__file__}


def test_nep_calculators_get_threads_but_not_others(make_calculator, models, mapping, monkeypatch):
    seen = []

    class Recorded(workers.Sampler):
        def __init__(self, atoms, *arguments, **keywords):
            seen.append(atoms.calc.parameters.threads)
            super().__init__(atoms, *arguments, **keywords)

    monkeypatch.setattr(workers, "Sampler", Recorded)
    frames = make_frames(2)
    for atoms in frames:
        atoms.symbols[:] = "O"
        atoms.positions *= 1.2
        atoms.cell *= 1.2
    frames[0].calc = make_calculator("single", threads=None)
    frames[1].calc = make_calculator("single", threads=1)
    mapping = Mapping.from_atoms_per_bead(frames[0], 2, "Ne")
    results = sample_many(frames, mapping, workers=1, threads=2, seed=5, progress=False, **RUN)
    assert seen == [2, 1]
    assert frames[0].calc.parameters.threads is None
    for i in range(2):
        assert differences(results[i], single(frames[i], mapping, i, calc=make_calculator("single"))) == []


def test_libraries_in_workers_are_limited(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("MKL_NUM_THREADS", "2,1")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    with workers._environment(4, None):
        assert [os.environ[name] for name in names] == ["4", "4", "2,1"]
    assert [os.environ.get(name) for name in names] == ["64", None, "2,1"]


def test_progress_shows_count_and_errors(toys, mapping, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(campaign, "tqdm", lambda **k: shown.append(k["disable"]) or tqdm(**k | {"disable": False}))
    monkeypatch.setattr(sampler, "_REPORT_SECONDS", 0.05)
    frames = make_frames(3)
    for atoms, last in zip(frames, (None, 100, None), strict=True):
        atoms.calc = toys.Wells(last=last)
    with pytest.raises(CampaignError) as caught:
        sample_many(frames, mapping, workers=1, seed=5, **RUN)
    last = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    low, high = sorted(result.force_error for result in caught.value.results if result)
    assert "3/3" in last
    assert f"1 failed, force errors {low:.4f} to {high:.4f} eV/Å" in last
    assert shown == [None]


# ---- folder -------------------------------------------------------------------------------------------------------


def test_rerun_skips_extends_and_takes_more(toys, mapping, tmp_path, monkeypatch):
    frames = make_frames(3)
    calls = []
    original = toys.Wells.calculate
    monkeypatch.setattr(toys.Wells, "calculate", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))

    def run(n, **changes):
        calls.clear()
        settings = {"calculator": toys.Wells(), "workers": 1, "folder": tmp_path, "progress": False, **RUN, **changes}
        return sample_many(frames[:n], mapping, **settings)

    first = run(2)
    seed = json.loads((tmp_path / "campaign.json").read_text())["seed"]
    assert [result.seed for result in first] == [frame_seed(seed, 0), frame_seed(seed, 1)]
    again = run(2)
    assert calls == []
    assert [differences(a, b) for a, b in zip(first, again, strict=True)] == [[], []]
    more = run(3, seed=seed)
    assert len(calls) > 300
    assert differences(more[2], single(frames[2], mapping, 2, seed=seed, calc=toys.Wells())) == []
    # a result that is lost is made again from the checkpoint
    (tmp_path / "00001.result.npz").unlink()
    fewer = run(2)
    assert len(calls) < 10
    assert [differences(a, b) for a, b in zip(first, fewer, strict=True)] == [[], []]
    longer = run(1, time_ps=0.8)
    assert 100 <= len(calls) < 110
    assert differences(longer[0], single(frames[0], mapping, 0, seed=seed, calc=toys.Wells(), time_ps=0.8)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature_K": 310.0}, r"c: made with temperature_K=300\.0, now temperature_K=310\.0; use another folder"),
        ({"seed": 6}, "made with seed=5, now seed=6"),
        ({"k": 2.0}, "made with another calculator as number 0"),
        ({"labels": "Ar"}, "made with another mapping as number 0"),
        ({"swap": True}, "made with another configuration as number 0; new configurations may be added at the end"),
        ({"constraint": True}, "made with another configuration as number 1"),
    ],
)
def test_folder_of_another_campaign_is_refused(change, message, toys, mapping, tmp_path):
    frames = make_frames(2)
    settings = campaign._settings({"temperature_K": 300.0, "seed": 5}, 1.0, None)

    def enter(frames, mapping, settings, k=3.0):
        for atoms in frames:
            atoms.calc = toys.Wells(k=k)
        parts = [folder_module.describe(atoms, mapping) for atoms in frames]
        with folder_module.CampaignFolder(tmp_path / "c", settings.__dict__, parts, 0):
            pass

    enter(frames, mapping, settings)
    written = (tmp_path / "c" / "campaign.json").read_bytes()
    if change.get("constraint"):
        frames[1].set_constraint(FixBeads(mapping))
    frames = frames[::-1] if change.get("swap") else frames
    mapping = mapping.with_species(change.get("labels", "Ne"))
    given = {"temperature_K": 300.0, "seed": 5} | {k: v for k, v in change.items() if k in ("temperature_K", "seed")}
    with pytest.raises(CheckpointError, match=message):
        enter(frames, mapping, campaign._settings(given, 1.0, None), change.get("k", 3.0))
    assert (tmp_path / "c" / "campaign.json").read_bytes() == written


def test_foreign_and_damaged_files_are_refused(toys, mapping, tmp_path):
    frames = make_frames(2, toys.Wells())
    settings = {"workers": 1, "seed": 5, "progress": False, **RUN}
    sample_many(frames, mapping, folder=tmp_path / "a", **settings)
    sample_many(frames[:1], mapping, folder=tmp_path / "b", **settings | {"seed": 6})
    (tmp_path / "b" / "00000.result.npz").write_bytes((tmp_path / "a" / "00000.result.npz").read_bytes())
    with pytest.raises(CheckpointError, match=r"b/00000\.result\.npz: belongs to another campaign"):
        sample_many(frames[:1], mapping, folder=tmp_path / "b", **settings | {"seed": 6})
    damaged = tmp_path / "a" / "00001.result.npz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"00001\.result\.npz: not a checkpoint, truncated"):
        sample_many(frames, mapping, folder=tmp_path / "a", **settings)
    # a damaged checkpoint concerns one configuration only
    damaged.unlink()
    (tmp_path / "a" / "00001.checkpoint.npz").write_bytes(b"not this")
    with pytest.raises(CampaignError, match=r"1 of 2 .* configuration 1: CheckpointError: .*not a checkpoint"):
        sample_many(frames, mapping, folder=tmp_path / "a", **settings)
    (tmp_path / "a" / "campaign.json").write_text('{"kind": "nepcg-camp')
    with pytest.raises(CheckpointError, match=r"campaign\.json: expected a nepcg-campaign of version 1"):
        sample_many(frames, mapping, folder=tmp_path / "a", **settings)


def test_two_runs_in_one_folder_are_refused(toys, mapping, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.1)
    frames = make_frames(1, toys.Wells())
    parts = [folder_module.describe(frames[0], mapping)]
    settings = campaign._settings({k: v for k, v in RUN.items() if k != "time_ps"}, 0.6, None)
    message = rf"another run uses this folder \(process {os.getpid()} on "
    with (
        folder_module.CampaignFolder(tmp_path, settings.__dict__, parts, 0),
        pytest.raises(FolderInUseError, match=message),
    ):
        sample_many(frames, mapping, workers=1, folder=tmp_path, progress=False, **RUN)
    # and free again
    assert len(sample_many(frames, mapping, workers=1, folder=tmp_path, progress=False, **RUN)) == 1


@pytest.mark.parametrize("changes", [{"thermal_response": True}, {"ensemble": "nve", "interval": 3}])
def test_results_survive_files(changes, toys, mapping, tmp_path):
    result = single(make_frames(1)[0], mapping, 0, calc=toys.Wells(), **changes)
    result.frame.info |= {"note": "a b", "list": [1, [2.5, None]], "flag": True, "size": np.float32(0.1)}
    write_result(tmp_path / "r.npz", result, {"x": 1})
    again = read_result(tmp_path / "r.npz")
    assert differences(result, again) == []
    assert np.array_equal(again.frame.get_forces(), result.forces)
    with pytest.raises(NotImplementedError):
        again.frame.get_potential_energy()
    for frame in (result.frame, again.frame):  # what a data set cannot hold
        assert frame.info.pop("list") == [1, [2.5, None]]
    ase_nepcg.write_dataset(tmp_path / "a.xyz", [result.frame])
    ase_nepcg.write_dataset(tmp_path / "b.xyz", [again.frame])
    assert (tmp_path / "a.xyz").read_bytes() == (tmp_path / "b.xyz").read_bytes()


@pytest.mark.parametrize("value", [object(), np.array([None]), {1: 2}, [{"x": object()}]])
def test_results_that_would_need_pickles_are_refused(value, toys, mapping, tmp_path):
    result = single(make_frames(1)[0], mapping, 0, calc=toys.Wells())
    result.frame.info["odd"] = value
    with pytest.raises(CheckpointError, match="info/odd: expected"):
        write_result(tmp_path / "r.npz", result)
    assert not (tmp_path / "r.npz").exists()


# ---- kills and interrupts -----------------------------------------------------------------------------------------


def test_interrupt_in_this_process_keeps_everything(toys, mapping, tmp_path):
    frames = make_frames(2)
    frames[0].calc, frames[1].calc = toys.Wells(), toys.Wells()
    frames[1].calc.parameters["last"], frames[1].calc.parameters["end"] = 200, "interrupt"
    settings = {"workers": 1, "seed": 5, "progress": False, **RUN}
    with pytest.raises(CampaignInterrupted) as caught:
        sample_many(frames, mapping, folder=tmp_path, **settings)
    assert isinstance(caught.value, KeyboardInterrupt)
    first, second = caught.value.results
    assert differences(first, single(frames[0], mapping, 0, calc=toys.Wells())) == []
    assert second is None
    assert (tmp_path / "00001.checkpoint.npz").exists()


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_workers_end_with_their_parent_and_a_rerun_goes_on(how, toys, mapping, tmp_path):
    """SIGKILL of the parent, Ctrl-C in a terminal: then the same bits as if nothing had happened."""
    path = script(tmp_path, {"workers": 2, "seed": 5})
    process = start(path, toys, TOY_DELAY="0.01")
    checkpoints = [tmp_path / "c" / f"{i:05d}.checkpoint.npz" for i in (0, 1)]
    until(lambda: all(file.exists() for file in checkpoints) or process.poll() is not None)
    assert len(family(process.pid)) >= 3
    begin = time.monotonic()
    if how == "kill":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    until(lambda: not family(process.pid), 25)
    assert time.monotonic() - begin < 30
    assert not list((tmp_path / "c").glob("*.result.npz"))
    if how == "interrupt":
        assert process.returncode in (1, -signal.SIGINT, 130)
        assert errors.rstrip().splitlines()[-1].endswith("CampaignInterrupted")
        assert errors.count("Traceback") == 1
    frames = make_frames(3, toys.Wells())
    results = sample_many(frames, mapping, workers=1, folder=tmp_path / "c", seed=5, progress=False, **RUN)
    for i in (0, 1, 2):
        assert differences(results[i], single(frames[i], mapping, i, calc=toys.Wells())) == []


def test_script_without_guard_is_told_so(toys, tmp_path):
    path = script(tmp_path, {"workers": 2}, guard=False)
    process = start(path, toys)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.count("Traceback") == 1
    assert "SamplingError: worker processes cannot start: put the part of the script" in errors
    assert 'if __name__ == "__main__":' in errors
    # multiprocessing's tracker of resources ends a moment later
    until(lambda: not family(process.pid), 25)


def test_script_from_standard_input_is_told_so(toys, mapping, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(SamplingError, match="there is no file <stdin>: write the script to a file, or use workers=1"):
        sample_many(make_frames(2), mapping, calculator=toys.Wells(), workers=2, progress=False, **RUN)


# ---- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"temperature": 300.0}, TypeError, "no keyword 'temperature'; did you mean 'temperature_K'?"),
        ({"checkpoint": "x"}, TypeError, "has its own in folder="),
        ({"time_ps": None}, ValueError, "when to stop"),
        ({"force_error": -1.0}, ValueError, "force_error: expected a positive number, got -1.0"),
        ({"time_ps": "long"}, ValueError, "time_ps: expected a positive number, got 'long'"),
        ({"ensemble": "npt"}, ValueError, "expected 'nvt' or 'nve', got 'npt': pressure and held beads"),
        ({"ensemble": "nve", "thermal_response": True}, ValueError, "needs ensemble='nvt'"),
        ({"workers": 0}, ValueError, "workers: expected a positive integer or None, got 0"),
        ({"threads": 1.5}, ValueError, "threads: expected a positive integer or None, got 1.5"),
        ({"on_error": "ignore"}, ValueError, "on_error: expected 'raise' or 'skip', got 'ignore'"),
        ({"frames": []}, ValueError, "at least one configuration"),
        ({"frames": ["a.xyz"]}, TypeError, "expected Atoms, got str as number 0"),
        ({"frames": "a.xyz"}, TypeError, "expected a list of Atoms, got str"),
        ({"frames": make_frames(2)}, ValueError, "configuration 0 has no calculator"),
        ({"mapping": "molecules"}, TypeError, "expected a Mapping, or a list of them, got str"),
        ({"mapping": []}, ValueError, "expected one, or 2 as there are frames, got 0"),
    ],
)
def test_bad_arguments(changes, error, message, toys, mapping, tmp_path):
    arguments = {"frames": make_frames(2, toys.Wells()), "mapping": mapping, "folder": tmp_path / "c", **RUN} | changes
    with pytest.raises(error) as caught:
        sample_many(arguments.pop("frames"), arguments.pop("mapping"), **arguments)
    assert message in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_temperature_is_needed(toys, mapping):
    with pytest.raises(TypeError, match="needs temperature_K="):
        sample_many(make_frames(1, toys.Wells()), mapping, time_ps=1.0)
