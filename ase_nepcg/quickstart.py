"""``nepcg quickstart``: a short run on the embedded bead model, to see that everything works."""

from __future__ import annotations

import time

__all__ = ["Quickstart", "run"]


class Quickstart:
    """A short constant-energy run of beads with the embedded model (random parameters: it shows that the
    installation works and how fast it is, not how water moves).

    The first evaluation compiles the kernels, which takes some seconds; they are kept on disk for the next run.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument(
            "--edge", type=int, default=10, metavar="N", help="beads per box edge, N^3 in all (default 10)"
        )
        parser.add_argument("--steps", type=int, default=200, help="MD steps (default 200)")
        parser.add_argument("--timestep-fs", type=float, default=2.0, help="time step in fs (default 2)")
        parser.add_argument("--temperature-K", type=float, default=300.0, help="initial temperature in K (default 300)")
        parser.add_argument("--seed", type=int, default=0, help="seed of positions and velocities (default 0)")
        parser.add_argument("--threads", type=int, default=None, help="threads (default: all cores)")

    @staticmethod
    def run(args):
        from .cli import UsageError

        for name, low in (("edge", 1), ("steps", 1), ("threads", 1), ("timestep_fs", 1e-6), ("temperature_K", 0.0)):
            value = getattr(args, name)
            if value is not None and not low <= value < float("inf"):
                raise UsageError(f"--{name.replace('_', '-')}: expected at least {low:g}, got {value:g}")
        run(args.edge, args.steps, args.timestep_fs, args.temperature_K, args.seed, args.threads)


def run(edge=10, steps=200, timestep_fs=2.0, temperature_K=300.0, seed=0, threads=None) -> dict:
    """Velocity Verlet on ``edge^3`` beads; prints a table and returns its last figures.

    Keys: ``drift`` (eV per bead, largest deviation of the total energy from its start), ``us_per_bead`` (µs per bead
    and step, everything included), ``first_s`` (s, first evaluation).
    """
    import numpy as np
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from .calculator import NEP
    from .data import WATER_BEAD, water_beads

    atoms = water_beads(edge, seed)
    atoms.calc = NEP(WATER_BEAD, threads=threads)
    rng = np.random.default_rng(seed)
    momenta = rng.normal(size=(len(atoms), 3)) * np.sqrt(units.kB * temperature_K * atoms.get_masses())[:, None]
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    print(f"{len(atoms)} beads, {steps} steps of {timestep_fs:g} fs at constant energy, {atoms.calc.model!r}")
    start = time.perf_counter()
    atoms.get_forces()
    first = time.perf_counter() - start
    print(f"first evaluation: {first:.2f} s (compiles the kernels unless they are on disk)\n")
    print("   step   potential     kinetic       total   temperature")
    print("             eV/bead     eV/bead     eV/bead             K")
    total = []

    def report():
        potential, kinetic = atoms.get_potential_energy() / len(atoms), atoms.get_kinetic_energy() / len(atoms)
        total.append(potential + kinetic)
        temperature = atoms.get_temperature()
        print(f"{dynamics.nsteps:7d} {potential:11.6f} {kinetic:11.6f} {total[-1]:11.6f} {temperature:13.1f}")

    dynamics = VelocityVerlet(atoms, timestep_fs * units.fs)
    interval = max(steps // 10, 1)
    dynamics.attach(report, interval=interval)
    start = time.perf_counter()
    dynamics.run(steps)
    rate = (time.perf_counter() - start) / steps / len(atoms) * 1e6
    drift = float(np.abs(np.array(total) - total[0]).max())
    print(f"\nlargest change of the total energy: {drift:.1e} eV/bead")
    print(f"{rate:.2f} µs per bead and step, everything included")
    return {"drift": drift, "us_per_bead": rate, "first_s": first}
