"""NEP-CG and NEP-AACG models as ASE calculators.

>>> from ase_nepcg import NEP, NEPModel

All names are loaded on first use: importing the package imports neither numba nor matplotlib.
"""

from importlib import import_module

__version__ = "0.1.0.dev0"

# public name -> module that owns it
_OWNERS = {
    "Committee": "committee",
    "FixBeads": "constraints",
    "MD": "md",
    "Mapping": "mapping",
    "MeanForce": "meanforce",
    "NEP": "calculator",
    "NEPModel": "model",
    "NepCGError": "errors",
    "Training": "training",
    "analysis": None,
    "md": None,
    "plot": None,
    "read_dataset": "dataset",
    "sample_many": "meanforce",
    "sample_mean_force": "meanforce",
    "testing": None,
    "train": "training",
    "write_dataset": "dataset",
}

__all__ = [
    "MD",
    "NEP",
    "Committee",
    "FixBeads",
    "Mapping",
    "MeanForce",
    "NEPModel",
    "NepCGError",
    "Training",
    "__version__",
    "analysis",
    "md",
    "plot",
    "read_dataset",
    "sample_many",
    "sample_mean_force",
    "testing",
    "train",
    "write_dataset",
]


def __getattr__(name):
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    owner = _OWNERS[name]
    value = import_module(f"{__name__}.{owner or name}")
    if owner is not None:
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
