"""Engine for runs with held sites whose forces come from any ASE calculator; also for rigid molecules."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixBondLengths, FixLinearTriatomic

from ..constraints import FixBeads
from ..potential.evaluate import EvaluationError
from .integrate import step_begin
from .loop import PHASE, complete_step
from .noise import fill_normals

__all__ = ["CalculatorEngine"]

_RIGID = (FixBondLengths, FixLinearTriatomic)


class CalculatorEngine:
    """Advances a :class:`~ase_nepcg.md.held.HeldRun` by the forces of ``atoms.calc``, one step per call.

    ``atoms`` belong to the engine. Their constraints may be ``FixBondLengths`` and ``FixLinearTriatomic`` (rigid
    molecules): steps then go through ASE's constraints, with each half drift followed by the correction of positions
    and velocities (g-BAOAB of Leimkuhler & Matthews, Proc. R. Soc. A 472, 20160138, 2016, with one half drift each).

    ``has_virial``: whether the calculator gives a stress; known after :meth:`begin`.
    """

    def __init__(self, atoms):
        self.atoms = atoms
        self.has_virial = False
        self.rigid = [constraint for constraint in atoms.constraints if isinstance(constraint, _RIGID)]
        atoms.set_constraint()

    def begin(self, run) -> float:
        """Forces at the present positions into ``run.f``; returns the potential energy."""
        self._place(run.x)
        volume = self.atoms.cell.rank == 3
        try:
            if volume:
                self.atoms.calc.get_property("stress", self.atoms)
            self.has_virial = volume
        except (PropertyNotImplementedError, NotImplementedError):
            self.has_virial = False
        if self.rigid:
            self._settle(run)
        energy, run.f[:] = self._evaluate(run)
        return energy

    def advance(self, run, last_step: int, sample_from: int) -> None:
        """One step; it is sampled if it comes after ``sample_from``.

        Raises EvaluationError for forces and energies that are not finite; ``run.rewind()`` leads back to the beginning
        of the step.
        """
        if run.step >= last_step:
            return
        run.backup[:] = run.x, run.v, run.f
        run.progress[PHASE] = 1
        if self.rigid:
            self._begin_rigid(run)
        else:
            step_begin(
                *(run.x, run.v, run.f, run.w, *run.groups, run.centre[: run.bound.n_sites]),
                *(run.h, run.c, run.kT, run.seed, run.step + 1),
            )
        energy, forces = self._evaluate(run)
        run.f[:] = forces
        if self.rigid:
            self._kick(run)
        complete_step(
            *(not self.rigid, run.h, *run.groups, sample_from, run.interval, run.progress, run.x, run.v, run.f, run.w),
            *(run.centre, run.anchor, run.is_site, run.implicit_share, energy, run.reference, run.virial, run.y),
            *run.table.arrays,
        )

    # --- forces ---------------------------------------------------------------------------------------------------

    def _place(self, x):
        self.atoms.positions[:] = x

    def _evaluate(self, run) -> tuple[float, np.ndarray]:
        """Energy and raw forces at ``run.x``; the virial goes into ``run.virial``."""
        self._place(run.x)
        calculator, atoms = self.atoms.calc, self.atoms
        if self.has_virial:
            stress = np.asarray(calculator.get_property("stress", atoms), float)
            if stress.shape == (6,):
                xx, yy, zz, yz, xz, xy = stress
                stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
            run.virial[:] = (-atoms.get_volume() * stress).ravel()
        forces = np.asarray(calculator.get_property("forces", atoms), float)
        energy = float(calculator.get_property("energy", atoms))
        if forces.shape != run.x.shape:
            raise EvaluationError(f"forces: expected shape {run.x.shape} from the calculator, got {forces.shape}")
        for name, value in (("force on atom", forces), ("energy", np.array([energy])), ("virial", run.virial)):
            bad = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))
            if len(bad):
                which = f"{name} {bad[0]}" if value is forces else name
                raise EvaluationError(f"the {which} is not finite: {value[bad[0]]}")
        return energy, forces

    # --- rigid molecules ------------------------------------------------------------------------------------------

    def _held(self, run):
        return [FixBeads(list(run.bound.groups)), *self.rigid]

    def _settle(self, run):
        """Positions and velocities that obey the rigid bonds."""
        x = run.x.copy()
        self._correct(run, x)
        run.x[:] = x
        self._place(run.x)
        self._project(run)

    def _correct(self, run, x):
        for constraint in self._held(run):
            constraint.adjust_positions(self.atoms, x)

    def _project(self, run):
        momenta = run.v / run.w[:, None]
        for constraint in self._held(run):
            constraint.adjust_momenta(self.atoms, momenta)
        run.v[:] = momenta * run.w[:, None]

    def _kick(self, run):
        forces = run.f.copy()
        for constraint in self.rigid:
            if hasattr(constraint, "redistribute_forces_md"):
                constraint.redistribute_forces_md(self.atoms, forces)
        run.v += 0.5 * run.h * run.w[:, None] * forces
        self._project(run)

    def _drift(self, run, h):
        x = run.x + h * run.v
        self._correct(run, x)
        run.v[:] = (x - run.x) / h
        run.x[:] = x
        self._place(run.x)
        self._project(run)

    def _begin_rigid(self, run):
        self._kick(run)
        if run.c < 1.0:
            self._drift(run, 0.5 * run.h)
            noise = np.empty_like(run.v)
            fill_normals(run.seed, run.step + 1, noise)
            run.v[:] = run.c * run.v + np.sqrt((1.0 - run.c**2) * run.kT * run.w)[:, None] * noise
            self._project(run)
            self._drift(run, 0.5 * run.h)
        else:
            self._drift(run, run.h)
