"""NEP: the ASE calculator. A thin shell: everything numerical happens in ``potential.evaluate``."""

from __future__ import annotations

import copy
import os
import threading

import numpy as np
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress

from .devices import choose
from .errors import closest, is_integer, is_number
from .labels import get_labels, get_types, has_labels
from .model import NEPModel

__all__ = ["NEP"]

# served by get_property, but not listed: mixing calculators add up what is listed, and export_properties knows
# standard names only
_PER_SITE = ("virials", "descriptors")
_EXTRA = (*_PER_SITE, "heat_current")


class NEP(Calculator):
    """Neuroevolution potential (NEP3, NEP4, NEP5; atoms, beads or both) for ASE.

    Parameters
    ----------
    model
        Path of a ``nep.txt`` or a :class:`~ase_nepcg.NEPModel`.
    device
        "cpu", "cuda", or "auto": a CUDA device where one can be used (said once on stderr), else the CPU.
    precision
        "double", "mixed" (CUDA only: float32 with exact positions and sums in float64), or "auto": double on the CPU,
        mixed on CUDA.
    threads
        Threads of the CPU kernels. None: all cores this process may use, at most ``OMP_NUM_THREADS``. Results are the
        same bits for any number.
    temperature_K
        Required by models with a temperature input (``nep4_temperature``), refused by others.

    Properties: energy, free_energy (the same), energies, forces, stress, stresses, in ASE's units and signs. Stresses
    need a cell with three vectors. Further ones by ``calc.get_property(name, atoms)``:

    ============  =========  ====================================================================================
    virials       (N, 3, 3)  eV, ``W_i^{ab} = sum_j r_ij^a df_ji^b``: positive = compressed, not symmetric
    descriptors   (N, D)     scaled descriptor, as the network sees it
    heat_current  (3,)       eV Å / ASE time, ``sum_i W_i v_i + v_i (m_i v_i^2 / 2 + U_i)``, v from the momenta
    ============  =========  ====================================================================================

    The type of a site is its bead label (array ``bead``, or tags with the table of labels that
    ``ase_nepcg.labels.set_labels`` left), else its chemical symbol.

    Raises
    ------
    CalculatorSetupError
        Wrong parameters, or sites the model does not know.
    CalculationFailed
        Overlapping sites, non-finite positions or results.
    ModelFileError
        A model file that cannot be read.

    References ---------- Fan et al., J. Chem. Phys. 157, 114801 (2022); Song et al., Nat. Commun. 15, 10208 (2024);
    heat current: Gabourie et al., Phys. Rev. B 103, 205421 (2021).
    """

    name = "nep"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]  # noqa: RUF012
    default_parameters = {"device": "auto", "precision": "auto", "threads": None, "temperature_K": None}  # noqa: RUF012
    # what a NEP does not depend on
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012
    discard_results_on_any_change = True

    def __init__(
        self,
        model,
        *,
        device="auto",
        precision="auto",
        threads=None,
        temperature_K=None,
        atoms=None,
        label=None,
        directory=".",
        **unknown,
    ):
        self._check_names(unknown)
        self._lock = threading.RLock()
        self._extra = {}
        self._evaluator = None
        self._per_site = False
        self._known_types = None, None
        super().__init__(
            atoms=atoms,
            label=label,
            directory=directory,
            model=model,
            device=device,
            precision=precision,
            threads=threads,
            temperature_K=temperature_K,
        )

    # --- parameters -----------------------------------------------------------------------------------------------

    @staticmethod
    def committee(models, **keywords):
        """The mean of several models and their spread: :class:`~ase_nepcg.Committee` of paths or models; ``keywords``
        as for :class:`NEP`."""
        from .committee import Committee

        return Committee(models, **keywords)

    def _check_names(self, names):
        valid = ("model", *self.default_parameters)
        for name in names:
            if name == "restart":
                raise TypeError(
                    "NEP has no restart files: make a new calculator from the same model instead of restart="
                )
            if name not in valid:
                raise TypeError(f"NEP got an unknown keyword {name!r}: {closest(name, valid)}")

    def set(self, **kwargs):
        """Change parameters; results are discarded if anything changed. Returns what changed."""
        self._check_names(kwargs)
        with self._lock:
            new = {**self.parameters, **kwargs}
            choose(new.get("device", "auto"), new.get("precision", "auto"))
            threads = new.get("threads")
            if threads is not None and (not is_integer(threads) or threads < 1):
                raise CalculatorSetupError(f"threads={threads!r}: expected a positive integer or None")
            model = self._model if "model" not in kwargs else _read(kwargs["model"])
            temperature = new.get("temperature_K")
            if model.temperature and temperature is None:
                raise CalculatorSetupError("this model has temperature as an input: give temperature_K=")
            if not model.temperature and temperature is not None:
                raise CalculatorSetupError(
                    f"temperature_K={temperature!r} was given, but {model.name} has no temperature input: leave it out"
                )
            if temperature is not None and not (is_number(temperature) and 0 <= temperature < np.inf):
                raise CalculatorSetupError(f"temperature_K={temperature!r}: expected a number of kelvins")
            if "model" in kwargs:
                kwargs["model"] = _storable(kwargs["model"])
            # the same path may lead to another model by now
            other_model = model != getattr(self, "_model", None)
            self._model = model
            changed = super().set(**kwargs)
            if changed or other_model:
                self._evaluator = None
                self._known_types = None, None
                self.reset()
            return changed

    @property
    def model(self) -> NEPModel:
        """The model being evaluated."""
        return self._model

    # --- one calculation ------------------------------------------------------------------------------------------

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        with self._lock:
            super().calculate(atoms, properties, system_changes)
            # if anything fails from here on, the results of earlier atoms must not pass for those of these
            self.results, self._extra = {}, {}
            from .potential.evaluate import EvaluationError, Geometry

            atoms = self.atoms
            types = self._types(atoms)
            # whoever asked for per-site stresses once will ask again
            self._per_site |= bool({"stresses", "virials", "heat_current"} & {*properties})
            if self._evaluator is None:
                self._evaluator = self._make_evaluator()
            try:
                geometry = Geometry(atoms.positions, atoms.cell.array, atoms.pbc, types)
                result = self._evaluator(geometry, virials=self._per_site, descriptors="descriptors" in properties)
            except EvaluationError as error:
                raise CalculationFailed(str(error)) from None
            except ValueError as error:
                raise CalculatorSetupError(str(error)) from None
            self.results = {
                "energy": result.energy,
                "free_energy": result.energy,
                "energies": result.energies,
                "forces": result.forces,
            }
            self._extra = {name: value for name in _PER_SITE if (value := getattr(result, name)) is not None}
            if _has_volume(atoms.cell):
                volume = atoms.get_volume()
                self.results["stress"] = full_3x3_to_voigt_6_stress(result.virial) / -volume
                if self._per_site:
                    self.results["stresses"] = full_3x3_to_voigt_6_stress(result.virials) / -volume

    @property
    def device(self) -> str:
        """Where this calculator computes: "cpu" or "cuda"."""
        return choose(self.parameters.device, self.parameters.precision)[0]

    @property
    def precision(self) -> str:
        """What this calculator computes in: "double" or "mixed"."""
        return choose(self.parameters.device, self.parameters.precision)[1]

    def _make_evaluator(self):
        parameters = self.parameters
        if self.device == "cuda":
            from ase_nepcg_cuda import CudaEvaluator

            return CudaEvaluator(self._model, precision=self.precision, temperature_K=parameters.temperature_K)
        from .potential.evaluate import Evaluator

        return Evaluator(self._model, threads=parameters.threads, temperature_K=parameters.temperature_K)

    def adopt(self, atoms, energies, energy: float, forces, virial) -> None:
        """Take results that somebody else has computed for ``atoms`` with this model, as after a calculation.

        energies (N,) and energy in eV, forces (N, 3) in eV/Å, virial (3, 3) in eV, positive = compressed. The arrays
        belong to the calculator from now on.
        """
        with self._lock:
            self.atoms = atoms.copy()
            self._extra = {}
            self.results = {
                "energy": energy,
                "free_energy": energy,
                "energies": energies,
                "forces": forces,
            }
            if _has_volume(atoms.cell):
                self.results["stress"] = full_3x3_to_voigt_6_stress(virial) / -atoms.get_volume()

    def _types(self, atoms) -> np.ndarray:
        if has_labels(atoms):
            return get_types(atoms, self._model.species)
        # symbols rarely change from one call to the next
        numbers, types = self._known_types
        if numbers is None or not np.array_equal(numbers, atoms.numbers):
            types = get_types(atoms, self._model.species)
            self._known_types = atoms.numbers.copy(), types
        return types

    def check_state(self, atoms, tol=1e-15):
        """Changes since the last calculation, among positions, cell, pbc and numbers; bead labels count as numbers.

        Masses, momenta, charges, tags and info do not enter energies and forces.
        """
        old = self.atoms
        if old is None:
            return list(all_changes)
        if tol > 1e-15:
            changes = super().check_state(atoms, tol=tol)
        else:
            # as the base class, but exact, which is several times faster
            changes = [
                name
                for name, new, last in (
                    ("positions", atoms.positions, old.positions),
                    ("numbers", atoms.numbers, old.numbers),
                    ("cell", atoms.cell.array, old.cell.array),
                    ("pbc", atoms.pbc, old.pbc),
                )
                if not np.array_equal(new, last)
            ]
        if (
            "numbers" not in changes
            and (has_labels(atoms) or has_labels(old))
            and not np.array_equal(get_labels(atoms), get_labels(old))
        ):
            changes.append("numbers")
        return changes

    def reset(self):
        """Forget atoms and results."""
        super().reset()
        self._extra = {}

    # --- properties -----------------------------------------------------------------------------------------------

    def get_property(self, name, atoms=None, allow_calculation=True):
        # one request at a time: a calculator may be shared by threads
        with self._lock:
            if name in _EXTRA:
                return self._get_extra(name, atoms, allow_calculation)
            if name not in self.implemented_properties:
                raise PropertyNotImplementedError(
                    f"NEP has no property {name!r}: {closest(name, (*self.implemented_properties, *_EXTRA))}"
                )
            given = self.atoms if atoms is None else atoms
            if name in ("stress", "stresses") and given is not None and not _has_volume(given.cell):
                raise PropertyNotImplementedError(
                    f"{name} needs a cell with three vectors, got {given.cell.array.tolist()}"
                )
            return super().get_property(name, atoms, allow_calculation)

    def _get_extra(self, name, atoms, allow_calculation):
        if atoms is None:
            atoms = self.atoms
            if atoms is None:
                raise CalculatorSetupError(f"{name} of what? Give atoms: get_property({name!r}, atoms)")
        changes = self.check_state(atoms)
        if changes:
            self.reset()
        source = "virials" if name == "heat_current" else name
        if source not in self._extra:
            if not allow_calculation:
                return None
            self.calculate(atoms, [source], changes)
        if name == "heat_current":
            return self._heat_current(atoms)
        return self._extra[name].copy()

    def _heat_current(self, atoms) -> np.ndarray:
        """``J = sum_i W_i v_i + v_i (m_i v_i^2/2 + U_i)``: virial booked on the neighbours, and convection."""
        if not atoms.has("masses") and (atoms.numbers == 0).any():
            raise CalculatorSetupError("heat_current needs the masses of the beads: atoms.set_masses(...)")
        velocities = atoms.get_velocities()
        kinetic = 0.5 * atoms.get_masses() * (velocities**2).sum(axis=1)
        potential = np.einsum("iab,ib->a", self._extra["virials"], velocities)
        return potential + (kinetic + self.results["energies"]) @ velocities

    # --- copies ---------------------------------------------------------------------------------------------------

    def __getstate__(self):
        with self._lock:
            # evaluators hold buffers and kernels, which the receiver makes anew when it needs them
            state = {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_evaluator")}
            # set() changes this dictionary in place: a shallow copy must have its own
            return state | {"parameters": copy.copy(self.parameters)}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._evaluator = None

    def __deepcopy__(self, memo):
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new


def _has_volume(cell) -> bool:
    # ASE's rank counts non-zero vectors; they may still be linearly dependent where the system is not periodic
    return cell.rank == 3 and cell.volume > 1e-10 * cell.lengths().prod()


def _read(model) -> NEPModel:
    if isinstance(model, NEPModel):
        return model
    if isinstance(model, dict) and set(model) == {"text"}:
        return NEPModel.from_text(model["text"])
    if isinstance(model, str | os.PathLike):
        return NEPModel.read(os.fspath(model))
    raise CalculatorSetupError(f"model: expected the path of a nep.txt or a NEPModel, got {type(model).__name__}")


def _storable(model):
    """``model`` as something that JSON and trajectories can hold and that :func:`_read` understands."""
    if isinstance(model, NEPModel):
        return {"text": model.to_text()}
    return model if isinstance(model, dict) else os.fspath(model)
