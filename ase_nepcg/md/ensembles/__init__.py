"""Ensembles of :class:`~ase_nepcg.MD`: one file each, with its equations of motion and its conserved quantity."""

from .base import Ensemble, EnsembleError
from .bussi import Bussi
from .deform import Deform
from .hnemd import HNEMD
from .langevin import Langevin
from .nose_hoover import NoseHoover
from .npt import NPT
from .nve import NVE

__all__ = [
    "HNEMD",
    "NPT",
    "NVE",
    "Bussi",
    "Deform",
    "Ensemble",
    "EnsembleError",
    "Langevin",
    "NoseHoover",
    "ensemble_from_dict",
]

_CLASSES = {cls.name: cls for cls in (NVE, Langevin, Bussi, NoseHoover, NPT, Deform, HNEMD)}


def ensemble_from_dict(settings: dict) -> Ensemble:
    """The ensemble of :meth:`Ensemble.todict`."""
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    name = settings.pop("name")
    if name not in _CLASSES:
        raise EnsembleError(f"unknown ensemble {name!r}; expected one of {', '.join(sorted(_CLASSES))}")
    return _CLASSES[name](**settings)
