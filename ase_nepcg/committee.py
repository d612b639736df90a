"""Committee: the mean of several NEP models as one ASE calculator, and how far the models are apart.

Where models that were trained alike (other random starts, other parts of the data) disagree, the data did not decide:
their spread tells which configurations to add to the training set (query by committee: Schran, Brezina, Marsalek,
J. Chem. Phys. 153, 104105 (2020)). It is no bound of the error, which all members may share.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterable

import numpy as np
from ase.calculators.calculator import (
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
)

from .calculator import NEP, _has_volume, _read, _storable
from .errors import closest
from .model import NEPModel

__all__ = ["Committee"]

# served by get_property, but not listed: export_properties knows standard names only
_SPREADS = ("force_spread", "energy_spread", "stress_spread", "forces_by_model")


class Committee(Calculator):
    """Mean of two or more NEP models; ``NEP.committee(models, ...)`` makes the same.

    Parameters
    ----------
    models
        Paths of ``nep.txt`` files or :class:`~ase_nepcg.NEPModel`, M of them. They have the same species (in any order)
        and all or none a temperature input; everything else may differ.
    device, precision, threads, temperature_K
        As for :class:`~ase_nepcg.NEP`, the same for all models, which are evaluated one after the other.

    Properties: energy, free_energy (the same), energies, forces, stress: means over the models, in ASE's units and
    signs. Stresses need a cell with three vectors. Further ones by ``calc.get_property(name, atoms)``, where <...> is
    the mean over the models:

    ===============  =========  ==================================================================================
    force_spread     (N,)       eV/Å, ``sqrt(Σ_m |F_m - <F>|² / (M-1))`` per site; of one component: 1/√3 of it
    energy_spread    number     eV per cell, ``sqrt(Σ_m (E_m - <E>)² / (M-1))``. The models' offsets enter: where no
                                energies were trained on they are arbitrary, and so is this
    stress_spread    (6,)       eV/Å³, the same for each component of the stress
    forces_by_model  (M, N, 3)  eV/Å, in the order of ``models``
    ===============  =========  ==================================================================================

    Raises
    ------
    CalculatorSetupError
        Fewer than two models, models that do not fit together, wrong parameters, or sites the models do not know.
    CalculationFailed
        Overlapping sites, non-finite positions or results.
    ModelFileError
        A model file that cannot be read.
    """

    name = "nep_committee"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    default_parameters = NEP.default_parameters
    ignored_changes = NEP.ignored_changes
    discard_results_on_any_change = True

    def __init__(self, models, *, atoms=None, label=None, directory=".", **parameters):
        self._check_names(parameters)
        self._lock = threading.RLock()
        self._members: tuple[NEP, ...] = ()
        self._spreads = {}
        super().__init__(atoms=atoms, label=label, directory=directory, models=models, **parameters)

    # --- parameters -----------------------------------------------------------------------------------------------

    def _check_names(self, names):
        valid = ("models", *self.default_parameters)
        for name in names:
            if name not in valid:
                raise TypeError(f"Committee got an unknown keyword {name!r}: {closest(name, valid)}")

    def set(self, **kwargs):
        """Change parameters; results are discarded if anything changed. Returns what changed."""
        self._check_names(kwargs)
        with self._lock:
            if "models" in kwargs:
                given = _as_list(kwargs["models"])
                models = tuple(_read(model) for model in given)
                _check_alike(models)
                kwargs["models"] = [_storable(model) for model in given]
            else:
                models = self.models
            shared = {name: value for name, value in {**self.parameters, **kwargs}.items() if name != "models"}
            # they check the parameters, before anything has changed here
            members = tuple(NEP(model, **shared) for model in models)
            # the same path may lead to another model by now
            other_models = models != self.models
            changed = super().set(**kwargs)
            if changed or other_models:
                self._members = members
                self.reset()
            return changed

    @property
    def models(self) -> tuple[NEPModel, ...]:
        """The models being evaluated."""
        return tuple(member.model for member in self._members)

    # --- one calculation ------------------------------------------------------------------------------------------

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        with self._lock:
            super().calculate(atoms, properties, system_changes)
            # if a member fails, the results of earlier atoms must not pass for those of these
            self.results, self._spreads = {}, {}
            for member in self._members:
                member.calculate(self.atoms, ("energy",), system_changes)
            by_model = {
                name: np.stack([member.results[name] for member in self._members])
                for name in self._members[0].results
                if name in self.implemented_properties
            }
            mean = {name: values.mean(axis=0) for name, values in by_model.items()}
            spread = {name: values.std(axis=0, ddof=1) for name, values in by_model.items()}
            self._spreads = {
                "force_spread": np.sqrt((spread["forces"] ** 2).sum(axis=-1)),
                "energy_spread": float(spread["energy"]),
                "forces_by_model": by_model["forces"],
            }
            if "stress" in spread:
                self._spreads["stress_spread"] = spread["stress"]
            self.results = mean | {name: float(mean[name]) for name in ("energy", "free_energy")}

    def check_state(self, atoms, tol=1e-15):
        """Changes since the last calculation, as seen by the models: see :meth:`NEP.check_state`."""
        # all members have seen the same atoms, and nobody else can reach them
        return self._members[0].check_state(atoms, tol)

    def reset(self):
        """Forget atoms and results."""
        super().reset()
        self._spreads = {}
        for member in self._members:
            member.reset()

    # --- properties -----------------------------------------------------------------------------------------------

    def get_property(self, name, atoms=None, allow_calculation=True):
        # one request at a time: a calculator may be shared by threads
        with self._lock:
            valid = (*self.implemented_properties, *_SPREADS)
            if name not in valid:
                raise PropertyNotImplementedError(f"Committee has no property {name!r}: {closest(name, valid)}")
            given = self.atoms if atoms is None else atoms
            if given is None:
                raise CalculatorSetupError(f"{name} of what? Give atoms: get_property({name!r}, atoms)")
            if name in ("stress", "stress_spread") and not _has_volume(given.cell):
                raise PropertyNotImplementedError(
                    f"{name} needs a cell with three vectors, got {given.cell.array.tolist()}"
                )
            # means and spreads come from the same calculation
            found = super().get_property("energy" if name in _SPREADS else name, atoms, allow_calculation)
            return found if found is None or name not in _SPREADS else copy.copy(self._spreads[name])

    # --- copies ---------------------------------------------------------------------------------------------------

    def __getstate__(self):
        with self._lock:
            state = {name: value for name, value in self.__dict__.items() if name != "_lock"}
            # a shallow copy must have its own of what changes in place
            own = {"parameters": copy.copy(self.parameters), "_members": tuple(map(copy.copy, self._members))}
            return state | own

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.RLock()


def _as_list(models) -> list:
    if isinstance(models, str | bytes | os.PathLike | NEPModel | dict) or not isinstance(models, Iterable):
        raise CalculatorSetupError(f"models: expected a list of paths or models, got {type(models).__name__}")
    models = list(models)
    if len(models) < 2:
        raise CalculatorSetupError(f"models: a committee needs at least 2, got {len(models)}: for one model use NEP")
    return models


def _check_alike(models) -> None:
    """Refuse models of different species, and some with and some without a temperature input."""
    first = models[0]
    for i, model in enumerate(models):
        if {*model.species} != {*first.species}:
            raise CalculatorSetupError(
                f"models: expected the same species in all, got {', '.join(first.species)} in model 0 and "
                f"{', '.join(model.species)} in model {i}"
            )
        if model.temperature != first.temperature:
            raise CalculatorSetupError(
                "models: expected all or none with temperature as an input, got "
                f"{first.name} as model 0 and {model.name} as model {i}"
            )
