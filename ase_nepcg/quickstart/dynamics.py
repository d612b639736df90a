"""Runs at constant volume and temperature that a killed program takes up where they were.

With :class:`~ase_nepcg.NEP` calculators all runs of a phase advance together (``MD.batch``), each with its own
checkpoint; with others, one after the other by ASE's Langevin driver, whose state is kept here. Either way a run that
was interrupted ends with the same bits as one that was not, if the calculator's forces depend on positions only
(to the last bit they also depend on neighbour lists that some calculators keep for several steps).
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import Trajectory
from ase.md.langevin import Langevin as AseLangevin
from tqdm import tqdm

from ..calculator import NEP
from ..checkpoint import read_checkpoint, write_checkpoint
from ..md import MD, Langevin
from ..nepfile import write_atomically
from .settings import QuickstartError

__all__ = ["Phase", "advance", "with_threads", "write_trajectory"]

_KIND = "quickstart run"
# checkpoints of a phase, and seconds after which there is one in any case
_PARTS, _SECONDS = 10, 60.0
# times the temperature wanted
_TOO_HOT = 5.0


@dataclass(frozen=True)
class Phase:
    """What the runs of a phase have in common: ``NAME_k.npz`` (state) and, with ``record`` > 0, ``NAME_k.traj``."""

    folder: Path
    name: str
    timestep_fs: float
    temperature_K: float
    friction_per_fs: float
    steps: int
    seed: int
    record: int = 0  #: steps between frames
    observers: tuple = ()  #: (observer, interval); NEP only
    threads: int | None = None
    progress: bool = True

    def file(self, k: int, suffix: str) -> Path:
        return self.folder / f"{self.name}_{k}{suffix}"

    def seed_of(self, k: int) -> int:
        # of its own in every phase: noise that repeats itself would drive two phases alike
        return int(np.random.SeedSequence([self.seed, k, *self.name.encode()]).generate_state(1)[0])


def advance(phase: Phase, starts) -> list:
    """Run every configuration of ``starts``, with the calculators they have, to the end of the phase.

    Returns pairs (atoms, results of the observers). What was reached in an earlier call is not done again.
    """
    if all(isinstance(start.calc, NEP) for start in starts):
        return _compiled(phase, starts)
    return [(_by_ase(phase, k, start), []) for k, start in enumerate(starts)]


def _compiled(phase: Phase, starts) -> list:
    runs = []
    for k, start in enumerate(starts):
        path = phase.file(k, ".npz")
        calc = with_threads(start.calc, phase.threads)
        if path.exists():
            runs.append(MD.restart(path, calc=calc, progress=phase.progress))
            continue
        copy = start.copy()
        copy.calc = calc
        run = MD(
            copy,
            phase.timestep_fs,
            Langevin(phase.temperature_K, phase.friction_per_fs),
            trajectory=phase.file(k, ".traj") if phase.record else None,
            loginterval=phase.record or 1,
            checkpoint=path,
            checkpoint_interval=max(1, phase.steps // _PARTS),
            seed=phase.seed_of(k),
            progress=phase.progress,
        )
        for observer, interval in phase.observers:
            run.attach(observer, interval)
        runs.append(run)
    # killed between two checkpoints of the same step: alone a run gives the same bits
    reached = max(run.nsteps for run in runs)
    for run in runs:
        if run.nsteps < reached:
            run.run(reached - run.nsteps)
    if reached < phase.steps:
        MD.batch(runs).run(phase.steps - reached)
    ends = []
    for run in runs:
        run.close()
        ends.append((run.atoms, [handle.results() for handle in run.handles]))
    return ends


def _by_ase(phase: Phase, k: int, start) -> Atoms:
    """One run with ASE's driver."""
    path = phase.file(k, ".npz")
    atoms = start.copy()
    atoms.calc = start.calc
    rng = np.random.default_rng(phase.seed_of(k))
    step, frames = 0, {"positions": [], "momenta": [], "forces": [], "stress": []}
    if path.exists():
        header, arrays = read_checkpoint(path, _KIND)
        step = header["step"]
        rng.bit_generator.state = json.loads(header["rng"])
        atoms.set_positions(arrays["now_positions"])
        atoms.set_momenta(arrays["now_momenta"])
        frames = {name: list(arrays[name]) for name in frames}
    dynamics = AseLangevin(
        atoms,
        phase.timestep_fs * units.fs,
        temperature_K=phase.temperature_K,
        friction=phase.friction_per_fs / units.fs,
        fixcm=False,
        rng=rng,
    )
    part = max(1, phase.steps // _PARTS)
    stride = phase.record or part
    written = time.monotonic()

    def keep():
        if phase.record:
            frames["positions"].append(atoms.positions.copy())
            frames["momenta"].append(atoms.get_momenta())
            frames["forces"].append(atoms.get_forces())
            frames["stress"].append(atoms.get_stress())

    if step == 0 and not path.exists():
        keep()
    with tqdm(total=phase.steps, initial=step, unit="step", disable=None if phase.progress else True) as bar:
        while step < phase.steps:
            target = min(phase.steps, (step // stride + 1) * stride, (step // part + 1) * part)
            dynamics.run(target - step)
            bar.update(target - step)
            step = target
            if step % stride == 0:
                keep()
            if step % part == 0 or step == phase.steps or time.monotonic() - written > _SECONDS:
                _refuse_nonsense(phase, k, step, atoms)
                written = time.monotonic()
                now = {"now_positions": atoms.positions, "now_momenta": atoms.get_momenta()}
                stacked = {name: np.array(values) for name, values in frames.items()}
                state = json.dumps(rng.bit_generator.state)
                write_checkpoint(path, _KIND, {"step": step, "rng": state}, now | stacked)
    if phase.record:
        write_trajectory(
            phase.file(k, ".traj"),
            (_frame(atoms, *recorded) for recorded in zip(*frames.values(), strict=True)),
            {"timestep": phase.timestep_fs * units.fs, "interval": phase.record},
        )
    return atoms


def _refuse_nonsense(phase: Phase, k: int, step: int, atoms) -> None:
    """Raise :class:`QuickstartError` for a run that has exploded; its older checkpoint stays."""
    temperature = atoms.get_temperature()
    if not np.isfinite(atoms.positions).all() or not temperature < _TOO_HOT * phase.temperature_K:
        raise QuickstartError(
            f"{phase.name}, box {k}: {temperature:.4g} K after step {step} of a run at {phase.temperature_K:g} K; the "
            f"time step of {phase.timestep_fs:g} fs is too long, or atoms overlap at the start"
        )


def _frame(atoms, positions, momenta, forces, stress) -> Atoms:
    """A copy of ``atoms`` with what was recorded of it."""
    image = atoms.copy()
    image.set_positions(positions)
    image.set_momenta(momenta)
    image.calc = SinglePointCalculator(image, forces=forces, stress=stress)
    return image


def write_trajectory(path, frames, description: dict | None = None) -> None:
    """Write ``frames`` to a .traj file, which keeps every bit of them, in one go."""
    buffer = io.BytesIO()
    with Trajectory(buffer, "w") as writer:
        if description is not None:
            writer.set_description(description)
        for frame in frames:
            writer.write(frame)
        content = buffer.getvalue()
    write_atomically(path, content)


def with_threads(calc: NEP, threads: int | None) -> NEP:
    """A calculator of the same model and settings with ``threads``, None: as many as it has."""
    own = calc.parameters
    return NEP(
        calc.model,
        device=own.device,
        precision=own.precision,
        threads=threads or own.threads,
        temperature_K=own.temperature_K,
    )
