"""What is coarse-grained: atoms with a calculator and a mapping, the user's or embedded water."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ..mapping import Mapping
from ..meanforce.sampler import fingerprint
from ..quantities import density_g_cm3
from .settings import QuickstartError, Settings

__all__ = ["System", "make_system"]

#: of the structure's own density, for structures of the user's
FACTORS = (0.96, 1.0, 1.05, 1.1)


@dataclass(frozen=True)
class System:
    """``atoms``: a box whose density is changed, None for water made by :func:`~ase_nepcg.data.water_box`; ``melts``:
    the box is a lattice, to be melted first."""

    atoms: Atoms | None
    calculator: object
    mapping: Mapping
    name: str
    melts: bool

    @property
    def density(self) -> float:
        return density_g_cm3(self.atoms)

    def identity(self) -> dict:
        """What tells it from others, for the settings of a folder."""
        given = self.atoms
        return {
            "system": self.name,
            "calculator": fingerprint(self.calculator),
            "mapping": self.mapping.to_json(),
            "structure": None if given is None else _digest(given),
        }


def make_system(atoms, calculator, mapping, settings: Settings) -> System:
    """The user's system, or water where nothing is given. Raises :class:`QuickstartError`."""
    if atoms is None:
        if mapping is not None:
            raise QuickstartError("mapping: needs atoms, too")
        from ..calculator import NEP
        from ..data import WATER_AA, water_box

        return System(
            None,
            NEP(WATER_AA) if calculator is None else calculator,
            Mapping.from_molecules(water_box(settings.edge), "Ar"),
            "water",
            melts=True,
        )
    if not isinstance(atoms, Atoms):
        raise QuickstartError(f"atoms: expected Atoms, got {type(atoms).__name__}")
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise QuickstartError(
            "atoms: expected a box that is periodic in all directions (a liquid or a crystal), got "
            f"pbc {atoms.pbc.tolist()} and a cell with {atoms.cell.rank} vectors"
        )
    calculator = atoms.calc if calculator is None else calculator
    if calculator is None:
        raise QuickstartError("atoms: have no calculator; set atoms.calc, or give calculator=")
    if not {"forces", "stress"} <= set(calculator.implemented_properties):
        raise QuickstartError(
            f"{type(calculator).__name__}: expected a calculator with forces and stress, that of yours has "
            + ", ".join(calculator.implemented_properties)
        )
    plain = atoms.copy()
    mapping = Mapping.from_molecules(plain) if mapping is None else mapping
    mapping.bind(plain)
    if len(mapping) < 2:
        raise QuickstartError(f"mapping: expected several beads in the box, got {len(mapping)}")
    return System(plain, calculator, mapping, plain.get_chemical_formula(), melts=False)


def default_densities(atoms) -> tuple:
    """Around the density of the structure, g/cm^3."""
    own = density_g_cm3(atoms)
    return tuple(float(f"{factor * own:.3g}") for factor in FACTORS)


def _digest(atoms) -> str:
    import hashlib

    parts = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses())
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()
