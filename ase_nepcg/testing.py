"""Conformance kit: named structures, named tolerances and :func:`check_calculator`, for any ASE calculator.

>>> from ase_nepcg import NEP, NEPModel, testing
>>> model = NEPModel.random(["A", "B"])
>>> for atoms in testing.structures(model.species).values():
...     testing.check_calculator(NEP(model), atoms)

===========================  ========================================================================================
:func:`structures`           small structures at the edges: pairs at the cutoff, thin and left-handed cells, slabs
:data:`TOLERANCES`           precision -> :class:`Tolerance`, numbers with a name, a unit and a reason
:func:`check_calculator`     what every ASE calculator owes its users, checked on one structure
:data:`CHECKS`               name -> check, what :func:`check_calculator` runs
:func:`reference_evaluate`   the formulas of the model once more, slow and plain: ``ase_nepcg.reference.evaluate``
===========================  ========================================================================================

Needs numpy and ASE only. Failures are ``AssertionError`` with got, expected and the name of the tolerance, so that any
test runner can use it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from .reference import evaluate as reference_evaluate

__all__ = ["CHECKS", "TOLERANCES", "Tolerance", "check_calculator", "reference_evaluate", "structures"]

BEAD_MASS = 18.0  # of sites that are no elements


# ---- tolerances ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """How far two numbers may be apart that should be the same.

    ``energy``, ``force`` and ``stress`` bound rounding: they are multiplied by the size of what is compared (the sum of
    site energies in absolute value, the largest force, the largest stress; at least 1 eV, 1 eV/Å and 0.01 eV/Å³). The
    ``..._derivative`` bounds hold for analytic against numerical derivatives and are dominated by the numerical ones,
    with central differences of the given steps; they grow with the largest force and stress.
    """

    energy: float  #: relative
    force: float  #: relative
    stress: float  #: relative
    force_derivative: float  #: eV/Å for forces of 1 eV/Å
    stress_derivative: float  #: eV/Å³ for stresses of 0.01 eV/Å³
    displacement: float  #: step in Å
    strain: float  #: step, no unit


TOLERANCES = {
    # sums of some hundred terms of either sign lose two of sixteen digits, three-body sums in another order one more;
    # differences of energies of 10 eV over 2e-4 Å carry 1e-11 eV/Å of rounding, the rest is truncation
    "double": Tolerance(
        energy=1e-12,
        force=1e-11,
        stress=1e-11,
        force_derivative=1e-6,
        stress_derivative=1e-7,
        displacement=1e-4,
        strain=1e-5,
    ),
    # single precision inside a site (6e-8 per operation), double precision in the sums over sites; wider steps, since
    # the noise of the energy is divided by them
    "mixed": Tolerance(
        energy=2e-6,
        force=2e-5,
        stress=2e-5,
        force_derivative=2e-2,
        stress_derivative=2e-3,
        displacement=1e-2,
        strain=2e-3,
    ),
}

# what a relative tolerance is multiplied by at least: eV, eV/Å, eV/Å³
_SMALLEST = {"energy": 1.0, "force": 1.0, "stress": 0.01, "force_derivative": 1.0, "stress_derivative": 0.01}


# ---- structures ------------------------------------------------------------------------------------------------------


def structures(species, cutoff=(6.0, 4.0), seed=0) -> dict[str, Atoms]:
    """Small structures with sites of all ``species`` (any labels), for a (radial, angular) ``cutoff`` in Å.

    ===========================  ====================================================================================
    dimer                        a pair well inside the cutoffs, no cell
    dimer_at_R, _below_, _above  a pair at the radial cutoff exactly, 5e-4 Å nearer, 5e-4 Å farther; A: angular cutoff
    two_sites_apart              no neighbours
    single_site, single_in_cell  one site, without a cell and alone in a large periodic one
    triclinic                    12 sites in a periodic triclinic cell
    left_handed                  the same with a cell of negative volume
    outside_cell                 the same with sites moved by whole cell vectors
    primitive                    one site in a triclinic cell thinner than the cutoffs: all neighbours are its images
    thin                         4 sites in a cell that is thinner than the cutoffs in one direction
    slab, slab_without_height    periodic in x, y; with three cell vectors and with two
    wire                         periodic in z, the only cell vector
    cluster, cluster_in_cell     12 sites without periodicity; without a cell and outside the cell they have
    ===========================  ====================================================================================

    Labels that are no chemical symbols are attached with ``ase_nepcg.labels.set_labels``, with masses of 18 u.
    """
    radial, angular = cutoff
    rng = np.random.default_rng(seed)
    # about 20 neighbours within the angular cutoff: dense enough for every term, sites at least half a spacing apart
    spacing = 0.65 * min(radial, angular)
    axes = spacing * np.array([[3.0, 0.0, 0.0], [0.5, 2.1, 0.0], [-0.3, 0.4, 2.2]])
    grid = np.array(list(itertools.product(range(3), range(2), range(2)))) / [3, 2, 2]
    cloud = grid @ axes + rng.uniform(-0.12, 0.12, (12, 3)) * spacing
    far = 1.1 * max(radial, angular)

    def build(positions, cell=None, pbc=False):
        labels = [species[k % len(species)] for k in range(len(positions))]
        return _labelled(labels, positions, cell, pbc)

    def pair(distance):
        return build([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])

    found = {"dimer": build([[0.1, -0.3, 0.2], np.array([0.6, 0.5, -0.4]) * 0.7 * min(radial, angular)])}
    for letter, distance in (("R", radial), ("A", angular)):
        found[f"dimer_at_{letter}"] = pair(distance)
        found[f"dimer_below_{letter}"] = pair(distance - 5e-4)
        found[f"dimer_above_{letter}"] = pair(distance + 5e-4)
    found["two_sites_apart"] = pair(far)
    found["single_site"] = build([[0.3, 0.2, 0.1]])
    found["single_in_cell"] = build([[0.3, 0.2, 0.1]], np.diag([far, 1.1 * far, 1.2 * far]), True)
    found["triclinic"] = build(cloud, axes, True)
    found["left_handed"] = build(cloud, axes[[1, 0, 2]], True)
    found["outside_cell"] = build(cloud + rng.integers(-3, 4, (12, 3)) @ axes, axes, True)
    found["primitive"] = build(
        [[0.2, 0.1, 0.0]], spacing * np.array([[0.0, 0.8, 0.7], [0.7, 0.0, 0.8], [0.9, 0.7, 0.0]]), True
    )
    some = grid[:4] @ axes + rng.uniform(-0.12, 0.12, (4, 3)) * spacing
    found["thin"] = build(some, axes * [[1 / 3], [1], [1]] * [1.1, 1, 1] + [0, 0, 0.1 * spacing], True)
    found["slab"] = build(cloud, axes, [True, True, False])
    found["slab_without_height"] = build(cloud, axes * [[1], [1], [0]], [True, True, False])
    found["wire"] = build(cloud, axes * [[0], [0], [1]], [False, False, True])
    found["cluster"] = build(cloud)
    found["cluster_in_cell"] = build(cloud - [0.0, 20.0, 0.0], axes)
    return found


def _labelled(labels, positions, cell=None, pbc=False) -> Atoms:
    if all(label in atomic_numbers for label in labels):
        return Atoms(labels, positions, cell=cell, pbc=pbc)
    from .labels import set_labels

    atoms = Atoms(numbers=[0] * len(labels), positions=positions, cell=cell, pbc=pbc)
    set_labels(atoms, labels, masses=BEAD_MASS)
    return atoms


# ---- the checks ------------------------------------------------------------------------------------------------------


def check_calculator(calc, atoms, *, precision="double", skip=(), seed=0) -> None:
    """Check that ``calc`` is a well-behaved ASE calculator on ``atoms`` (which are not changed).

    Works for any calculator with an energy; properties that it does not list are not looked at.

    Parameters
    ----------
    precision
        Name of the set of tolerances in :data:`TOLERANCES`.
    skip
        Names from :data:`CHECKS` to leave out, e.g. ``"sum_of_forces"`` in an external field.
    seed
        Of the random translation, rotation, order and displacements.

    Raises
    ------
    AssertionError
        Says which check failed, what was found and what was expected.
    """
    unknown = {*skip} - {*CHECKS}
    if unknown:
        raise ValueError(f"skip: no check is called {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    if precision not in TOLERANCES:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(TOLERANCES)}")
    for name, check in CHECKS.items():
        if name not in skip:
            check(_Bench(name, calc, atoms, precision, np.random.default_rng(seed)))


class _Bench:
    """One calculator, one structure, one check: what the checks share."""

    def __init__(self, check, calc, atoms, precision, rng):
        self.check, self.calc, self.rng = check, calc, rng
        self.precision, self.tolerance = precision, TOLERANCES[precision]
        self.atoms = self.attach(atoms.copy())

    def attach(self, atoms) -> Atoms:
        atoms.calc = self.calc
        return atoms

    def has(self, name) -> bool:
        # a calculator without stress for this structure (no cell) is asked in _check_stress_without_cell
        return name in self.calc.implemented_properties and (
            name not in ("stress", "stresses") or self.atoms.cell.rank == 3
        )

    def get(self, name, atoms=None):
        return self.calc.get_property(name, self.atoms if atoms is None else atoms)

    def energy(self, atoms) -> float:
        return float(self.get("energy", atoms))

    @property
    def energy_scale(self) -> float:
        # site energies of either sign cancel in the sum but not in the rounding
        size = abs(self.get("energies")).sum() if self.has("energies") else len(self.atoms)
        return max(float(size), abs(self.energy(self.atoms)))

    def scale(self, kind) -> float:
        """Size of what is compared, eV, eV/Å or eV/Å³."""
        if kind == "energy":
            size = self.energy_scale
        elif kind.startswith("force"):
            size = abs(self.get("forces")).max(initial=0.0) if self.has("forces") else 0.0
        else:
            size = abs(self.get("stress")).max()
        return max(size, _SMALLEST[kind])

    def compare(self, what, got, expected, kind, *, times=1.0, slack=0.0):
        """``|got - expected| <= tolerance``, with the tolerance called ``kind``; ``slack`` may be an array."""
        got, expected = np.asarray(got, float), np.asarray(expected, float)
        self.require(got.shape == expected.shape, f"{what} has shape {got.shape}, expected {expected.shape}")
        self.require(np.isfinite(got).all(), f"{what} is not finite: {got.tolist()}")
        allowed = getattr(self.tolerance, kind) * self.scale(kind) / _unit(kind) * times + np.asarray(slack)
        excess = abs(got - expected) - allowed
        if excess.size and excess.max() > 0:
            worst = np.unravel_index(excess.argmax(), excess.shape)
            where = f" at {tuple(map(int, worst))}" if worst else ""
            bound = np.broadcast_to(allowed, excess.shape)[worst]
            self.require(
                False,
                f"{what}: got {got[worst]:.12g}, expected {expected[worst]:.12g}{where}; they differ by "
                f"{abs(got - expected)[worst]:.3g}, more than {bound:.3g} (tolerance {self.precision}.{kind})",
            )

    def same(self, what, atoms, *, energy=1, forces=None, stress=None):
        """``atoms`` have ``energy`` times the energy, and these forces and this stress (None: the same)."""
        self.compare(f"energy after {what}", self.energy(atoms), energy * self.get("energy"), "energy", times=energy)
        if self.has("forces"):
            forces = self.get("forces") if forces is None else forces
            self.compare(f"forces after {what}", self.get("forces", atoms), forces, "force")
        if self.has("stress"):
            stress = self.get("stress") if stress is None else stress
            self.compare(f"stress after {what}", self.get("stress", atoms), stress, "stress")

    def require(self, condition, message):
        if not condition:
            label = getattr(self.calc, "name", type(self.calc).__name__)
            raise AssertionError(f"{label} fails {self.check!r} on {self.atoms.get_chemical_formula()}: {message}")


def _unit(kind) -> float:
    # the bounds of derivatives are stated for the smallest size of what is compared
    return _SMALLEST[kind] if kind.endswith("derivative") else 1.0


def _check_shapes(bench):
    """Every listed property has the shape that ASE prescribes."""
    n = len(bench.atoms)
    shapes = {
        "energy": (), "free_energy": (), "energies": (n,), "forces": (n, 3), "stress": (6,), "stresses": (n, 6)
    }  # fmt: skip
    bench.require(bench.calc.implemented_properties, "implemented_properties is empty")
    for name, shape in shapes.items():
        if bench.has(name):
            value = bench.get(name)
            bench.require(np.shape(value) == shape, f"{name} has shape {np.shape(value)}, expected {shape}")
            bench.require(np.isfinite(value).all(), f"{name} is not finite")
            bench.require(shape or np.isscalar(value), f"{name} is of type {type(value).__name__}, expected a number")
    if hasattr(bench.calc, "export_properties"):
        try:
            bench.calc.export_properties()
        except (KeyError, TypeError, ValueError) as error:
            bench.require(False, f"export_properties() refuses the results: {error!r}")


def _check_sums(bench):
    """Site energies and site stresses add up; the free energy is the energy."""
    energy = bench.get("energy")
    if bench.has("energies"):
        bench.compare("sum of energies", bench.get("energies").sum(), energy, "energy")
    if bench.has("free_energy"):
        free = bench.get("free_energy")
        bench.require(free == energy, f"free_energy {free!r} is not the energy {energy!r}")
    if bench.has("stresses") and bench.has("stress"):
        bench.compare("sum of stresses", bench.get("stresses").sum(axis=0), bench.get("stress"), "stress")


def _check_sum_of_forces(bench):
    """Forces between sites add up to zero."""
    if bench.has("forces"):
        n = max(len(bench.atoms), 1)
        bench.compare("sum of forces", bench.get("forces").sum(axis=0), np.zeros(3), "force", times=np.sqrt(n))


def _derivative(energy, step):
    """``dE/dx`` at 0 by central differences, extrapolated from two steps, and an estimate of its error.

    Where the second derivative jumps, as at the cutoff of a cosine, the two steps differ, and the error is of the size
    of the difference.
    """
    wide, narrow = ((energy(h) - energy(-h)) / (2 * h) for h in (step, step / 2))
    return (4 * narrow - wide) / 3, abs(wide - narrow)


def _numerical(bench, directions, energy, step, kind):
    values, errors = np.array([_derivative(lambda h, d=d: energy(h * d), step) for d in directions]).reshape(-1, 2).T
    # a jump of the energy must not excuse itself by the error that it makes
    allowed = getattr(bench.tolerance, kind) * bench.scale(kind) / _unit(kind)
    return values, np.minimum(2 * errors, 10 * allowed)


_MOST_COORDINATES = 36


def _check_forces(bench):
    """Forces are minus the gradient of the energy: some coordinates, and all sites at once in random directions."""
    if not bench.has("forces"):
        return
    n = len(bench.atoms)
    single = bench.rng.permutation(3 * n)[:_MOST_COORDINATES]
    directions = np.zeros((len(single) + 2, n, 3))
    directions.reshape(len(directions), -1)[np.arange(len(single)), single] = 1.0
    directions[-2:] = bench.rng.uniform(-1, 1, (2, n, 3))
    moved = bench.attach(bench.atoms.copy())

    def energy(displacements):
        moved.positions = bench.atoms.positions + displacements
        return bench.energy(moved)

    numerical, slack = _numerical(bench, directions, energy, bench.tolerance.displacement, "force_derivative")
    forces = np.einsum("knc,nc->k", directions, bench.get("forces"))
    bench.compare("force against the derivative of the energy", forces, -numerical, "force_derivative", slack=slack)


def _check_stress(bench):
    """The stress is the derivative of the energy by strain, divided by the volume; Voigt order xx yy zz yz xz xy."""
    if not bench.has("stress"):
        return
    strained = bench.attach(bench.atoms.copy())

    def energy(strain):
        strained.set_cell(bench.atoms.cell.array @ (np.eye(3) + strain), scale_atoms=False)
        strained.positions = bench.atoms.positions @ (np.eye(3) + strain)
        return bench.energy(strained) / bench.atoms.get_volume()

    directions = [voigt_6_to_full_3x3_stress(e) * (0.5 + 0.5 * np.eye(3)) for e in np.eye(6)]
    numerical, slack = _numerical(bench, directions, energy, bench.tolerance.strain, "stress_derivative")
    bench.compare(
        "stress against the derivative by strain", bench.get("stress"), numerical, "stress_derivative", slack=slack
    )


def _check_stress_without_cell(bench):
    """Without three cell vectors there is a clear refusal instead of a stress, and an energy."""
    for name in ("stress", "stresses"):
        if name in bench.calc.implemented_properties and bench.atoms.cell.rank < 3:
            try:
                got = bench.get(name)
            except PropertyNotImplementedError:
                bench.energy(bench.atoms)
            else:
                bench.require(False, f"{name} without a volume: got {got}, expected PropertyNotImplementedError")


def _check_translation(bench):
    """Nothing depends on the origin."""
    moved = bench.attach(bench.atoms.copy())
    moved.translate(bench.rng.uniform(-5, 5, 3))
    # distances between shifted positions are rounded anew
    bench.same("translation", moved)


def _check_wrapping(bench):
    """Sites may be given in any image, by themselves."""
    if not bench.atoms.pbc.any():
        return
    moved = bench.attach(bench.atoms.copy())
    images = bench.rng.integers(-2, 3, (len(moved), 3)) * bench.atoms.pbc
    moved.positions += images @ bench.atoms.cell.array
    bench.same("moving sites by whole cell vectors", moved)
    if bench.atoms.cell.rank == 3:
        moved.wrap()
        bench.same("wrapping", moved)


def _check_lattice(bench):
    """Other vectors of the same lattice, also left-handed ones, describe the same system."""
    periodic = np.flatnonzero(bench.atoms.pbc)
    if len(periodic) < 2:
        return
    a, b = periodic[:2]
    swapped, sheared = (bench.attach(bench.atoms.copy()) for _ in range(2))
    cell = bench.atoms.cell.array.copy()
    cell[[a, b]] = cell[[b, a]]
    swapped.set_cell(cell, scale_atoms=False)
    bench.same("swapping two cell vectors", swapped)
    cell[b] += cell[a]
    sheared.set_cell(cell, scale_atoms=False)
    bench.same("adding one cell vector to another", sheared)


def _check_permutation(bench):
    """The order of the sites does not matter."""
    order = bench.rng.permutation(len(bench.atoms))
    forces = bench.get("forces")[order] if bench.has("forces") else None
    bench.same("permutation", bench.attach(bench.atoms[order]), forces=forces)


def _check_rotation(bench):
    """Rotating sites and cell rotates forces and stress."""
    q, r = np.linalg.qr(bench.rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    q *= np.sign(np.linalg.det(q))
    rotated = bench.attach(bench.atoms.copy())
    rotated.set_cell(bench.atoms.cell.array @ q.T, scale_atoms=False)
    rotated.positions = bench.atoms.positions @ q.T
    forces = bench.get("forces") @ q.T if bench.has("forces") else None
    stress = None
    if bench.has("stress"):
        stress = full_3x3_to_voigt_6_stress(q @ voigt_6_to_full_3x3_stress(bench.get("stress")) @ q.T)
    bench.same("rotation", rotated, forces=forces, stress=stress)


def _check_repetition(bench):
    """Twice the cell: twice the energy, the same forces and stress."""
    if not bench.atoms.pbc.any():
        return
    times = [1, 1, 1]
    times[int(np.argmax(bench.atoms.pbc))] = 2
    double = bench.attach(bench.atoms.repeat(times))
    forces = np.tile(bench.get("forces"), (2, 1)) if bench.has("forces") else None
    bench.same(f"repetition {times}", double, energy=2, forces=forces)


def _snapshot(atoms):
    arrays = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in atoms.arrays.items()}
    return arrays | {"cell": atoms.cell.array.tobytes(), "pbc": atoms.pbc.tobytes(), "info": repr(atoms.info)}


def _check_atoms_unchanged(bench):
    """The atoms given are only read."""
    before = _snapshot(bench.atoms)
    bench.atoms.positions[0] += 1e-3  # so that there is something to calculate
    before["positions"] = _snapshot(bench.atoms)["positions"]
    for name in ("energy", "forces", "stress"):
        if bench.has(name):
            bench.get(name)
    after = _snapshot(bench.atoms)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    bench.require(not changed, f"the calculation changed {', '.join(changed)} of the atoms")


def _check_no_aliasing(bench):
    """Arrays that users hold are not overwritten by the next calculation, nor is the cache by users."""
    names = [name for name in ("forces", "energies", "stress", "stresses") if bench.has(name)]
    taken = {f"get_property({name!r})": bench.get(name) for name in names}
    taken |= {f"results[{k!r}]": v for k, v in bench.calc.results.items() if isinstance(v, np.ndarray)}
    copies = {name: value.copy() for name, value in taken.items()}
    for name in names:
        first = bench.get(name)
        first += 1.0
        bench.require(
            np.array_equal(bench.get(name), copies[f"get_property({name!r})"]),
            f"changing the array {name} that was handed out changes the calculator's results",
        )
    moved = bench.attach(bench.atoms.copy())
    moved.positions += bench.rng.uniform(-0.01, 0.01, moved.positions.shape)
    for name in names:
        bench.get(name, moved)
    for name, value in taken.items():
        bench.require(np.array_equal(value, copies[name]), f"the next calculation overwrote {name}")


CHECKS = {
    "shapes": _check_shapes,
    "sums": _check_sums,
    "sum_of_forces": _check_sum_of_forces,
    "forces": _check_forces,
    "stress": _check_stress,
    "stress_without_cell": _check_stress_without_cell,
    "translation": _check_translation,
    "wrapping": _check_wrapping,
    "lattice": _check_lattice,
    "permutation": _check_permutation,
    "rotation": _check_rotation,
    "repetition": _check_repetition,
    "atoms_unchanged": _check_atoms_unchanged,
    "no_aliasing": _check_no_aliasing,
}
