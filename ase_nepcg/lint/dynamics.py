"""Checks of the linter on what moves the atoms: constraints, calculators, and the drivers of :mod:`ase.md`.

What is said about ASE was verified with version 3.29: by its source where that decides, else by short runs of harmonic
molecules with held centres (numbers in :func:`check_dynamics`). Classes are recognised by name: none is imported.
"""

from __future__ import annotations

import numpy as np

from ..errors import NepCGError
from .findings import Finding, plural

__all__ = ["check_calculator", "check_constraints", "check_dynamics"]

_RIGID = ("FixBondLengths", "FixLinearTriatomic", "FixInternals")
_PINNING = ("FixAtoms", "FixCartesian", "FixScaled", "FixedLine", "FixedPlane")
_MTK = ("IsotropicMTKNPT", "MTKNPT")
_BERENDSEN_NPT = ("NPTBerendsen",)
_MELCHIONNA = ("MelchionnaNPT", "NPT")


# ---- constraints and calculator -----------------------------------------------------------------------------------


def check_constraints(system) -> list[Finding]:
    """Constraints of the atoms that do not go with held beads."""
    findings = _check_held(system)
    for constraint in system.atoms.constraints:
        name = type(constraint).__name__
        if _is(constraint, "FixBeads"):
            continue
        if _is(constraint, *_RIGID):
            findings += _check_rigid(system, constraint, name)
        elif _is(constraint, *_PINNING):
            findings += _check_pinned(system, constraint, name)
        else:
            reason = (
                "held beads fix centres of mass already, and FixBeads refuses it where they do not"
                if _is(constraint, "FixCom")
                else "it acts while the mean force is sampled, so that the average is not that of the potential alone"
            )
            findings.append(Finding("warning", "other-constraint", f"{name}: {reason}; remove it before sampling"))
    return findings


def _check_held(system) -> list[Finding]:
    """What to know where beads are held already, and whether they are those of the mapping."""
    constraints = [constraint for constraint in system.atoms.constraints if _is(constraint, "FixBeads")]
    if not constraints:
        return []
    held = {tuple(np.sort(group).tolist()) for constraint in constraints for group in constraint.groups}
    wanted = {tuple(group.tolist()) for group in system.groups}
    advice = (
        "with held beads use VelocityVerlet, Langevin(fixcm=False) or Bussi; NoseHooverChainNVT and MelchionnaNPT "
        "miscount degrees of freedom, Langevin(fixcm=True) and Andersen sample the wrong temperature, barostats do "
        "not apply (ase_nepcg.lint.check_dynamics(dyn) tells)"
    )
    findings = [Finding("note", "held-beads", advice)]
    if held != wanted:
        sites = [k for k, group in enumerate(system.groups) if tuple(group.tolist()) not in held]
        findings.append(
            system.finding(
                "error",
                "other-beads-held",
                f"FixBeads holds {plural(len(held), 'group')} that are not those of the mapping "
                f"({plural(len(wanted), 'site')}): use FixBeads(mapping), or remove it",
                sites,
            )
        )
    return findings


def _check_rigid(system, constraint, name: str) -> list[Finding]:
    anchors = system.bound.anchor_of
    parts = [np.asarray(part) for part in _rigid_parts(constraint)]
    across = [part for part in parts if len(np.unique(anchors[part])) > 1 and not system.left_out[part].any()]
    if not across:
        return []
    atoms = np.unique(np.concatenate(across))
    sites = np.unique(anchors[atoms])
    return [
        system.finding(
            "error",
            "rigid-between-beads",
            f"{name}: {plural(len(across), 'rigid bond')} between atoms of different beads: the sum of forces is then "
            "not the mean force; put rigidly connected atoms into one bead, or keep these bonds flexible",
            sites[sites < len(system.groups)],
            atoms,
        )
    ]


def _rigid_parts(constraint) -> list:
    """Sets of atoms whose distances or angles are fixed."""
    if _is(constraint, "FixBondLengths"):
        return list(constraint.pairs)
    if _is(constraint, "FixLinearTriatomic"):
        return list(constraint.triples)
    plain = [indices for _, indices in (*constraint.bonds, *constraint.angles, *constraint.dihedrals)]
    return plain + [[index for *term, _ in terms for index in term] for _, terms in constraint.bondcombos]


def _check_pinned(system, constraint, name: str) -> list[Finding]:
    pinned = np.unique(np.asarray(constraint.get_indices(), dtype=np.int64))
    inside = pinned[~system.bound.is_site[pinned] & ~system.left_out[pinned]]
    if len(inside) == 0:
        return []
    sites = np.unique(system.bound.anchor_of[inside])
    return [
        system.finding(
            "error",
            "fixed-atoms",
            f"{name}: {plural(len(inside), 'fixed atom')} that should move around a held centre: mean forces would be "
            "those of fixed atoms; release them, or make them sites with mapping.with_atomistic",
            sites[sites < len(system.groups)],
            inside,
        )
    ]


def check_calculator(system) -> list[Finding]:
    """What the calculator of the atoms cannot give, or gets wrong for these coordinates."""
    atoms = system.atoms
    calculator = atoms.calc
    if calculator is None or _is(calculator, "SinglePointCalculator"):
        return []
    findings = []
    name = type(calculator).__name__
    properties = getattr(calculator, "implemented_properties", None)
    if properties is not None and "forces" not in properties:
        message = f"{name} gives no forces, of which mean forces are made: use another calculator"
        findings.append(Finding("error", "no-forces", message))
    if (properties is not None and "stress" not in properties) or not (atoms.pbc.all() and atoms.cell.rank == 3):
        reason = f"{name} gives no stress" if atoms.pbc.all() and atoms.cell.rank == 3 else "the cell has no volume"
        findings.append(
            Finding("note", "no-virial", f"{reason}: frames get no virial, and a model fitted to them no pressure")
        )
    if _is(calculator, "TIP3P", "TIP4P"):
        # measured for 64 molecules: 13.2 eV whole, 193 eV after atoms.wrap()
        extent = np.ptp(atoms.positions[: len(atoms) // 3 * 3].reshape(-1, 3, 3), axis=1).max(initial=0.0)
        if atoms.pbc.any() and extent > 2.5:
            findings.append(
                Finding(
                    "error",
                    "calculator-needs-whole-molecules",
                    f"{name} takes the coordinates of a molecule as given and is wrong by many eV for molecules that "
                    "the boundary cuts: set atoms.positions to mapping.bind(atoms).whole(...) first",
                )
            )
    return findings


# ---- drivers ------------------------------------------------------------------------------------------------------


def check_dynamics(dyn) -> list[Finding]:
    """What an :mod:`ase.md` driver does wrong with the constraints of its atoms, held beads above all; worst first.

    Nothing is found for drivers that are right: ``VelocityVerlet``, ``Langevin(fixcm=False)``, ``Bussi``,
    ``LangevinBAOAB`` at constant volume (unless bonds are rigid). Call it after all constraints are set.
    """
    atoms = getattr(dyn, "atoms", None)
    if atoms is None or not hasattr(dyn, "run"):
        raise TypeError(f"dyn: expected an ASE dynamics object such as VelocityVerlet(atoms, …), got {dyn!r}")
    atoms = getattr(atoms, "atoms", atoms)  # a filter holds them
    if not len(atoms.constraints):
        return []
    name = type(dyn).__name__
    held = [constraint for constraint in atoms.constraints if _is(constraint, "FixBeads")]
    try:
        free = atoms.get_number_of_degrees_of_freedom()
    except (NotImplementedError, NepCGError) as error:
        message = f"the degrees of freedom cannot be counted: {str(error) or 'a constraint does not tell its number'}"
        return [Finding("error", "uncounted-degrees-of-freedom", message)]
    ratio = 3 * len(atoms) / max(free, 1)
    findings = []

    def report(severity, code, message):
        findings.append(Finding(severity, code, f"{name}: {message}"))

    if _is(dyn, "NoseHooverChainNVT"):
        # harmonic waters with held centres, target 300 K: 441 K; its own momenta are not projected either
        if free != 3 * len(atoms):
            report(
                "error",
                "miscounted-degrees-of-freedom",
                f"counts 3N = {3 * len(atoms)} degrees of freedom, there are {free}: the temperature would be "
                f"{ratio:.2f} times the target; use Bussi or Langevin(fixcm=False)",
            )
    elif _is(dyn, *_MELCHIONNA):
        report(
            "error",
            "miscounted-degrees-of-freedom",
            f"counts 3(N - 1) = {3 * len(atoms) - 3} degrees of freedom whatever the constraints; there are {free}",
        )
    elif _is(dyn, "Bussi") and dyn.ndof != free:
        report(
            "error",
            "miscounted-degrees-of-freedom",
            f"counted {dyn.ndof} degrees of freedom when it was made, now there are {free}: set all constraints first, "
            "then make the driver",
        )
    elif _is(dyn, "Langevin") and dyn.fix_com:
        # 4 harmonic waters with held centres, target 300 K: 455 K
        report(
            "error",
            "wrong-temperature",
            "fixcm=True adds the same random momentum to every atom, which heats light atoms (4 waters with held "
            "centres: 455 K instead of 300 K); pass fixcm=False",
        )
    elif _is(dyn, "Andersen") and held:
        factor = _andersen(atoms, held)
        if factor < 0.99:
            report(
                "error",
                "wrong-temperature",
                f"draws single velocity components and projects them afterwards: rare collisions give {factor:.2f} "
                "times the target temperature; use Bussi or Langevin(fixcm=False)",
            )
    elif _is(dyn, "NVTBerendsen") and held:
        report(
            "warning",
            "not-canonical",
            "suppresses the fluctuations of the kinetic energy: use it for equilibration only, Bussi for averages",
        )
    elif _is(dyn, "LangevinBAOAB") and any(_is(constraint, *_RIGID) for constraint in atoms.constraints):
        report(
            "error",
            "constraints-ignored",
            "moves positions without the constraints, so that rigid bonds change their lengths; use "
            "Langevin(fixcm=False)",
        )
    if held and _is_barostat(dyn):
        report(
            "error",
            "barostat",
            "scales positions past the constraint and takes the pressure of the moving degrees of freedom only: a cell "
            "must not change while beads are held; find the density with free atoms first",
        )
    return findings


def _is_barostat(dyn) -> bool:
    return _is(dyn, *_MTK, *_BERENDSEN_NPT, *_MELCHIONNA) or getattr(dyn, "externalstress", None) is not None


def _andersen(atoms, held) -> float:
    """Temperature over target of ASE's Andersen thermostat with held groups, for rare collisions.

    A collision replaces one component i of the mass-weighted velocity; the projection onto relative motion keeps the
    share ``s_i = 1 - m_i / M`` of it. Energy gained and lost balance at ``T = sum s_i / sum s_i (2 - s_i)``. Waters:
    0.908; 271 K in place of 300 K were measured.
    """
    masses = atoms.get_masses()
    share = np.ones(len(atoms))
    for constraint in held:
        for group in constraint.groups:
            share[group] = 1 - masses[group] / masses[group].sum()
    # the last atom of a group of one never moves
    kept = (share * (2 - share)).sum()
    return float(share.sum() / kept) if kept > 0 else 1.0


def _is(thing, *names: str) -> bool:
    """Whether a class of ``thing`` has one of the names."""
    return any(kind.__name__ in names for kind in type(thing).__mro__)
