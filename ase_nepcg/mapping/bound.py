"""A mapping bound to atoms: which atom belongs to which site, with which mass, and how centres are taken.

Notation of the formulas: the centre of site I is ``R_I = sum_i C_Ii r_i`` with ``C_Ii = m_i / M_I`` over its group
(arXiv:2603.01234, Eq. 9); ``a(i)`` is the anchor of atom i, the site whose motion it follows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from scipy.sparse import csr_array

from ..labels import set_labels
from .molecules import MappingError, Tree, check_positions

__all__ = ["BoundMapping"]


@dataclass(frozen=True, eq=False, repr=False)
class BoundMapping:
    """What :meth:`Mapping.bind` makes: arrays (read-only) for N atoms, n_sites sites, n_implicit molecules without any.

    ``site_of`` (N,): site of an atom, -1 for atoms in no group. ``anchor_of`` (N,): the site an atom is anchored at,
    or n_sites + k for implicit molecule k, anchored at its own centre of mass. ``is_site`` (N,): alone in its group.
    ``masses`` (N,) and ``anchor_masses`` (n_sites + n_implicit,) in atomic mass units.
    """

    labels: np.ndarray
    groups: tuple[np.ndarray, ...]
    numbers: np.ndarray
    masses: np.ndarray
    site_of: np.ndarray
    anchor_of: np.ndarray
    n_implicit: int
    tree: Tree
    n_atoms: int = field(init=False)
    n_sites: int = field(init=False)
    is_site: np.ndarray = field(init=False)
    anchor_masses: np.ndarray = field(init=False)
    _member: csr_array = field(init=False)
    _anchored: csr_array = field(init=False)
    _centre: csr_array = field(init=False)

    def __post_init__(self):
        n_atoms, n_sites = len(self.numbers), len(self.labels)
        n_anchors = n_sites + self.n_implicit
        grouped = np.flatnonzero((self.site_of >= 0) | (self.anchor_of >= n_sites))  # atoms that define a centre
        owner = self.anchor_of[grouped]
        anchor_masses = np.bincount(owner, weights=self.masses[grouped], minlength=n_anchors)
        weights = self.masses[grouped] / anchor_masses[owner]
        sizes = np.bincount(self.site_of[self.site_of >= 0], minlength=n_sites)
        is_site = (self.site_of >= 0) & (sizes[self.site_of] == 1)
        members, anchored = np.flatnonzero(self.site_of >= 0), np.flatnonzero(self.anchor_of < n_sites)
        derived = {
            "n_atoms": n_atoms,
            "n_sites": n_sites,
            "is_site": is_site,
            "anchor_masses": anchor_masses,
            "_member": _rows(np.ones(len(members)), self.site_of[members], members, (n_sites, n_atoms)),
            "_anchored": _rows(np.ones(len(anchored)), self.anchor_of[anchored], anchored, (n_sites, n_atoms)),
            "_centre": _rows(weights, owner, grouped, (n_anchors, n_atoms)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        for array in (self.labels, self.numbers, self.masses, self.site_of, self.anchor_of, is_site, anchor_masses):
            array.setflags(write=False)

    def __repr__(self):
        return f"BoundMapping({self.n_atoms} atoms, {self.n_sites} sites, {self.n_implicit} implicit molecules)"

    @property
    def site_masses(self) -> np.ndarray:
        """Mass of each site's group, (n_sites,) in atomic mass units."""
        return self.anchor_masses[: self.n_sites]

    @property
    def n_dof(self) -> int:
        """Degrees of freedom left when all sites are held: 3 (N - n_sites)."""
        return 3 * (self.n_atoms - self.n_sites)

    def whole(self, positions, cell, pbc) -> np.ndarray:
        """Positions (N, 3) in which all that is anchored at one site, and every implicit molecule, is whole."""
        return self.tree.whole(np.asarray(positions, dtype=float), np.asarray(cell, dtype=float), pbc)

    def centres(self, whole) -> np.ndarray:
        """Centres of mass (n_sites + n_implicit, 3) of the groups and then of the implicit molecules, not wrapped."""
        return self._centre @ whole

    def forces(self, forces) -> np.ndarray:
        """Force on each site (n_sites, 3): the sum over all atoms anchored there (Eq. 12)."""
        return self._anchored @ forces

    def molecular_virial(self, whole, forces, virial) -> np.ndarray:
        """``W_mol = W_AA - sum_i (r_i - R_a(i)) f_i`` (3, 3), symmetrised, eV, positive = compressed.

        ``virial`` is W_AA. The kT of each implicit molecule is not in it: that one belongs to the average.
        """
        arms = whole - self.centres(whole)[self.anchor_of]
        molecular = np.asarray(virial, dtype=float) - arms.T @ forces
        return 0.5 * (molecular + molecular.T)

    def beads(self, atoms) -> Atoms:
        """The sites as ``Atoms``: whole-molecule centres (not wrapped), labels, masses, momenta if the atoms have any.

        Cell and periodic boundaries are those of ``atoms``; constraints, calculator and ``info`` are not taken over.
        """
        if not np.array_equal(atoms.numbers, self.numbers):
            raise MappingError(f"atoms: expected the {self.n_atoms} atoms the mapping was bound to; call bind again")
        check_positions(atoms.positions)
        whole = self.whole(atoms.positions, atoms.cell.array, atoms.pbc)
        beads = Atoms(
            numbers=np.zeros(self.n_sites, dtype=int),
            positions=self.centres(whole)[: self.n_sites],
            cell=atoms.cell,
            pbc=atoms.pbc,
            celldisp=atoms.get_celldisp(),
        )
        set_labels(beads, self.labels, self.site_masses)
        if atoms.has("momenta"):
            beads.set_momenta(self._member @ atoms.get_momenta())
        return beads

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of groups, anchors, labels, masses and elements: equal for equal mappings."""
        digest = hashlib.sha256()
        for array, dtype in (
            (self.site_of, "<i8"),
            (self.anchor_of, "<i8"),
            (self.labels, "<U16"),
            (self.masses, "<f8"),
            (self.numbers, "<i8"),
        ):
            digest.update(f"{len(array)};".encode() + array.astype(dtype).tobytes())
        return digest.hexdigest()


def _rows(values, rows, columns, shape) -> csr_array:
    """Sparse matrix with ``values`` at ``rows`` and ``columns`` (increasing, each once)."""
    order = np.argsort(rows, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
    return csr_array((values[order], columns[order], starts), shape=shape)
