"""Folders with ``nep.in`` for the tests, and runs in them.

One shape of model, that called "small" in ``training_shapes.py``, and "thermal" for the temperature.
"""

import os
import signal

import numpy as np

from ase_nepcg import NEPModel
from ase_nepcg.nepfile import write_restart
from ase_nepcg.training.files import OUT_FILES
from ase_nepcg.training.folder import CHECKPOINT, train_folder

SPECIES = ("O", "H")
SHAPE = {"n_max": (2, 1), "basis_size": (3, 2), "l_max": (3, 1, 0), "neurons": 3, "cutoff": (4.0, 3.0)}
NEP_IN = {
    "type": "2 O H",
    "cutoff": "4 3",
    "n_max": "2 1",
    "basis_size": "3 2",
    "l_max": "3 1 0",
    "neuron": "3",
    "population": "10",
    "generation": "40",
    "output_interval": "10",
}
RESULTS = {f"{quantity}_train.out" for quantity in OUT_FILES} | {"loss.out", "nep.txt", "nep.restart"}
# an earlier loss.out
EARLIER = "".join(f"{g:<8d}" + "0.50000    " * 3 + "0.25000      " * 6 + "\n" for g in (100, 200))


def nep_in(**changes) -> str:
    return "".join(f"{name} {value}\n" for name, value in (NEP_IN | changes).items() if value is not None)


def run(folder, **keywords):
    remarks = []
    done = train_folder(folder, **{"seed": 5, "threads": 1, "progress": False, "tell": remarks.append} | keywords)
    return done, remarks


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def results(folder) -> dict[str, bytes]:
    """All but the checkpoint, in which there are times."""
    return {name: content for name, content in contents(folder).items() if name != CHECKPOINT}


class Killed(Exception):
    pass


def killed_at(step):
    def on_report(report):
        if report.step == step:
            raise Killed

    return on_report


def stopped_at(step):
    def on_report(report):
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_report


def narrow_restart(folder, sigma=1e-9) -> np.ndarray:
    """A nep.restart around some parameters, which are returned."""
    mu = NEPModel.random(SPECIES, seed=9, **SHAPE).parameters()
    write_restart(folder / "nep.restart", mu, np.full(len(mu), sigma))
    return mu
