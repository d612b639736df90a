"""The embedded all-atom model of water, ``ase_nepcg/data/water_aa.txt``: a small NEP trained on labels of a larger one.

    python tests/benchmarks/make_water_model.py FOLDER [--data DIR]

``--data``: folder of published models (by default ``shared/data/models`` beside the repository). Boxes of 64 molecules
at five densities and two temperatures are run with the small model (in the first round with the large one), frames of
them labelled by the large one (energy, forces, virial), and the small one is trained on all labels so far. Errors are
those on the frames of a last round, which no training has seen. Files in FOLDER are kept: interrupted, the same command
goes on. About an hour on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from make_water_frames import SHARED

from ase_nepcg import MD, NEP, NEPModel, read_dataset, train, write_dataset
from ase_nepcg.data import water_box
from ase_nepcg.md import Langevin
from ase_nepcg.training.loss import rmse
from ase_nepcg.training.predict import predict
from ase_nepcg.training.targets import Targets

LARGE = "water_OH_nep4.txt"
DENSITIES = (0.85, 1.0, 1.1, 1.2, 1.3)  # g/cm^3
TEMPERATURES = (300, 450)  # K
EARLY = (0.01, 0.2)  # ps
MELTED_PS, SPACING_PS = 3.0, 1.0
#: (frames of each run, steps of training) of each round; a last one tests
ROUNDS = ((8, 600), (6, 600), (6, 3000))
TEST = 4
SETTINGS = {"cutoff": (5.0, 3.5), "n_max": (5, 4), "basis_size": (8, 8), "l_max": (4, 2, 0), "neurons": 16}


def label(frames, model, path) -> list:
    """The frames with energies, forces and virials of ``model``, written to ``path`` once."""
    if not path.exists():
        calc = NEP(model)
        labelled = []
        for frame in frames():
            copy = frame.copy()
            copy.calc = calc
            found = {"energy": copy.get_potential_energy(), "forces": copy.get_forces(), "stress": copy.get_stress()}
            copy.calc = SinglePointCalculator(copy, **found)
            labelled.append(copy)
        write_dataset(path, labelled)
    return read_dataset(path)


def explore(model, count: int, seed: int) -> list:
    """Frames of a run at each density and temperature: ``EARLY`` ones, while the lattice melts, and ``count`` later."""
    runs, found = [], []
    for density in DENSITIES:
        for temperature in TEMPERATURES:
            atoms = water_box(4, density, seed + len(runs))
            atoms.calc = NEP(model)
            runs.append(MD(atoms, 0.5, Langevin(temperature, 0.01), seed=seed + len(runs), progress=False))
    batch = MD.batch(runs)
    for until in (*EARLY, *(MELTED_PS + SPACING_PS * np.arange(1, count + 1))):
        batch.run(round(1000 * until / 0.5) - batch.nsteps)
        found += [run.atoms.copy() for run in runs]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=SHARED)
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    large = arguments.data / LARGE
    frames, model = [], large
    for number, (count, steps) in enumerate(ROUNDS):
        new = label(
            lambda model=model, count=count, number=number: explore(model, count, 100 * number),
            large,
            folder / f"round{number}.xyz",
        )
        frames += new
        small = folder / f"model{number}.txt"
        if number:
            print(f"round {number}: {model.name} on new frames", errors(model, new), flush=True)
        if not small.exists():
            training = train(
                frames,
                **SETTINGS,
                steps=steps,
                lambda_e=1.0,
                lambda_f=1.0,
                lambda_v=1.0,
                seed=1,
                checkpoint=folder / f"train{number}.npz",
                progress=False,
            )
            training.model.write(small)
        model = small
    test = label(lambda: explore(model, TEST, 1000), large, folder / "test.xyz")
    print(f"{len(frames)} frames; errors on {len(test)} new ones:", errors(model, test))


def errors(path, frames) -> str:
    """RMSE of a model for labelled frames."""
    model = NEPModel.read(path)
    targets = Targets.from_frames(frames, model.species)
    found = rmse(targets, predict(model, targets))
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items())


if __name__ == "__main__":
    main()
