"""Models, structures and counters shared by the tests.

A kernel is compiled once for every shape of model (about ten seconds where it is not on disk yet), so the models here
have three shapes only.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from ase_nepcg import NEP, NEPModel, devices, testing, write_dataset

if devices.driver_version() is None:
    # without a GPU its kernels run in numba's simulator; numba reads this when it is imported
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")
    # the simulator waits for its threads in a loop that keeps the interpreter to itself for this long (default 5 ms)
    sys.setswitchinterval(5e-4)

ALL_TERMS = {
    "n_max": (3, 2),
    "basis_size": (6, 5),
    "l_max": (5, 1, 1, 1, 1, 1, 1),
    "neurons": (7, 6),
    "temperature": True,
    "cutoff": {"O": (6.0, 4.0), "H": (5.0, 3.5)},
}


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take more than a minute")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --run-slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Ctrl-C as in a terminal: a process that a shell started in the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def models() -> dict[str, NEPModel]:
    """name -> model with random parameters, of the species O and H if not said otherwise.

    plain, nep3, nep5, beads (free labels) and single (one species) have the default shape; zbl the same with the
    repulsion at short distances; full has all many-body terms, two hidden layers, cutoffs per type and a temperature.
    """
    return {
        "plain": NEPModel.random(["O", "H"], seed=1),
        "nep3": NEPModel.random(["O", "H"], seed=2, version=3),
        "nep5": NEPModel.random(["O", "H"], seed=3, version=5),
        "beads": NEPModel.random(["W1", "a-long-tail-bead"], seed=4),
        "single": NEPModel.random(["O"], seed=5),
        "zbl": NEPModel.random(["O", "H"], seed=6, zbl=(1.2, 2.4)),
        "full": NEPModel.random(["O", "H"], seed=7, **ALL_TERMS),
    }


@pytest.fixture(scope="session")
def make_calculator(models):
    """Function: name of a model (and keywords) -> a new calculator."""

    def make(name="plain", **keywords):
        if models[name].temperature:
            keywords.setdefault("temperature_K", 300.0)
        return NEP(models[name], **{"threads": 1} | keywords)

    return make


@pytest.fixture
def structures():
    """The structures of the conformance kit with the species O and H, new for each test."""
    return testing.structures(["O", "H"])


@pytest.fixture
def atoms(structures):
    """Twelve sites O and H in a periodic triclinic cell."""
    return structures["triclinic"]


@pytest.fixture
def many(atoms):
    """324 sites, i.e. several chunks of the kernel, disordered."""
    many = atoms.repeat(3)
    many.rattle(0.1, seed=3)
    return many


@pytest.fixture
def evaluations(monkeypatch):
    """A list that grows by one entry (the geometry) with every evaluation of a model."""
    from ase_nepcg.potential.evaluate import Evaluator

    calls = []
    original = Evaluator.__call__

    def counted(self, geometry, **keywords):
        calls.append(geometry)
        return original(self, geometry, **keywords)

    monkeypatch.setattr(Evaluator, "__call__", counted)
    return calls


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def toys():
    """The module ``toys.py``: potentials whose averages at held sites are known."""
    import toys

    return toys


#: settings of a quickstart that is done in seconds: 8 molecules, and everything as short as it can be
TINY = {
    "edge": 2,
    "densities": (1.0, 1.1),
    "melt_ps": 0.05,
    "equilibration_ps": 0.05,
    "time_ps": 0.4,
    "record_fs": 10.0,
    "frames": 2,
    "test_frames": 1,
    "frame_ps": 0.05,
    "frame_equilibration_ps": 0.01,
    "steps": 5,
    "bead_equilibration_ps": 0.1,
    "bead_time_ps": 1.0,
    "timing_s": 0.01,
}


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def journey(tmp_path_factory):
    """(folder, numbers, lines told) of a finished quickstart; not to be changed."""
    from ase_nepcg.quickstart import quickstart

    folder, lines = tmp_path_factory.mktemp("quickstart") / "water", []
    numbers = quickstart(
        folder, workers=1, threads=1, progress=False, tell=lines.append, name="<b>water</b> & co", command="x<y", **TINY
    )
    return folder, numbers, lines


@pytest.fixture(scope="session")
def training_data(tmp_path_factory) -> Path:
    """A folder with train.xyz and test.xyz for ``training_folder``."""
    import training_twin
    from training_folders import SPECIES

    path = tmp_path_factory.mktemp("data")
    write_dataset(path / "train.xyz", training_twin.random_frames(1, 7, SPECIES, temperatures=True))
    write_dataset(path / "test.xyz", training_twin.random_frames(2, 3, SPECIES))
    return path


@pytest.fixture
def training_folder(training_data, tmp_path):
    """Function: name of a folder, with or without test.xyz, keywords of nep.in -> the folder, with nep.in in it."""
    from training_folders import nep_in

    def make(name="a", *, test=False, **changes) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for name in ["train.xyz", "test.xyz"][: 1 + test]:
            shutil.copy(training_data / name, folder)
        (folder / "nep.in").write_text(nep_in(**changes))
        return folder

    return make


@pytest.fixture
def saved_often(monkeypatch):
    """A checkpoint after every step of a training."""
    monkeypatch.setattr("ase_nepcg.training.fit._CHECKPOINT_INTERVAL", -1.0)
