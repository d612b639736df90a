"""Mapping: which atoms make which bead.

>>> mapping = Mapping.from_molecules(atoms, species={"H2O": "WAT"})
>>> beads = mapping.beads(atoms)  # Atoms: centres of whole molecules, labels, masses, momenta

Beads and atoms that are kept as they are together are the *sites*. A site has a group of atoms, one atom or many; an
atom belongs to one group at most. An atom in no group is *anchored* at the site of its own molecule that is nearest in
number of bonds (a site map: the oxygen carries the bead, the hydrogens are integrated out); a molecule without any site
is anchored at its own centre of mass (implicit solvent). Centres are those of whole molecules, wherever the periodic
boundaries cut them.

A :class:`Mapping` is the specification and never changes; :meth:`Mapping.bind` applies it to atoms. Groups that overlap
or are empty are accepted at first, so that :meth:`Mapping.lint` can report everything at once; every use refuses them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols
from ase.units import kB

from ..labels import get_labels
from .bound import BoundMapping
from .checks import (
    check_array,
    check_bonds,
    check_groups,
    check_indices,
    check_masses,
    check_numbers,
    check_range,
    check_temperature,
    check_virial,
    shown,
)
from .molecules import (
    MappingError,
    bonded_pairs,
    bonds_of,
    check_positions,
    find_bonds,
    grow_tree,
    label_molecules,
    minimum_image,
)
from .species import check_labels, choose_labels, formulas_of, free_symbols, relabel
from .topology import Topology, find_endless, find_topology, members_of, pieces_of

__all__ = ["BoundMapping", "Mapping", "MappingError"]


@dataclass(frozen=True, eq=False, repr=False)
class Mapping:
    """Sites, their groups of atoms and their labels; made by the ``from_...`` constructors.

    ``groups``: atoms of each site, increasing. ``labels`` (n_sites,) ``<U16``. ``n_atoms`` and ``numbers`` (n_atoms,):
    the atoms it was made for, None if not known. ``bonds`` (M, 2): the bonds that belong to it, those of its molecules
    or of the atoms in no group; None if bonds are to be found when it is used. Raises :class:`MappingError` and
    :class:`~ase_nepcg.labels.LabelError`.
    """

    groups: tuple[np.ndarray, ...]
    labels: np.ndarray
    n_atoms: int | None = None
    numbers: np.ndarray | None = None
    bonds: np.ndarray | None = None
    _flaw: str = field(init=False)
    _found: list = field(default_factory=list, init=False)  # the topology of the last atoms

    def __post_init__(self):
        groups = check_groups(self.groups)
        n_atoms = None if self.n_atoms is None else operator.index(self.n_atoms)
        numbers = None if self.numbers is None else check_numbers(self.numbers, n_atoms)
        n_atoms = len(numbers) if numbers is not None else n_atoms
        if n_atoms is not None:
            check_range(groups, n_atoms)
        values = {
            "groups": groups,
            "labels": check_labels(self.labels, len(groups)),
            "n_atoms": n_atoms,
            "numbers": numbers,
            "bonds": None if self.bonds is None else check_bonds(self.bonds, n_atoms),
            "_flaw": _find_flaw(groups),
        }
        for array in (values["labels"], numbers, values["bonds"], *groups):
            if array is not None:
                array.setflags(write=False)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    # constructors

    @classmethod
    def from_molecules(cls, atoms, species=None, *, bonds=None) -> Mapping:
        """One bead per molecule, in the order of the molecules' lowest atoms.

        ``species``: one label, ``{formula: label}`` (Hill order, such as ``{"H2O": "WAT"}``), a function from the
        ``Atoms`` of a (whole) molecule to a label, or None: for each formula an element that does not occur in
        ``atoms``, noble gases first, printed. ``bonds`` (M, 2): pairs of bonded atoms; None: those that
        :func:`~ase_nepcg.mapping.molecules.find_bonds` finds. Molecules bonded to their own periodic image (crystals,
        polymers through the boundary) are refused.
        """
        positions, cell, pbc = atoms.positions, atoms.cell.array, atoms.pbc
        check_positions(positions)
        if bonds is None:
            pairs, vectors = bonded_pairs(atoms)
            bonds = bonds_of(pairs)
        else:
            bonds = pairs = check_bonds(bonds, len(atoms))
            vectors = minimum_image(positions[pairs[:, 1]] - positions[pairs[:, 0]], cell, pbc)
        molecule = label_molecules(len(atoms), bonds)
        groups = check_groups(members_of(molecule) if len(atoms) else [])
        tree = grow_tree(np.array([group[0] for group in groups]), molecule, bonds)
        endless = find_endless(tree.whole(positions, cell, pbc), pairs, vectors)
        if endless is not None:
            group = groups[molecule[endless]]
            raise MappingError(
                f"the molecule of atom {endless} ({formulas_of(atoms.numbers, [group])[0][0]}) is bonded to its own "
                "periodic image, so that it has no centre of mass; use from_groups, from_atoms_per_bead or from_sites, "
                "or pass the bonds that count as bonds=[(i, j), …]"
            )
        if species is None:
            formulas, kind = formulas_of(atoms.numbers, groups)
            symbols = free_symbols(atoms.numbers, len(formulas))
            print("bead species: " + ", ".join(f"{s} = {f}" for s, f in zip(symbols, formulas, strict=True)))
            labels = np.array(symbols)[kind]
        else:
            labels = choose_labels(species, groups, atoms.numbers, pieces_of(atoms, groups, tree))
        return cls(groups, labels, len(atoms), atoms.numbers, bonds)._prepared(atoms)

    @classmethod
    def from_groups(cls, groups, species, atoms=None, *, bonds=None) -> Mapping:
        """One bead per list of atoms.

        ``species``: one label, one per group, or, if ``atoms`` are given, ``{formula: label}`` or a function from the
        ``Atoms`` of a (whole) bead to a label. With ``atoms`` the mapping knows their number and elements, and the
        molecules of atoms in no group; else these are found when it is used. ``bonds`` as in :meth:`from_molecules`.
        """
        groups = check_groups(groups)
        if atoms is None:
            if bonds is not None:
                raise MappingError("bonds: given without atoms; pass atoms too")
            return cls(groups, choose_labels(species, groups))
        check_positions(atoms.positions)
        check_range(groups, len(atoms))
        rest = np.ones(len(atoms), dtype=bool)
        rest[np.concatenate(groups)] = False
        if bonds is None and rest.any():
            # which site an atom in no group follows is part of the mapping; bonds inside groups may change
            bonds = find_bonds(atoms)
            bonds = bonds[rest[bonds].any(axis=1)]
        pieces = None
        if callable(species):
            pieces = pieces_of(atoms, groups, cls(groups, "X", bonds=bonds, numbers=atoms.numbers).bind(atoms).tree)
        labels = choose_labels(species, groups, atoms.numbers, pieces)
        return cls(groups, labels, len(atoms), atoms.numbers, bonds)._prepared(atoms)

    @classmethod
    def from_atoms_per_bead(cls, atoms, n: int, species) -> Mapping:
        """Beads of ``n`` consecutive atoms each, such as one fcc cell of ``crystal.repeat(...)``.

        ``species`` as in :meth:`from_groups`. The number of atoms must be a multiple of ``n``.
        """
        try:
            n = operator.index(n)
        except TypeError:
            raise MappingError(f"n: expected the number of atoms per bead, got {n!r}") from None
        if n < 1 or len(atoms) == 0 or len(atoms) % n:
            divisors = [str(d) for d in range(1, min(len(atoms), 100) + 1) if len(atoms) % d == 0]
            raise MappingError(f"n: expected a divisor of the {len(atoms)} atoms ({', '.join(divisors)}), got {n}")
        return cls.from_groups(np.arange(len(atoms)).reshape(-1, n), species, atoms)

    @classmethod
    def from_atoms(cls, atoms, species=None) -> Mapping:
        """Every atom is a site. ``species`` as in :meth:`from_groups`; None: the atoms' own labels (symbols)."""
        return cls.from_sites(atoms, np.arange(len(atoms)), species)

    @classmethod
    def from_sites(cls, atoms, indices, species=None, *, bonds=None) -> Mapping:
        """Site map: the atoms ``indices`` carry the beads, all others are integrated out.

        Each of the others is anchored at the site of its molecule that is nearest in number of bonds (the first in
        ``indices`` if several are), molecules without a site at their own centre of mass. ``species``: one label, one
        per site, ``{element: label}`` or a function of the one-atom ``Atoms``; None: the atoms' own labels (symbols).
        """
        indices = check_indices(indices, len(atoms))
        species = get_labels(atoms)[indices] if species is None else species
        return cls.from_groups(indices.reshape(-1, 1), species, atoms, bonds=bonds)

    @classmethod
    def from_residues(cls, atoms, species=None, beads=None) -> Mapping:
        """Beads by the arrays ``residuenames``, ``residuenumbers`` and ``atomtypes`` (atom names) of PDB and GRO files.

        Without ``beads`` every residue is one bead; ``species``: one label, ``{residue name: label}``, or None: the
        residue name. With ``beads = {residue name: {label: [atom names], ...}}`` a residue has one bead per label;
        atoms in no list are integrated out, a residue with ``{}`` wholly. All residue names must be given.
        """
        from .residues import residue_groups

        groups, labels = residue_groups(atoms, species, beads)
        return cls.from_groups(groups, labels, atoms)

    @classmethod
    def from_json(cls, text: str) -> Mapping:
        """The mapping that :meth:`to_json` wrote."""
        from .files import from_json

        return from_json(text)

    @classmethod
    def read(cls, path) -> Mapping:
        """The mapping that :meth:`write` wrote."""
        from .files import read_mapping

        return read_mapping(path)

    @classmethod
    def read_gpumd(cls, model_xyz, bead_name_txt) -> Mapping:
        """The mapping in GPUMD's ``model.xyz`` (grouping method 0) and ``bead_name.txt`` (a name per atom)."""
        from .files import read_gpumd

        return read_gpumd(model_xyz, bead_name_txt)

    # other mappings from this one

    def with_atomistic(self, indices) -> Mapping:
        """Mixed resolution: the beads of the atoms ``indices`` become one-atom sites, labelled by their elements.

        The new sites take the place of their bead, in order of their atoms; atoms in no group become sites after all
        others. ``indices`` must contain all atoms of a bead or none. The mapping must know the elements.
        """
        if self.numbers is None:
            raise MappingError("with_atomistic needs to know the elements; make the mapping with atoms=")
        self._check_usable()
        indices = check_indices(indices, self.n_atoms)
        chosen = np.zeros(self.n_atoms, dtype=bool)
        chosen[indices] = True
        grouped = np.zeros(self.n_atoms, dtype=bool)
        grouped[np.concatenate(self.groups)] = True
        symbols = np.array(chemical_symbols, dtype=self.labels.dtype)
        groups, labels = [], []
        for k, group in enumerate(self.groups):
            inside = chosen[group]
            if not inside.any():
                groups.append(group)
                labels.append(self.labels[k])
                continue
            if not inside.all():
                raise MappingError(
                    f"with_atomistic: bead {k} ({self.labels[k]}) would be cut: of its atoms {shown(group)} the atoms "
                    f"{shown(group[~inside])} are left over; give all atoms of a bead or none"
                )
            groups.extend(group.reshape(-1, 1))
            labels.extend(symbols[self.numbers[group]])
        free = np.flatnonzero(chosen & ~grouped)
        groups.extend(free.reshape(-1, 1))
        labels.extend(symbols[self.numbers[free]])
        return Mapping(groups, labels, self.n_atoms, self.numbers, self.bonds)

    def with_species(self, species, atoms=None) -> Mapping:
        """The same groups with other labels.

        ``species``: one label, one per site, ``{label: new label}``, ``{formula: label}`` (if the elements are known)
        or a function of the bead's ``Atoms`` (needs ``atoms``).
        """
        pieces = None
        if callable(species) and atoms is not None:
            pieces = pieces_of(atoms, self.groups, self.bind(atoms).tree)
        numbers = self.numbers
        if atoms is not None:
            self._check_atoms(atoms)
            numbers = atoms.numbers
        relabelled = Mapping(
            self.groups,
            relabel(species, self.labels, self.groups, numbers, pieces),
            self.n_atoms,
            self.numbers,
            self.bonds,
        )
        relabelled._found.extend(self._found)
        return relabelled

    def split_by_symmetry(self, atoms, symprec: float = 1e-3) -> Mapping:
        """Beads that no symmetry of the crystal maps onto each other get different labels: ``C60`` -> ``C60_1, C60_2``.

        Beads count as atoms, not as points: equal centres with different orientations differ. A label whose beads are
        all equivalent stays. ``symprec`` in Å. Needs the package spglib (``pip install "ase_nepcg[symmetry]"``).
        """
        from .symmetry import split_labels

        return self.with_species(split_labels(self, atoms, symprec))

    # use

    def bind(self, atoms) -> BoundMapping:
        """The mapping of these atoms.

        Raises :class:`MappingError` if groups overlap or are empty, number or elements of the atoms differ, a mass is
        missing or not positive, positions are not finite, or bonds of the mapping are broken.
        """
        self._check_usable()
        self._check_atoms(atoms)
        topology = self._topology(atoms)
        return BoundMapping(
            labels=self.labels,
            groups=self.groups,
            numbers=topology.numbers,
            masses=check_masses(atoms),
            site_of=topology.site_of,
            anchor_of=topology.anchor_of,
            n_implicit=topology.n_implicit,
            tree=topology.tree,
        )

    def beads(self, atoms):
        """The sites as ``Atoms``, see :meth:`BoundMapping.beads`."""
        return self.bind(atoms).beads(atoms)

    def forces(self, atoms, forces) -> np.ndarray:
        """Force on each site (n_sites, 3) from forces on the atoms (N, 3): sums over the anchored atoms, eV/Å."""
        bound = self.bind(atoms)
        return bound.forces(check_array("forces", forces, (bound.n_atoms, 3)))

    def virial(self, atoms, forces, virial, temperature_K: float | None = None) -> np.ndarray:
        """Molecular estimator of the sites' virial (3, 3), symmetrised, eV, positive = compressed.

        ``W_AA - sum_i (r_i - R_a(i)) f_i + n_implicit kT 1``, from the forces (N, 3) and the virial W_AA (3, 3) of the
        atoms (``-volume * stress``). Needs no temperature unless there are molecules without any site.
        """
        bound = self.bind(atoms)
        forces = check_array("forces", forces, (bound.n_atoms, 3))
        virial = check_virial(virial)
        whole = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
        molecular = bound.molecular_virial(whole, forces, virial)
        if bound.n_implicit == 0:
            return molecular
        if temperature_K is None:
            raise MappingError(
                f"temperature_K: needed, since {bound.n_implicit} molecules have no site and add kT each to the virial"
            )
        return molecular + bound.n_implicit * kB * check_temperature(temperature_K) * np.eye(3)

    def virial_atomic(self, atoms, virial, temperature_K: float) -> np.ndarray:
        """Atomic estimator of the sites' virial (3, 3), eV: ``W_AA + (N - n_sites) kT 1`` (Eq. 17)."""
        self._check_usable()
        self._check_atoms(atoms)
        return check_virial(virial) + (len(atoms) - len(self)) * kB * check_temperature(temperature_K) * np.eye(3)

    def lint(self, atoms) -> list:
        """Findings about this mapping of these atoms, worst first; see :func:`ase_nepcg.lint.lint`."""
        from ..lint import lint

        return lint(self, atoms)

    def to_json(self) -> str:
        """The mapping as JSON; labels, groups, elements and bonds, no positions."""
        from .files import to_json

        return to_json(self)

    def write(self, path) -> None:
        """Write the mapping to a JSON file, atomically."""
        from .files import write_mapping

        write_mapping(self, path)

    def write_gpumd(self, folder, atoms) -> None:
        """Write ``model.xyz`` with a group column and ``bead_name.txt`` into ``folder``, for GPUMD.

        GPUMD wants every atom in a bead, labels that are chemical symbols, and a cell.
        """
        from .files import write_gpumd

        write_gpumd(self, folder, atoms)

    # the object

    def __len__(self) -> int:
        return len(self.groups)

    def __repr__(self):
        names, first, counts = np.unique(self.labels, return_index=True, return_counts=True)
        order = np.argsort(first)
        kinds = ", ".join(f"{counts[k]} {names[k]}" for k in order[:8]) + (", …" if len(order) > 8 else "")
        atoms = "" if self.n_atoms is None else f"; {self.n_atoms} atoms"
        return f"Mapping({len(self)} sites: {kinds}{atoms})"

    def __eq__(self, other):
        if not isinstance(other, Mapping):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __reduce__(self):
        return Mapping, (self.groups, self.labels, self.n_atoms, self.numbers, self.bonds)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def _key(self) -> tuple:
        sizes = np.array([len(group) for group in self.groups])
        arrays = (sizes, np.concatenate(self.groups), self.labels, self.numbers, self.bonds)
        return self.n_atoms, *(None if array is None else array.tobytes() for array in arrays)

    def _prepared(self, atoms) -> Mapping:
        """Self, with the topology found from ``atoms`` if the groups allow it."""
        if not self._flaw:
            self._topology(atoms)
        return self

    def _topology(self, atoms) -> Topology:
        """Anchors and trees for these atoms: those found before if they still fit, else new ones."""
        check_positions(atoms.positions)
        for topology in self._found:
            if topology.fits(atoms):
                return topology
        topology = find_topology(self.groups, self.bonds, atoms)
        self._found[:] = [topology]
        return topology

    def _check_usable(self) -> None:
        if self._flaw:
            raise MappingError(f"mapping: {self._flaw}; each site needs its own atoms; mapping.lint(atoms) lists all")

    def _check_atoms(self, atoms) -> None:
        """Refuse atoms whose number or elements are not those the mapping was made for."""
        if self.n_atoms is None:
            check_range(self.groups, len(atoms))
            return
        if len(atoms) != self.n_atoms:
            raise MappingError(f"atoms: the mapping is for {self.n_atoms} atoms, got {len(atoms)}")
        if self.numbers is None:
            return
        wrong = np.flatnonzero(atoms.numbers != self.numbers)
        if len(wrong):
            i = wrong[0]
            raise MappingError(
                f"atoms: {len(wrong)} atoms are not of the element the mapping was made for; atom {i}: expected "
                f"{chemical_symbols[self.numbers[i]]}, got {chemical_symbols[atoms.numbers[i]]}"
            )


def _find_flaw(groups: tuple[np.ndarray, ...]) -> str:
    """What makes groups unusable, or an empty string."""
    empty = [k for k, group in enumerate(groups) if len(group) == 0]
    if empty:
        return f"sites without any atom: {shown(empty)}"
    atoms = np.sort(np.concatenate(groups))
    shared = np.unique(atoms[1:][atoms[1:] == atoms[:-1]])
    if len(shared) == 0:
        return ""
    sites = [k for k, group in enumerate(groups) if shared[0] in group]
    return f"overlapping groups: {len(shared)} atoms, such as {shared[0]} in the sites {shown(sites)}"
