"""Mean-force frames of water, one bead per molecule, from 1 bar to 1 GPa: data to train and test a NEP-CG model with.

    python tests/benchmarks/make_water_frames.py FOLDER [--data DIR] [--large]

Writes ``train.xyz`` (20 frames of 64 beads, two at each of ten pressures), ``test.xyz`` (6 frames at other pressures)
and, with ``--large``, ``large.xyz`` (one frame of 512 beads at 0.5 GPa) into FOLDER. ``--data`` is the folder
``models`` of published models (by default ``shared/data/models`` beside the repository). Interrupted, the same command
goes on. About an hour on one core, with ``--large`` 20 minutes more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase.io import read, write

from ase_nepcg import NEP, Mapping, read_dataset, sample_many, write_dataset
from ase_nepcg.configurations import at_pressures

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "data" / "models"
MODEL = "water_OH_small_nep4.txt"
TEMPERATURE = 300
TRAIN = (1e-4, 0.1, 0.2, 0.32, 0.44, 0.56, 0.68, 0.8, 0.9, 1.0)  # GPa
TEST = (0.05, 0.15, 0.38, 0.5, 0.74, 0.95)


def lattice(folder: Path, edge: int = 4):
    """``edge``^3 molecules of the published configuration on a cubic lattice, 1 g/cm^3."""
    source = read(folder / "water_216.xyz")
    bound = Mapping.from_molecules(source, "Ar").bind(source)
    whole = bound.whole(source.positions, source.cell.array, source.pbc)
    size = (edge**3 * 18.015 / 0.602214) ** (1 / 3)
    grid = (np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5) * size / edge
    order = np.concatenate(bound.groups[: edge**3])
    atoms = source[order]
    atoms.positions = np.concatenate(
        [whole[g] - whole[g].mean(axis=0) + place for place, g in zip(grid, bound.groups[: edge**3], strict=True)]
    )
    atoms.set_cell([size] * 3)
    return atoms


def configurations(path: Path, atoms, calculator, temperature_K=TEMPERATURE, **settings) -> list:
    """Configurations at given pressures, made once and kept in ``path``."""
    if not path.exists():
        atoms.calc = calculator
        frames = at_pressures(atoms, temperature_K=temperature_K, timestep_fs=0.5, progress=False, **settings)
        for frame in frames:
            frame.calc = None
        write(path, frames)
    return read(path, ":")


def quarters(folder: Path, sites: int) -> list[float]:
    """Of each run: largest rms difference (eV/Å) between the mean forces of two of its quarters."""
    largest = []
    for path in sorted(folder.glob("*.checkpoint.npz")):
        with np.load(path) as stored:
            full = stored["count"][0]
            forces = (stored["sums"][:full] / stored["weights"][:full])[:, : 3 * sites]
        means = [part.mean(axis=0) for part in np.array_split(forces, 4)]
        largest.append(max(float(np.sqrt(((a - b) ** 2).mean())) for a in means for b in means))
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--large", action="store_true", help="also one frame of 512 beads")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    calculator = NEP(arguments.data / MODEL, threads=1)
    # 450 K first: at 300 K the hydrogen bonds of the lattice would take longer to be forgotten than the run lasts
    start = lattice(arguments.data)
    for name, temperature, time_ps in (("hot", 450, 15), ("melt", TEMPERATURE, 30)):
        settings = {"pressures_GPa": [0.5], "time_ps": time_ps, "seed": 1}
        start = configurations(folder / f"{name}.traj", start, calculator, temperature_K=temperature, **settings)[0]
    jobs = {
        "test": (start, {"pressures_GPa": TEST, "time_ps": 40, "seed": 3}, 100),
        "train": (start, {"pressures_GPa": TRAIN, "time_ps": 40, "frames": 2, "seed": 2}, 50),
    }
    if arguments.large:
        jobs["large"] = (start * (2, 2, 2), {"pressures_GPa": [0.5], "time_ps": 15, "seed": 4}, 30)
    for name, (start, settings, time_ps) in jobs.items():
        frames = configurations(folder / f"{name}.traj", start.copy(), calculator, **settings)
        mapping = Mapping.from_molecules(frames[0], {"H2O": "Ar"})
        results = sample_many(
            frames,
            mapping,
            calculator=calculator,
            workers=1,
            folder=folder / name,
            temperature_K=TEMPERATURE,
            time_ps=time_ps,
            seed=5,
        )
        write_dataset(folder / f"{name}.xyz", [result.frame for result in results])
        errors = np.concatenate([result.force_errors.ravel() for result in results])
        count = len(read_dataset(folder / f"{name}.xyz"))
        print(f"{name}: {count} frames, rms force error {np.sqrt((errors**2).mean()):.4f} eV/Å")
        apart = quarters(folder / name, results[0].forces.shape[0])
        print("  largest difference between quarters of a run (eV/Å):", *(f"{d:.3f}" for d in apart), flush=True)


if __name__ == "__main__":
    main()
