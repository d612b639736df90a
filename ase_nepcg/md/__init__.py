"""Molecular dynamics of NEP models in compiled loops: :class:`~ase_nepcg.MD`, its ensembles and observers.

>>> from ase_nepcg.md import Langevin, RDF

All names are loaded on first use: importing this package imports no numba.
"""

from importlib import import_module

# public name -> module that owns it
_OWNERS = {
    "HNEMD": "ensembles",
    "MD": "driver",
    "MDError": "setup",
    "MDFailed": "driver",
    "MSD": "observers",
    "NPT": "ensembles",
    "NVE": "ensembles",
    "RDF": "observers",
    "VACF": "observers",
    "Bussi": "ensembles",
    "ClosePairs": "observers",
    "Conductivity": "observers",
    "Deform": "ensembles",
    "EnsembleError": "ensembles",
    "HeatCurrent": "observers",
    "Langevin": "ensembles",
    "NoseHoover": "ensembles",
    "Profile": "observers",
    "SpectralHeatCurrent": "observers",
    "Thermo": "observers",
}

__all__ = sorted(_OWNERS)


def __getattr__(name):
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_OWNERS[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
