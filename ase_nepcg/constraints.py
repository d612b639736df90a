"""Hold the centres of many groups of atoms: the ASE constraint :class:`FixBeads`.

Importing this module makes ASE know the class: ``ase.constraints.dict2constraint`` looks names up in the namespace of
``ase.constraints`` and there is no other hook. The plugin module :mod:`ase_nepcg.plugins`, which ASE loads with every
``import ase.io``, imports it for that reason; so files with the constraint can be read by programs that know only ASE.

The centre-of-mass constraint is linear and its mass metric is constant, so no Fixman or metric term appears in averages
over constrained dynamics (G. Ciccotti, R. Kapral and E. Vanden-Eijnden, ChemPhysChem 6, 1809 (2005)).
"""

from __future__ import annotations

import math
import reprlib
import warnings
from itertools import chain
from typing import NamedTuple

import ase.constraints
import numpy as np
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixConstraint,
    FixLinearTriatomic,
    FixSubsetCom,
)

from .constraints_rigid import ConstraintError, RigidBonds, find_leaving, require_whole

__all__ = ["ConstraintError", "FixBeads"]


class _Plan(NamedTuple):
    """Everything that depends on groups, masses and frozen coordinates. Flat arrays are (3n,): x, y, z of atom 0, …

    ``n`` is one more than the highest index in a group; bins 3I to 3I+2 belong to group I, the last three to no group.
    """

    key: np.ndarray  # (3n,) int64: bin of each coordinate
    weight: np.ndarray  # (3n,) mass over mass of what moves in the group; 0 for coordinates in no group or frozen
    alone: np.ndarray | None  # (n, 3) bool: coordinates that are a centre by themselves; None: there are none
    member: np.ndarray | None  # (n, 3) bool: coordinates with a weight; None: all
    n_held: int  # centre coordinates that are held, 3 per group without frozen atoms
    n_bins: int
    resolution: float  # relative resolution of the centres, see FixBeads._hold_centres


class _Others(NamedTuple):
    """What the other constraints of the atoms mean for this one."""

    free: np.ndarray | None = None  # (N, 3) bool; None: no coordinate is frozen
    coupled: RigidBonds | None = None  # rigid bonds out of groups, solved together with these
    claimed: int = 0  # degrees of freedom that frozen atoms and FixCom count for themselves ...
    actual: int = 0  # ... and the number they remove


class FixBeads(FixConstraint):
    """Hold the centre of mass of each group of atoms; the atoms of a group move relative to it.

    ``mapping_or_groups``: a :class:`~ase_nepcg.Mapping` (or anything with an attribute ``groups``) or a sequence of
    groups, each a sequence of atom indices. Groups are disjoint; a group of one atom is a fixed atom; atoms in no group
    are free. Only the groups are kept, atoms in ascending order; masses are ``atoms.get_masses()`` at the time of use.
    Raises :class:`ConstraintError` for no groups, empty or overlapping ones, and everything that is not an index; when
    used, for atoms that are missing, masses that are not positive, and other constraints it cannot be combined with.

    Displacements are constrained, so molecules may be cut by a periodic boundary, and a change of the cell, ``wrap`` or
    ``set_positions(..., apply_constraint=False)`` between two steps defines the new centres. Nothing is remembered from
    step to step: positions are a function of the old and the requested ones, and a restarted run continues bitwise.

    *Positions*: each group is shifted rigidly so that its centre stays; atoms outside keep exactly the requested
    positions. *Momenta*: the momentum of each group is zero. *Forces* (what ``atoms.get_forces()`` gives an optimiser;
    MD takes the raw ones): the net force of each group is shared out by mass and removed. Take mean forces on the
    centres from ``atoms.get_forces(apply_constraint=False)``. There is no ``adjust_stress`` and no ``adjust_cell``: a
    barostat would move the centres with the cell, so do not use one (those of the MTK family in ASE refuse).

    *Drivers of ase.md*: ``VelocityVerlet``, ``Langevin(fixcm=False)`` and ``Bussi`` (set the constraint first) sample
    the constrained ensemble. ``Andersen`` holds the centres but is too cold, by up to a third for small groups: it
    draws single velocity components anew, and what a centre gets of them is removed. ``NoseHooverChainNVT`` does not
    ask for the degrees of freedom. Use neither for averages.

    Together with other constraints, in the same list ``atoms.constraints``:

    ===================== =======================================================================================
    FixAtoms,             any order; what is left free in a group is shifted so that its own centre stays
    FixCartesian
    FixBondLengths        bonds inside a group: any order. Bonds from a group to atoms in no group (rigid molecules
                          of which one atom is held): before FixBeads, which solves both together. Molecules that
                          connect two groups or contain frozen atoms are refused
    FixLinearTriatomic    before FixBeads, each molecule inside one group or in none
    FixCom                before FixBeads, and only if the groups cover all atoms (then it changes nothing)
    FixBeads              any order, disjoint
    others                if they touch no atom of a group or remove no degree of freedom (as Hookean)
    ===================== =======================================================================================

    Everything else raises :class:`ConstraintError`. :meth:`get_removed_dof` is such that the sum over all constraints,
    which ASE uses for temperatures, is the rank of the constraints.

    Slices and reorderings keep the groups that are complete and warn about those they cut; ``repeat`` gives each image
    its own groups; ``atoms + other`` keeps the constraints of ``atoms``; ``del atoms[i]`` is refused by ASE. ``.traj``,
    JSON and ASE databases keep the constraint; extended XYZ drops it without a word, as it does with most (ASE 3.26
    does not write such atoms at all: remove the constraint before).
    """

    def __init__(self, mapping_or_groups):
        self._set_groups(*_flatten(getattr(mapping_or_groups, "groups", mapping_or_groups)))

    def _set_groups(self, members: np.ndarray, sizes: np.ndarray) -> None:
        """Replace the groups. The arrays are shared between copies, therefore read-only."""
        self._members = members  # atoms of group 0, of group 1, ...
        self._sizes = sizes
        members.setflags(write=False)
        sizes.setflags(write=False)
        self._length = int(members.max()) + 1
        self._latest = None  # (masses, free coordinates, _Plan) of the latest use

    # ---- what is held ---------------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[np.ndarray, ...]:
        """The atoms of each group in ascending order, read-only int64 arrays."""
        ends = np.cumsum(self._sizes).tolist()
        return tuple(self._members[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True))

    def get_indices(self) -> np.ndarray:
        """All atoms in groups, ascending."""
        return np.sort(self._members)

    def get_removed_dof(self, atoms) -> int:
        """Degrees of freedom removed in addition to those that the other constraints of ``atoms`` count.

        Three per group, none in directions in which all its atoms are frozen. Constraints that ASE counts although
        they change nothing (``FixCom`` beside groups that cover everything, an atom frozen twice) are subtracted.
        """
        others = self._examine(atoms)
        return self._plan(atoms, others.free).n_held + others.actual - others.claimed

    # ---- adjustments ----------------------------------------------------------------------------------------

    def adjust_positions(self, atoms, new):
        """Shift each group in ``new`` (N, 3), in place, so that its centre is where it is in ``atoms.positions``."""
        others = self._examine(atoms)
        plan = self._plan(atoms, others.free)
        self._hold_centres(plan, atoms.positions[: self._length], new[: self._length])
        if others.coupled is not None:
            others.coupled.adjust_positions(new)
            self._hold_centres(plan, atoms.positions[: self._length], new[: self._length])  # rounding errors

    def adjust_momenta(self, atoms, momenta):
        """Make the momentum of each group zero: every atom of it loses the velocity of the centre, in place."""
        others = self._examine(atoms)
        plan = self._plan(atoms, others.free)
        self._remove_totals(plan, momenta[: self._length])
        if others.coupled is not None:
            others.coupled.adjust_momenta(momenta)
            self._remove_totals(plan, momenta[: self._length])

    def adjust_forces(self, atoms, forces):
        """Make the net force on each group zero, ``f_i -= m_i / M_I F_I``, in place: no centre is accelerated."""
        self.adjust_momenta(atoms, forces)

    def _hold_centres(self, plan: _Plan, old: np.ndarray, new: np.ndarray) -> None:
        """Shift groups in ``new`` (n, 3), in place.

        To hold a centre where the step before left it would let rounding errors add up: by a random walk, or steadily
        where atoms move uniformly (2e-10 Å in 1e5 steps at 50 Å). So a centre is held at the nearest multiple of a
        power of two, some 1e-13 Å, that is larger than the rounding errors of one step: the next step finds the same
        multiple, with nothing remembered. A request that already keeps the centre is left alone.
        """
        work = np.empty(new.shape)  # one array for all: new ones cost more than the arithmetic
        flat = work.reshape(-1)
        np.subtract(new, old, out=work)
        flat *= plan.weight
        shift = np.bincount(plan.key, flat, plan.n_bins)
        np.multiply(old.reshape(-1), plan.weight, out=flat)
        centre = np.bincount(plan.key, flat, plan.n_bins)
        np.abs(old, out=work)
        farthest = work.max() if plan.member is None else work.max(where=plan.member, initial=0.0)
        scale = float(farthest) if 1.0 < farthest < math.inf else 1.0  # 1 also beside NaN
        resolution = math.ldexp(1.0, math.frexp(plan.resolution * scale)[1])
        nearest = centre * (1.0 / resolution)  # exact, as the resolution is a power of two
        np.rint(nearest, out=nearest)
        nearest *= resolution
        centre -= nearest
        shift[-3:] = centre[-3:] = 0.0
        if not shift[:-3].all():
            centre[shift == 0.0] = 0.0
        shift += centre
        shift.take(plan.key, out=flat, mode="clip")  # no index is clipped; other modes copy
        new -= work
        if plan.alone is not None:
            np.copyto(new, old, where=plan.alone)

    def _remove_totals(self, plan: _Plan, values: np.ndarray) -> None:
        """Subtract from ``values`` (n, 3), in place, the total of each group, shared out by mass."""
        total = np.bincount(plan.key, values.ravel(), plan.n_bins)
        total[-3:] = 0.0
        removed = total.take(plan.key, mode="clip")  # no index is clipped; the default is slower
        removed *= plan.weight
        values -= removed.reshape(values.shape)

    def _plan(self, atoms, free: np.ndarray | None) -> _Plan:
        """Bins and weights for the masses of ``atoms`` and ``free`` (N, 3); made anew only if these changed."""
        if len(atoms) < self._length:
            raise ConstraintError(
                f"FixBeads holds atom {self._length - 1}, but there are {len(atoms)} atoms: set a new constraint"
            )
        masses = atoms.get_masses()[: self._length]
        if self._latest is not None:
            known_masses, known_free, plan = self._latest
            same = known_free is free or (
                free is not None and known_free is not None and np.array_equal(known_free, free)
            )
            if same and (known_masses == masses).all():
                return plan
        plan = self._make_plan(masses, None if free is None else free[: self._length])
        self._latest = (masses, free, plan)
        return plan

    def _make_plan(self, masses: np.ndarray, free: np.ndarray | None) -> _Plan:
        own = masses[self._members]
        wrong = ~(np.isfinite(own) & (own > 0))
        if wrong.any():
            k = int(np.argmax(wrong))
            raise ConstraintError(
                f"masses: expected positive numbers for atoms in groups, got {own[k]:g} for atom {self._members[k]} "
                f"and {int(wrong.sum()) - 1} more: call atoms.set_masses"
            )
        n_groups = len(self._sizes)
        group = self._group_of(self._length)
        group[group < 0] = n_groups
        key = (3 * group[:, None] + np.arange(3)).ravel()
        if free is not None:
            key = np.where(free.ravel(), key, 3 * n_groups + np.tile(np.arange(3), self._length))
        n_bins = 3 * n_groups + 3
        moving = key < 3 * n_groups
        mass = np.where(moving, np.repeat(masses, 3), 0.0)
        total = np.bincount(key, mass, n_bins)
        total[total == 0.0] = 1.0  # bins without anything that moves; their weights are zero
        count = np.bincount(key, moving, n_bins)
        alone = moving & (count == 1)[key]
        return _Plan(
            key=key,
            weight=mass / total[key],
            alone=alone.reshape(-1, 3) if alone.any() else None,
            member=None if moving.all() else moving.reshape(-1, 3),
            n_held=int(np.count_nonzero(count)),
            n_bins=n_bins,
            # a step changes a centre by (n + 1) eps / 2 times the coordinates at most, large groups by sqrt(n) eps / 4
            resolution=4.0 * math.sqrt(self._sizes.max()) * math.ulp(1.0),
        )

    def _group_of(self, n: int) -> np.ndarray:
        """Group of each of ``n`` atoms, -1 for none, (n,) int64."""
        group = np.full(n, -1, dtype=np.int64)
        group[self._members] = np.repeat(np.arange(len(self._sizes)), self._sizes)
        return group

    # ---- other constraints on the same atoms ----------------------------------------------------------------

    def _examine(self, atoms) -> _Others:
        """Check the other constraints of ``atoms`` and collect what they mean here; see the table of the class."""
        constraints = atoms.constraints
        places = [k for k, constraint in enumerate(constraints) if constraint is self]
        if not places:  # called directly, for atoms that may have a copy
            places = [k for k, other in enumerate(constraints) if isinstance(other, FixBeads) and other == self]
        if len(places) > 1:
            raise ConstraintError("the same FixBeads is in atoms.constraints more than once: list it once")
        if len(constraints) == len(places) or len(atoms) < self._length:
            return _Others()
        earlier = constraints[: places[0]] if places else constraints
        group = self._group_of(len(atoms))
        free, bonds, linear, fixed_com, claimed = None, [], [], 0, 0
        for k, other in enumerate(constraints):
            if k in places:
                continue
            if isinstance(other, FixAtoms | FixCartesian):
                free = np.ones((len(atoms), 3), dtype=bool) if free is None else free
                free[other.index] &= ~other.mask if isinstance(other, FixCartesian) else False
                claimed += int(other.get_removed_dof(atoms))
            elif isinstance(other, FixBondLengths):
                bonds.append(other)
            elif isinstance(other, FixLinearTriatomic):
                inside = group[other.triples]
                if (inside != inside[:, :1]).any():
                    k = int(np.argmax((inside != inside[:, :1]).any(axis=1)))
                    raise ConstraintError(
                        f"FixLinearTriatomic molecule {other.triples[k].tolist()} is not inside one group: FixBeads "
                        "can hold only whole linear molecules"
                    )
                linear.append(other)
                if (inside >= 0).any():
                    _require_before(other, earlier)
                    require_whole(other.triples, atoms)
            elif isinstance(other, FixSubsetCom):
                raise ConstraintError(
                    "FixSubsetCom moves all atoms, also those in groups of FixBeads: remove it and give its atoms to "
                    "FixBeads as one more group"
                )
            elif isinstance(other, FixCom):
                _require_before(other, earlier)
                fixed_com += 1
            else:
                self._check_unrelated(other, atoms, group)
        if fixed_com and ((group < 0).any() or free is not None):
            raise ConstraintError(
                "FixCom moves the beads unless FixBeads holds all atoms and none is frozen: remove FixCom; to hold the "
                "centre of the remaining atoms, give them to FixBeads as one more group"
            )
        coupled = self._find_coupled(atoms, bonds, linear, group, free) if bonds or linear else None
        if coupled is not None:
            for other in bonds:
                _require_before(other, earlier)
        actual = 0 if free is None else int(np.count_nonzero(~free))
        return _Others(free, coupled, claimed + 3 * fixed_com, actual)

    def _find_coupled(self, atoms, bonds: list, linear: list, group: np.ndarray, free) -> RigidBonds | None:
        """The rigid bonds that leave groups, with the groups that they leave."""
        atom = np.arange(len(atoms))  # counts negative indices from the end
        pairs = atom[np.concatenate([np.empty((0, 2), dtype=np.int64), *(other.pairs for other in bonds)])]
        triples = atom[np.concatenate([np.empty((0, 3), dtype=np.int64), *(other.triples for other in linear)])]
        frozen = np.zeros(len(atoms), dtype=bool) if free is None else ~free.all(axis=1)
        leaving = find_leaving(pairs, triples, group, frozen)
        if not leaving.any():
            return None
        lengths = [other.bondlengths for other in bonds]
        for k, other in enumerate(bonds):
            if lengths[k] is None:  # not used yet; it will do the same
                lengths[k] = other.initialize_bond_lengths(atoms)
        lengths = np.concatenate(lengths)
        held = np.unique(group[pairs[leaving]])
        groups = self.groups
        return RigidBonds(pairs[leaving], lengths[leaving], [groups[k] for k in held[held >= 0]], atoms)

    def _check_unrelated(self, other, atoms, group: np.ndarray) -> None:
        """Refuse a constraint of another kind that restricts atoms in groups."""
        if isinstance(other, FixBeads):
            common = np.intersect1d(self._members, other._members)
            if len(common):
                raise ConstraintError(f"atom {common[0]} is in groups of two FixBeads: groups must be disjoint")
            return
        try:
            touched = (group[np.asarray(other.get_indices(), dtype=np.int64)] >= 0).any()
        except (AttributeError, NotImplementedError):
            touched = True
        if not touched:
            return
        try:
            removed = other.get_removed_dof(atoms)
        except (AttributeError, NotImplementedError):
            removed = None
        if removed != 0:
            raise ConstraintError(
                f"FixBeads cannot be combined with {type(other).__name__} on the same atoms: one would undo the other. "
                "Remove one of them, or take these atoms out of the groups"
            )

    # ---- life cycle -----------------------------------------------------------------------------------------

    def index_shuffle(self, atoms, ind):
        """Renumber for ``atoms[ind]`` (slice, indices or mask), called by ASE.

        Groups of which only a part is selected are dropped with a warning; groups selected several times are held once
        for each time. Raises ``IndexError`` if none remains (ASE then drops the constraint).
        """
        selected = np.arange(len(atoms))[ind]
        group = self._group_of(max(len(atoms), self._length))[selected]
        place = np.flatnonzero(group >= 0)
        if not len(place):
            raise IndexError("FixBeads: no group is part of the selection")
        old, group = selected[place], group[place]
        # the k-th time that an atom is selected belongs to the k-th copy of its group
        order = np.argsort(old, kind="stable")
        first = np.flatnonzero(np.diff(old[order], prepend=-1))
        copy = np.empty(len(old), dtype=np.int64)
        copy[order] = np.arange(len(old)) - np.repeat(first, np.diff(first, append=len(old)))
        wanted, inverse, sizes = np.unique(copy * len(self._sizes) + group, return_inverse=True, return_counts=True)
        inverse = inverse.reshape(-1)
        complete = sizes == self._sizes[wanted % len(self._sizes)]
        if not complete.all():
            cut = np.unique(wanted[~complete] % len(self._sizes))
            warnings.warn(
                f"the selection cuts {len(cut)} of {len(self._sizes)} groups of FixBeads (first: group {cut[0]}, atoms "
                f"{reprlib.repr(self.groups[cut[0]].tolist())}); they are not held any more. Select whole groups, or "
                "set the constraint anew",
                UserWarning,
                stacklevel=3,
            )
        if not complete.any():
            raise IndexError("FixBeads: no complete group is part of the selection")
        by_group = np.argsort(inverse, kind="stable")
        self._set_groups(place[by_group[complete[inverse[by_group]]]], sizes[complete])

    def repeat(self, m, n: int):
        """Renumber for ``atoms * m`` (int or three ints) with ``n`` atoms before; each image gets groups of its own."""
        if n < self._length:
            raise ConstraintError(f"FixBeads holds atom {self._length - 1}, but there are {n} atoms")
        images = int(np.prod((m, m, m) if isinstance(m, int | np.integer) else m))
        members = (n * np.arange(images)[:, None] + self._members).ravel()
        self._set_groups(members, np.tile(self._sizes, images))
        return self

    def todict(self) -> dict:
        return {"name": "FixBeads", "kwargs": {"mapping_or_groups": [group.tolist() for group in self.groups]}}

    def copy(self):
        """An independent copy; the arrays, which never change, are shared."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        memo[id(self)] = new = self.copy()
        return new

    def __getstate__(self):
        return {"members": self._members, "sizes": self._sizes}

    def __setstate__(self, state):
        self._set_groups(state["members"], state["sizes"])

    def __eq__(self, other):
        if not isinstance(other, FixBeads):
            return NotImplemented
        return np.array_equal(self._sizes, other._sizes) and np.array_equal(self._members, other._members)

    __hash__ = None  # ASE renumbers constraints in place

    def __repr__(self):
        if len(self._members) <= 30:
            return f"FixBeads({[group.tolist() for group in self.groups]})"
        return f"FixBeads(<{len(self._sizes)} groups, {len(self._members)} atoms>)"


def _flatten(groups) -> tuple[np.ndarray, np.ndarray]:
    """Members of all groups in order, ascending in each, and the sizes (int64); checks all that needs no atoms."""
    shown = reprlib.repr(groups)
    try:
        groups = [tuple(group) for group in groups]
    except TypeError:
        raise ConstraintError(
            f"expected a Mapping or a sequence of groups, each a sequence of atom indices, got {shown}; a single group "
            "is written FixBeads([[0, 1, 2]])"
        ) from None
    if not groups:
        raise ConstraintError("expected at least one group, got none")
    sizes = np.array([len(group) for group in groups], dtype=np.int64)
    if not sizes.all():
        raise ConstraintError(f"expected at least one atom in each group, got none in group {int(np.argmin(sizes))}")
    flat = list(chain.from_iterable(groups))
    for kind in set(map(type, flat)):
        if issubclass(kind, bool | np.bool_) or not issubclass(kind, int | np.integer):
            raise ConstraintError(f"expected atom indices (integers), got {kind.__name__} in {shown}")
    if min(flat) < 0 or max(flat) > np.iinfo(np.int64).max // 4:
        raise ConstraintError(f"expected atom indices from 0 on, got {min(flat)} to {max(flat)}")
    members = np.array(flat, dtype=np.int64)
    group = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((members, group))
    members = members[order]
    by_atom = np.argsort(members, kind="stable")
    same = np.flatnonzero(members[by_atom][1:] == members[by_atom][:-1])
    if len(same):
        one, two = group[by_atom[same[0] : same[0] + 2]].tolist()
        where = f"in groups {one} and {two}" if one != two else f"twice in group {one}"
        raise ConstraintError(f"expected groups that do not overlap, but atom {members[by_atom[same[0]]]} is {where}")
    return members, sizes


def _require_before(other, earlier) -> None:
    if not any(constraint is other for constraint in earlier):
        raise ConstraintError(
            f"{type(other).__name__} after FixBeads would move the centres: ASE applies constraints in the order of "
            "atoms.constraints, so put FixBeads last"
        )


def _register() -> None:
    """Make ``ase.constraints.dict2constraint`` find the class; a class of this name from elsewhere is left alone."""
    known = getattr(ase.constraints, "FixBeads", None)
    if known is None or known.__module__ == __name__:
        ase.constraints.FixBeads = FixBeads
        if "FixBeads" not in ase.constraints.__all__:
            ase.constraints.__all__.append("FixBeads")


_register()
