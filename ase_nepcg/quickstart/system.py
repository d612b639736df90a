"""What is coarse-grained: atoms with a calculator and a mapping, the user's or embedded water."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

from ..calculator import NEP
from ..mapping import Mapping
from ..meanforce.sampler import fingerprint
from ..quantities import density_g_cm3
from .settings import QuickstartError, Settings

__all__ = ["System", "make_system"]

#: of the structure's own density, for structures of the user's
FACTORS = (0.96, 1.0, 1.05, 1.1)
_MOST = 2.0


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
            "calculator_source": _source(self.calculator),
            "mapping": self.mapping.to_json(),
            "structure": None if given is None else _digest(given),
        }

    def dressed(self, frame) -> Atoms:
        """``frame`` with the arrays and the ``info`` of the structure that trajectories do not keep, which a calculator
        may need."""
        if self.atoms is not None:
            for name, array in self.atoms.arrays.items():
                if not frame.has(name):
                    frame.set_array(name, array)
            frame.info = self.atoms.info | frame.info
        return frame


def make_system(atoms, calculator, mapping, settings: Settings) -> System:
    """The user's system, or water where nothing is given. Raises :class:`QuickstartError`."""
    if atoms is None:
        if mapping is not None:
            raise QuickstartError("mapping: needs atoms, too")
        from ..data import WATER_AA, water_box

        return System(
            None,
            NEP(WATER_AA) if calculator is None else calculator,
            Mapping.from_molecules(water_box(settings.edge), "Ar"),
            "water",
            melts=True,
        )
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise QuickstartError(
            "atoms: expected a box that is periodic in all directions (a liquid or a crystal), got "
            f"pbc {atoms.pbc.tolist()} and a cell with {atoms.cell.rank} vectors"
        )
    if atoms.constraints:
        raise QuickstartError(
            "atoms: have constraints, which are not for this: beads are held where they must be, everything else moves "
            "(for rigid molecules use sample_mean_force); remove them"
        )
    calculator = atoms.calc if calculator is None else calculator
    if calculator is None:
        raise QuickstartError("atoms: have no calculator; set atoms.calc, or give calculator=")
    if isinstance(calculator, SinglePointCalculator):
        raise QuickstartError("atoms: have stored results in place of a calculator; give calculator=")
    if not {"forces", "stress"} <= set(calculator.implemented_properties):
        raise QuickstartError(
            f"{type(calculator).__name__}: expected a calculator with forces and stress, that of yours has "
            + (", ".join(calculator.implemented_properties) or "none of them")
        )
    own = getattr(calculator.parameters, "temperature_K", None) if isinstance(calculator, NEP) else None
    if own not in (None, settings.temperature_K):
        raise QuickstartError(f"the model is evaluated at {own:g} K, the settings say {settings.temperature_K:g} K")
    plain = atoms.copy()
    mapping = Mapping.from_molecules(plain) if mapping is None else mapping
    mapping.bind(plain)
    if len(mapping) < 2:
        raise QuickstartError(f"mapping: expected several beads in the box, got {len(mapping)}")
    free = sorted({str(label) for label in mapping.labels} - set(chemical_symbols[1:]))
    if free:
        raise QuickstartError(
            f"mapping: expected labels that are chemical symbols, got {free[0]!r}: the wall that keeps beads apart is "
            "made for symbols, and other programs know no others (--species, or species=)"
        )
    own = density_g_cm3(plain)
    for density in settings.densities:
        if not own / _MOST < density < own * _MOST:
            raise QuickstartError(
                f"densities: {density:g} g/cm³ is far from the {own:.4g} g/cm³ of the structure; give densities in "
                f"g/cm³ within a factor of {_MOST}, or another structure"
            )
    return System(plain, calculator, mapping, plain.get_chemical_formula(), melts=False)


def default_densities(atoms) -> tuple:
    """Around the density of the structure, g/cm^3."""
    own = density_g_cm3(atoms)
    return tuple(float(f"{factor * own:.3g}") for factor in FACTORS)


def _digest(atoms) -> str:
    parts = [repr(atoms.info).encode(), atoms.get_masses().tobytes()]
    for name, array in sorted({**atoms.arrays, "cell": atoms.cell.array, "pbc": atoms.pbc}.items()):
        parts += [name.encode(), np.ascontiguousarray(array).tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _source(calculator) -> str | None:
    """Hash of the file that holds the class of a calculator, None where it has none (or is that of a model)."""
    if isinstance(calculator, NEP):
        return None
    try:
        path = inspect.getsourcefile(type(calculator))
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return None
