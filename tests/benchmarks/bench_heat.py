"""Thermal conductivity of a small crystal by a driving force (HNEMD) and from fluctuations (Green-Kubo): do they agree?

    python tests/benchmarks/bench_heat.py [--fast] [--threads N] [--output FILE.json]

108 atoms of an argon-like NEP (trained first, in some seconds, on Lennard-Jones forces of displaced crystals), fcc,
70 K. HNEMD at two field strengths, Green-Kubo along all three axes; errors from the scatter of the replicas. The
convective part of the current is small here, but part of both methods. About half an hour on one core; ``--fast`` is a
hundredth of that, to see that it runs.

At 40 K, where phonons travel farther, such fields are too strong: HNEMD gave 0.66(3) W/(m K) at 4e-3 1/Å and 0.74(2) at
8e-3 1/Å (16 x 300 ps), Green-Kubo 0.54(2) (24 x 300 ps).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg import NEP, __version__, analysis, train

TEMPERATURE_K, TIMESTEP_FS, CORRELATION_PS = 70.0, 5.0, 16.0
FIELDS = (3e-3, 6e-3)  # 1/Å
#: (replicas, ps) of each field, of Green-Kubo
LENGTHS = {"full": ((24, 400.0), (24, 400.0)), "fast": ((2, 3.0), (4, 40.0))}


def crystal(edge: float = 5.35):
    """Cubic cells of ``edge`` (Å)."""
    return bulk("Ar", "fcc", a=edge, cubic=True).repeat(3)


def model():
    """A NEP of argon, and its errors on frames it has not seen."""
    rng, frames = np.random.default_rng(1), []
    for k in range(16):
        atoms = crystal(5.2 + 0.2 * rng.random())
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05 + 0.01 * k, atoms.positions.shape)
        atoms.calc = LennardJones(sigma=3.405, epsilon=0.01032, rc=6.5, ro=5.0, smooth=True)
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.info["virial"] = -atoms.get_stress(voigt=False) * atoms.get_volume()
        atoms.calc = SinglePointCalculator(atoms, **found)
        frames.append(atoms)
    shape = {"cutoff": (6.5, 5.0), "n_max": (6, 2), "basis_size": (8, 6), "l_max": (2, 0, 0), "neurons": 10}
    settings = {"lambda_1": 1e-5, "lambda_2": 1e-5, "steps": 400, "seed": 1, "progress": False}
    training = train(frames[:14], test=frames[14:], **shape, **settings)
    return training.model, training.report(frames[14:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    (n_driven, driven_ps), (n_free, free_ps) = LENGTHS["fast" if arguments.fast else "full"]
    began, atoms = time.perf_counter(), crystal()
    trained, errors = model()
    print(f"errors of the model: {1000 * errors['force']:.1f} meV/Å, {errors['stress']:.3f} GPa")
    atoms.calc = NEP(trained, threads=arguments.threads)
    settings = {"temperature_K": TEMPERATURE_K, "timestep_fs": TIMESTEP_FS, "interval": 4, "progress": True}
    driven = analysis.hnemd(
        atoms,
        "x",
        fields_per_A=FIELDS,
        convective=True,
        replicas=n_driven,
        time_ps=driven_ps,
        seed=1,
        **settings,
    )
    free = analysis.green_kubo(
        atoms, correlation_ps=CORRELATION_PS, replicas=n_free, time_ps=free_ps, seed=2, **settings
    )
    rows = [
        (f"HNEMD, {field:g} 1/Å", kappa, error, f"{n_driven} x {driven_ps:g} ps")
        for field, kappa, error in zip(FIELDS, driven.kappa, driven.kappa_error, strict=True)
    ]
    rows.append(("Green-Kubo", free.kappa, free.kappa_error, f"{n_free} x {free_ps:g} ps, three axes"))
    print(f"{len(atoms)} atoms, {TEMPERATURE_K:g} K, {time.perf_counter() - began:.0f} s")
    for name, kappa, error, how in rows:
        print(f"  {name:20s} {kappa:7.3f} ± {error:.3f} W/(m K)  ({100 * error / kappa:.0f} %, {how})")
    for (name, kappa, error, _), (other, value, its, _) in ((rows[0], rows[1]), (rows[0], rows[2]), (rows[1], rows[2])):
        print(f"  {name} - {other}: {(kappa - value) / np.hypot(error, its):+.1f} standard errors")
    late = free.time_fs / 1000.0
    shown = [int(np.argmin(np.abs(late - t))) for t in np.linspace(0.125, 1, 8) * CORRELATION_PS]
    mean = free.running.mean(axis=0)
    print("  running integral:", ", ".join(f"{late[k]:.0f} ps {mean[k]:.3f}" for k in shown))
    if arguments.output:
        found = {
            "sites": len(atoms),
            "temperature_K": TEMPERATURE_K,
            "rows": [dict(zip(("method", "kappa", "error", "length"), row, strict=True)) for row in rows],
            "running_ps": late[shown].tolist(),
            "running": mean[shown].tolist(),
            "ase_nepcg": __version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
        }
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
