"""Observers of :class:`~ase_nepcg.MD`: they accumulate inside the compiled loop; one file for each or each family."""

from .base import Observer, ObserverError, ObserverInfo, kernel_signature
from .closest import ClosePairs
from .heat import Conductivity, HeatCurrent
from .motion import MSD, VACF
from .profile import Profile
from .rdf import RDF
from .spectral import SpectralHeatCurrent
from .thermo import Thermo

__all__ = [
    "MSD",
    "OBSERVERS",
    "RDF",
    "VACF",
    "ClosePairs",
    "Conductivity",
    "HeatCurrent",
    "Observer",
    "ObserverError",
    "ObserverInfo",
    "Profile",
    "SpectralHeatCurrent",
    "Thermo",
    "from_dict",
    "kernel_signature",
]

# by name, as in checkpoints
_KINDS = (Thermo, RDF, MSD, VACF, HeatCurrent, Conductivity, SpectralHeatCurrent, Profile, ClosePairs)
OBSERVERS = {kind.name: kind for kind in _KINDS}


def from_dict(settings: dict) -> Observer:
    """The observer that :meth:`Observer.todict` described; raises :class:`ObserverError` for an unknown name."""
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in OBSERVERS:
        raise ObserverError(f"unknown observer {name!r}: expected one of {', '.join(sorted(OBSERVERS))}")
    return OBSERVERS[name](**settings)
