"""Engine for runs with held sites whose forces come from any ASE calculator; also for rigid molecules."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.constraints import FixBondLengths, FixLinearTriatomic

from ..constraints import FixBeads
from ..potential.evaluate import EvaluationError
from .loop import PHASE, complete_step, ensemble_kernels
from .noise import fill_normals

__all__ = ["CalculatorEngine"]

_RIGID = (FixBondLengths, FixLinearTriatomic)


class CalculatorEngine:
    """Advances a :class:`~ase_nepcg.md.held.HeldRun` by the forces of ``atoms.calc``, one step per call.

    ``atoms`` belong to the engine; ``groups`` are held. Their constraints may be ``FixBondLengths`` and
    ``FixLinearTriatomic`` (rigid molecules): steps then go through ASE's constraints, with each half drift followed by
    the correction of positions and velocities (g-BAOAB of Leimkuhler & Matthews, Proc. R. Soc. A 472, 20160138, 2016,
    with one half drift each).

    ``has_virial``: whether the calculator gives a stress; known after :meth:`begin`.
    """

    def __init__(self, atoms, groups=()):
        self.atoms = atoms
        self.has_virial = False
        self._same_atoms = False
        self.rigid = [constraint for constraint in atoms.constraints if isinstance(constraint, _RIGID)]
        self._constraints = [*self.rigid, *([FixBeads(groups)] if len(groups) else [])] if self.rigid else []
        # in the atoms, where each looks for the others
        atoms.set_constraint(self._constraints)

    def begin(self, run) -> float:
        """Forces at the present positions into ``run.f``; returns the potential energy."""
        self._place(run.x)
        if self.rigid:
            self._settle(run)
        energy, run.f[:] = self._evaluate(run)
        run.state.energy[0] = energy
        if self.atoms.cell.rank == 3:
            # asked last: a calculator that cannot do these atoms at all may say so with the same exception
            try:
                self.atoms.calc.get_property("stress", self.atoms)
                self.has_virial = True
            except (PropertyNotImplementedError, NotImplementedError):
                pass
        return energy

    def advance(self, run, last_step: int, sample_from: int) -> None:
        """One step; it is sampled if it comes after ``sample_from``.

        Raises EvaluationError for forces and energies that are not finite; ``run.rewind()`` leads back to the beginning
        of the step.
        """
        if run.step >= last_step:
            return
        self._place(run.x)
        run.sample_after(sample_from)
        old = run.backup
        old.x[:], old.v[:], old.f[:], old.cell[:], old.q[:] = run.x, run.v, run.f, run.state.cell, run.q
        run.progress[PHASE] = 1
        if self.rigid:
            self._begin_rigid(run)
        else:
            ensemble_kernels(run.ensemble)[0](run.state, run.h, run.p, run.q, run.step + 1)
        run.state.energy[0], run.f[:] = self._evaluate(run)
        if self.rigid:
            self._kick(run)
        end = 0 if self.rigid else run.addresses()[1]
        complete_step(end, run.state, run.h, run.p, run.q, run.progress, run.calendar)

    # --- forces ---------------------------------------------------------------------------------------------------

    def _place(self, x):
        self.atoms.positions[:] = x

    def _evaluate(self, run) -> tuple[float, np.ndarray]:
        """Energy and raw forces at ``run.x``; the virial goes into ``run.virial``."""
        self._place(run.x)
        atoms, get = self.atoms, self._properties()
        if self.has_virial:
            stress = np.asarray(get("stress"), float)
            if stress.shape == (6,):
                xx, yy, zz, yz, xz, xy = stress
                stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
            run.virial[:] = (-atoms.get_volume() * stress).ravel()
        forces, energy = np.asarray(get("forces"), float), float(get("energy"))
        if forces.shape != run.x.shape:
            raise EvaluationError(f"forces: expected shape {run.x.shape} from the calculator, got {forces.shape}")
        for name, value in (("force on atom", forces), ("energy", np.array([energy])), ("virial", run.virial)):
            bad = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))
            if len(bad):
                which = f"{name} {bad[0]}" if value is forces else name
                raise EvaluationError(f"the {which} is not finite: {value[bad[0]]}")
        return energy, forces

    def _properties(self):
        """Function: name -> property at the present positions, all from one calculation."""
        calculator, atoms = self.atoms.calc, self.atoms
        if not (self._same_atoms and isinstance(calculator, Calculator)):
            self._same_atoms = True
            return lambda name: calculator.get_property(name, atoms)
        # what get_property would find out at some cost for each property: nothing but the positions has changed
        names = ["energy", "forces", *(["stress"] if self.has_virial else [])]
        calculator.calculate(atoms, names, ["positions"])
        return calculator.results.__getitem__

    # --- rigid molecules ------------------------------------------------------------------------------------------

    def _correct(self, x):
        for constraint in self._constraints:
            constraint.adjust_positions(self.atoms, x)

    def _project(self, run):
        momenta = run.v / run.state.w[:, None]
        for constraint in self._constraints:
            constraint.adjust_momenta(self.atoms, momenta)
        run.v[:] = momenta * run.state.w[:, None]

    def _settle(self, run):
        """Positions and velocities that obey the rigid bonds."""
        x = run.x.copy()
        self._correct(x)
        run.x[:] = x
        self._place(run.x)
        self._project(run)

    def _kick(self, run):
        forces = run.f.copy()
        for constraint in self.rigid:
            if hasattr(constraint, "redistribute_forces_md"):
                constraint.redistribute_forces_md(self.atoms, forces)
        run.v[:] += 0.5 * run.h * run.state.w[:, None] * forces
        self._project(run)

    def _drift(self, run, h):
        x = run.x + h * run.v
        self._correct(x)
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
            run.v[:] = run.c * run.v + np.sqrt((1.0 - run.c**2) * run.kT * run.state.w)[:, None] * noise
            self._project(run)
            self._drift(run, 0.5 * run.h)
        else:
            self._drift(run, run.h)
