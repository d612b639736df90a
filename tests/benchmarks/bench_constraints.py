"""Time of FixBeads per adjustment and of ``atoms.copy()``, beside a list of ASE's FixSubsetCom that does the same.

    python tests/benchmarks/bench_constraints.py [--repeat N]

Groups of three atoms, 10 to 10000 groups; best of N repeats. Takes ten seconds; run it on an idle machine. The list
of FixSubsetCom does not even hold the centres (each moves all atoms), but it costs what a loop over groups costs. Exit
status 1 if a promise for 1000 groups is not kept.
"""

from __future__ import annotations

import argparse
import sys
import timeit

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixSubsetCom

from ase_nepcg import FixBeads

SIZES = (10, 100, 1000, 10000)
#: milliseconds for 1000 groups of three
BOUNDS = {"positions": 0.2, "momenta": 0.2, "forces": 0.2, "degrees": 0.2, "copy": 0.5}


def waters(n: int) -> Atoms:
    rng = np.random.default_rng(0)
    return Atoms("OH2" * n, positions=rng.uniform(0, 60, (3 * n, 3)), cell=[60, 60, 60], pbc=True)


def measure(atoms: Atoms, repeat: int) -> dict[str, float]:
    """Milliseconds of each operation of the constraints of ``atoms``."""
    values = atoms.positions + np.random.default_rng(1).normal(scale=0.01, size=(len(atoms), 3))

    def adjust(name):
        for constraint in atoms.constraints:
            getattr(constraint, f"adjust_{name}")(atoms, values)

    calls = {name: lambda name=name: adjust(name) for name in ("positions", "momenta", "forces")}
    calls |= {"degrees": atoms.get_number_of_degrees_of_freedom, "copy": atoms.copy}
    times = {}
    for name, call in calls.items():
        timer = timeit.Timer(call)
        number = max(1, int(1e-3 / max(timer.timeit(1), 1e-6)))  # too short to be interrupted often
        times[name] = 1e3 * min(timer.repeat(repeat, number)) / number
    return times


def print_row(label: str, n: int, times: dict[str, float]) -> None:
    print(f"{label:24} {n:>7} " + " ".join(f"{value:>10.3f}" for value in times.values()), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=200)
    args = parser.parse_args()
    print(f"{'milliseconds':24} {'groups':>7} " + " ".join(f"{name:>10}" for name in BOUNDS))
    ours = {}
    for n in SIZES:
        atoms, groups = waters(n), np.arange(3 * n).reshape(n, 3)
        atoms.set_constraint(FixBeads(groups))
        ours[n] = measure(atoms, args.repeat)
        print_row("FixBeads", n, ours[n])
        atoms.set_constraint([FixAtoms([1]), FixBeads(groups)])
        print_row("FixAtoms, FixBeads", n, measure(atoms, args.repeat))
        if n <= 1000:
            atoms.set_constraint([FixSubsetCom(group) for group in groups])
            print_row("FixSubsetCom (ASE)", n, measure(atoms, min(args.repeat, 5)))
    print("\npromises")
    for name, bound in BOUNDS.items():
        verdict = "kept" if ours[1000][name] < bound else "MISSED"
        print(f"  1000 groups, {name:12} {ours[1000][name]:>8.3f} ms  < {bound}  {verdict}")
    return 0 if all(ours[1000][name] < bound for name, bound in BOUNDS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
