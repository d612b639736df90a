"""Frames from other sources than constrained sampling: all-atom trajectories, and files of GPUMD's ``dump_cg``.

Force matching on instantaneous forces fits the same mean forces as constrained averages do, but from samples whose
scatter is several times larger than what a model leaves unexplained: many more frames are needed.
"""

from __future__ import annotations

import operator

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.units import kB

from ..errors import ModelError, validate_array
from ..labels import LabelError, get_labels, set_labels
from ..mapping.molecules import MappingError
from .core import DatasetError, FrameCalculator, read_dataset
from .results import frame_volume, stored_results, stress_from_virial, virial_from_stress

__all__ = ["force_matching_frames", "read_dump_cg", "replace_temperature"]


def force_matching_frames(frames, mapping, temperature_K: float | None = None) -> list[Atoms]:
    """Frames of beads with the instantaneous forces and molecular virial of each all-atom frame.

    ``frames``: an iterable of ``Atoms`` (or one) with stored forces, or with a calculator that gives them. The virial
    is there where there is a stress; it is the molecular estimator, symmetrised, and averages to that of the coarse
    model without a temperature, except that every molecule without a site adds kT: for these ``temperature_K``, the
    temperature of the trajectory, is needed. If given it is also noted in ``info["temperature"]``.

    The beads carry labels, masses, momenta where the atoms have any, the array ``atoms_per_bead``, and
    ``info["source"] = "force_matching"``; they have no energy. Raises :class:`~ase_nepcg.dataset.DatasetError`, naming
    the frame, for missing forces, and :class:`~ase_nepcg.mapping.MappingError` for atoms that do not fit the mapping.
    """
    if temperature_K is not None:
        temperature_K = _number("temperature_K", temperature_K, least=0.0)
    beads = []
    for i, atoms in enumerate([frames] if isinstance(frames, Atoms) else frames):
        try:
            beads.append(_force_matching_frame(atoms, mapping.bind(atoms), temperature_K))
        except MappingError as error:
            raise MappingError(f"frame {i}: {error}") from error
        except (DatasetError, ModelError) as error:
            raise DatasetError(str(error), frame=i) from error
    return beads


def _force_matching_frame(atoms, bound, temperature_K) -> Atoms:
    if atoms.calc is None:
        raise DatasetError("expected atoms with stored forces or a calculator, got neither")
    try:
        forces = atoms.get_forces(apply_constraint=False)
    except PropertyNotImplementedError as error:
        raise DatasetError(f"forces: the calculator has none for these positions ({error})") from error
    forces = validate_array("forces", forces, (bound.n_atoms, 3))
    beads = bound.beads(atoms)
    beads.set_array("atoms_per_bead", np.array([len(group) for group in bound.groups], dtype=int))
    beads.info |= {"energy_weight": 0.0, "n_atoms": bound.n_atoms, "source": "force_matching"}
    if temperature_K is not None:
        beads.info["temperature"] = temperature_K
    results = {"forces": bound.forces(forces)}
    virial = _virial(atoms)
    if virial is not None:
        whole = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
        virial = bound.molecular_virial(whole, forces, virial)
        if bound.n_implicit:
            if temperature_K is None:
                raise DatasetError(
                    f"temperature_K: expected the temperature of the trajectory, since {bound.n_implicit} molecules "
                    "have no site and add kT each to the virial"
                )
            virial = virial + bound.n_implicit * kB * temperature_K * np.eye(3)
        beads.info["virial"] = virial
        results["stress"] = stress_from_virial(virial, frame_volume(beads))
    beads.calc = FrameCalculator(beads, **results)
    return beads


def _virial(atoms):
    """Virial of the atoms (3, 3) in eV, None without cell or stress."""
    volume = frame_volume(atoms)
    if not volume:
        return None
    try:
        stress = atoms.get_stress(apply_constraint=False)
    except NotImplementedError:  # PropertyNotImplementedError is one, and some calculators raise the plain one
        return None
    return virial_from_stress(validate_array("stress", stress, (6,)), volume)


def read_dump_cg(path, masses=None, temperature_K: float | None = None) -> list[Atoms]:
    """Frames that GPUMD's ``dump_cg`` has appended to a file, as frames without energy.

    What it writes as energy is the mean energy of the atoms and becomes ``info["mean_energy"]``. It writes no masses:
    ``masses`` in amu is one number or a mapping from every label to its mass (None: left unset; ASE then takes those of
    the chemical symbols GPUMD uses as names). ``temperature_K`` is the one in the files' virial, noted in
    ``info["temperature"]``.

    That virial contains ``(N_atoms - N_beads) k T 1`` with the T to which the last thermostat of the ``run.in`` was
    set, not the temperature measured, and an undefined number if none came before: see :func:`replace_temperature`.
    There are no error bars. Raises :class:`~ase_nepcg.dataset.DatasetError` as :func:`~ase_nepcg.read_dataset`.
    """
    if temperature_K is not None:
        temperature_K = _number("temperature_K", temperature_K, least=0.0)
    frames = read_dataset(path)
    for i, atoms in enumerate(frames):
        results = stored_results(atoms)
        energy = results.pop("energy", atoms.info.pop("unused_energy", None))
        results.pop("free_energy", None)
        if energy is not None:
            atoms.info["mean_energy"] = energy
        atoms.info["energy_weight"] = 0.0
        if temperature_K is not None:
            atoms.info["temperature"] = temperature_K
        try:
            set_labels(atoms, get_labels(atoms), masses)
        except LabelError as error:
            raise DatasetError(str(error), path, i) from error
        atoms.calc = FrameCalculator(atoms, **results)
    return frames


def replace_temperature(frame, old_K: float, new_K: float, n_atoms: int) -> Atoms:
    """A copy of a ``dump_cg`` frame whose virial holds ``new_K`` in place of the ``old_K`` that GPUMD put in.

    The virial's diagonal changes by ``(n_atoms - N_beads) k (new_K - old_K)``; the stress follows. ``n_atoms`` is the
    number of atoms of the simulation, ``old_K`` the final target of the last thermostat in its ``run.in``, ``new_K``
    the temperature at which the beads were held, counted with ``3 (n_atoms - N_beads)`` degrees of freedom (GPUMD
    prints it with ``3 n_atoms``, i.e. too low). ``info["temperature"]`` and ``info["n_atoms"]`` become the new ones.
    Raises :class:`~ase_nepcg.dataset.DatasetError` for a frame without virial, with another temperature noted than
    ``old_K``, or whose virial is the molecular estimator, which contains no temperature.
    """
    old_K, new_K = _number("old_K", old_K, least=0.0), _number("new_K", new_K, least=0.0)
    try:
        n_atoms = operator.index(n_atoms)
    except TypeError:
        raise DatasetError(f"n_atoms: expected an integer, got {n_atoms!r}") from None
    info, results = frame.info, stored_results(frame)
    if n_atoms < len(frame):
        raise DatasetError(f"n_atoms: expected at least the {len(frame)} sites of the frame, got {n_atoms}")
    if "forces" not in results or "energy" in results or "virial" not in info:
        raise DatasetError("expected a frame with forces, info['virial'] and no energy, as read_dump_cg returns")
    if "virial_molecular" in info or info.get("source") == "force_matching":
        raise DatasetError("the virial of this frame is the molecular estimator: no temperature is in it")
    for name, noted, given in (("old_K", "temperature", old_K), ("n_atoms", "n_atoms", n_atoms)):
        if abs(info.get(noted, given) - given) > 1e-9 * abs(given):
            raise DatasetError(f"{name} is {given:g}, but the frame notes info[{noted!r}] = {info[noted]:g}")
    virial = validate_array("virial", info["virial"], (3, 3)) + (n_atoms - len(frame)) * kB * (new_K - old_K) * np.eye(
        3
    )
    changed = frame.copy()
    changed.info |= {"virial": virial, "temperature": new_K, "n_atoms": n_atoms}
    results["stress"] = stress_from_virial(virial, frame_volume(frame))
    changed.calc = FrameCalculator(changed, **results)
    return changed


def _number(name: str, value, least: float) -> float:
    value = float(validate_array(name, value, ()))
    if value < least:
        raise DatasetError(f"{name}: expected a number >= {least:g}, got {value:g}")
    return value
