"""Slow twin of the training loss: the formulas of the loss as loops over frames and sites, and small random frames.

For every channel t = 0…T, where t < T stands for the frames with at least one site of type t and T for all frames::

    L_t   = λe E_t + λf F_t + λv V_t + L1_t + L2_t
    shift = Σ_s we_s (E_s - E_s^ref) / Σ_s we_s             all frames, 0 if no frame has an energy
    E_t²  = Σ_s w_s² we_s (E_s - E_s^ref - shift)² / n_t    eV/atom
    F_t²  = Σ_s w_s² Σ_i tw_i² ρ_i |ΔF_i|² / (3 Σ_s N_s)    ρ = 1, or δ/(δ + |F_i^ref|)
    V_t²  = Σ_s w_s² [Σ_diag Δ² + λ_shear² Σ_off Δ²] / (6 n_t^V)            frames with a virial
    L1_t  = λ1 Σ |z| / M_t      L2_t = λ2 sqrt(Σ z² / M_t)  variables of type t, M_t = N_par/T; t = T: all but the
                                                            common bias, M_T = N_par

after Fan et al., PRB 104, 104309 (2021), and Song et al., Nat. Commun. 15, 10208 (2024). A term without frames is 0.

Virials here are lists xx, yy, zz, yx, zy, zx in eV/atom, positive = compressed (the lower of each off-diagonal pair).
"""

from math import sqrt

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers

from ase_nepcg.dataset import FrameCalculator
from ase_nepcg.labels import get_types, set_labels
from ase_nepcg.reference import evaluate

SIX = [(0, 0), (1, 1), (2, 2), (1, 0), (2, 1), (2, 0)]
GPA = 160.2177  # of 1 eV/Å^3, the factor in the files of the published trainer
SETTINGS = {
    "lambda_e": 1.0,
    "lambda_f": 1.0,
    "lambda_v": 0.1,
    "lambda_1": None,
    "lambda_2": None,
    "lambda_shear": 1.0,
    "force_delta": 0.0,
    "type_weight": None,
}


# ---- what a model says about frames ----------------------------------------------------------------------------------


def predict(model, frames):
    """Energies (eV/atom), forces (arrays (N, 3)) and virials (lists of six, eV/atom), one entry per frame."""
    energies, forces, virials = [], [], []
    for frame in frames:
        temperature = float(frame.info["temperature"]) if model.temperature else None
        types = get_types(frame, model.species)
        found = evaluate(model, frame.positions, frame.cell.array, frame.pbc, types, temperature)
        energies.append(found["energy"] / len(frame))
        forces.append(found["forces"])
        virials.append([found["virial"][a, b] / len(frame) for a, b in SIX])
    return energies, forces, virials


# ---- what the frames say themselves ----------------------------------------------------------------------------------


def reference_energy(frame):
    """eV/atom, or None."""
    energy = frame.calc.results.get("energy")
    return None if energy is None else energy / len(frame)


def reference_virial(frame):
    """Six numbers in eV/atom, or None."""
    if "virial" in frame.info:
        virial = np.asarray(frame.info["virial"]).reshape(3, 3)
        return [virial[a, b] / len(frame) for a, b in SIX]
    if "stress" in frame.calc.results:
        xx, yy, zz, yz, xz, xy = frame.calc.results["stress"]
        return [-frame.cell.volume * s / len(frame) for s in (xx, yy, zz, xy, yz, xz)]
    return None


def energy_weight(frame):
    return 0.0 if reference_energy(frame) is None else frame.info.get("energy_weight", 1.0)


# ---- the loss --------------------------------------------------------------------------------------------------------


def loss(model, frames, settings=None, predicted=None):
    """The loss of all channels, as a dictionary of lists with T + 1 entries (the last one: all frames).

    ``total``; ``energy`` (eV/atom), ``force`` (eV/Å), ``virial`` (eV/atom): E_t, F_t, V_t with all weights and without
    λ; ``l1``, ``l2``. Further ``shift`` (eV/atom) and ``rmse``, see :func:`rmse`. ``settings`` replace entries of
    ``SETTINGS``; ``predicted``: what :func:`predict` would give.
    """
    settings = SETTINGS | (settings or {})
    assert settings.keys() == SETTINGS.keys()
    predicted = predict(model, frames) if predicted is None else predicted
    shift = energy_shift(frames, predicted)
    found = {name: [] for name in ("total", "energy", "force", "virial", "l1", "l2")}
    for t in range(len(model.species) + 1):
        chosen = [s for s, frame in enumerate(frames) if in_channel(model, frame, t)]
        energy = energy_term(frames, predicted, chosen, shift)
        force = force_term(model, frames, predicted, chosen, settings)
        virial = virial_term(frames, predicted, chosen, settings["lambda_shear"])
        l1, l2 = regularisation(model, t, settings)
        total = settings["lambda_e"] * energy + settings["lambda_f"] * force + settings["lambda_v"] * virial + l1 + l2
        for name, value in zip(found, (total, energy, force, virial, l1, l2), strict=True):
            found[name].append(value)
    return found | {"shift": shift, "rmse": rmse(frames, predicted, shift)}


def in_channel(model, frame, t):
    types = get_types(frame, model.species)
    return t == len(model.species) or t in types


def energy_shift(frames, predicted):
    above = below = 0.0
    for s, frame in enumerate(frames):
        if energy_weight(frame) > 0:
            above += energy_weight(frame) * (predicted[0][s] - reference_energy(frame))
            below += energy_weight(frame)
    return above / below if below > 0 else 0.0


def energy_term(frames, predicted, chosen, shift):
    total = 0.0
    for s in chosen:
        if energy_weight(frames[s]) > 0:
            difference = predicted[0][s] - reference_energy(frames[s]) - shift
            total += frames[s].info.get("weight", 1.0) ** 2 * energy_weight(frames[s]) * difference**2
    return sqrt(total / len(chosen)) if chosen else 0.0


def force_term(model, frames, predicted, chosen, settings):
    total, sites = 0.0, 0
    delta = settings["force_delta"]
    for s in chosen:
        frame = frames[s]
        types = get_types(frame, model.species)
        for i in range(len(frame)):
            reference = frame.calc.results["forces"][i]
            term = sum((predicted[1][s][i][c] - reference[c]) ** 2 for c in range(3))
            if settings["type_weight"] is not None:
                term *= settings["type_weight"][types[i]] ** 2
            if delta > 0:
                term *= delta / (delta + sqrt(sum(f * f for f in reference)))
            total += frame.info.get("weight", 1.0) ** 2 * term
        sites += len(frame)
    return sqrt(total / (3 * sites)) if chosen else 0.0


def virial_term(frames, predicted, chosen, lambda_shear):
    total, count = 0.0, 0
    for s in chosen:
        reference = reference_virial(frames[s])
        if reference is None:
            continue
        weight = frames[s].info.get("weight", 1.0)
        for k in range(6):
            factor = 1.0 if k < 3 else lambda_shear**2
            total += weight**2 * factor * (predicted[2][s][k] - reference[k]) ** 2
        count += 1
    return sqrt(total / (6 * count)) if count else 0.0


def regularisation(model, t, settings):
    n_types, n_parameters = len(model.species), model.n_parameters
    default = sqrt(1e-6 * n_parameters / (1 if model.version == 3 else n_types))
    lambda_1 = default if settings["lambda_1"] is None else settings["lambda_1"]
    lambda_2 = default if settings["lambda_2"] is None else settings["lambda_2"]
    if t < n_types:
        variables, divisor = variables_of_type(model, t), n_parameters / n_types
    else:
        variables, divisor = all_variables(model), n_parameters
    absolute = sum(abs(z) for z in variables)
    square = sum(z * z for z in variables)
    return lambda_1 * absolute / divisor, lambda_2 * sqrt(square / divisor)


def network_variables(model, g):
    arrays = [model.w0, model.b0, model.w_hidden2, model.b_hidden2, model.w1, model.type_bias]
    return [z for array in arrays if array is not None for z in np.ravel(array[g]).tolist()]


def variables_of_type(model, t):
    """Network of type t (version 3: it belongs to no type), coefficients with t as the centre."""
    variables = [] if model.version == 3 else network_variables(model, t)
    for c in (model.c_radial, model.c_angular):
        variables += c[:, :, t, :].ravel().tolist()
    return variables


def all_variables(model):
    variables = [z for g in range(len(model.b0)) for z in network_variables(model, g)]
    return variables + model.c_radial.ravel().tolist() + model.c_angular.ravel().tolist()


# ---- what is reported ------------------------------------------------------------------------------------------------


def rmse(frames, predicted, shift=0.0):
    """Errors as ``loss.out`` has them: of all weights only those of the energies; 0 where nothing can be compared.

    ``energy`` (eV/atom), ``force`` (eV/Å), ``virial`` (eV/atom), ``stress`` (GPa).
    """
    squares = {"energy": 0.0, "force": 0.0, "virial": 0.0, "stress": 0.0}
    sites = virials = 0
    for s, frame in enumerate(frames):
        if energy_weight(frame) > 0:
            squares["energy"] += energy_weight(frame) * (predicted[0][s] - reference_energy(frame) - shift) ** 2
        for i in range(len(frame)):
            for c in range(3):
                squares["force"] += (predicted[1][s][i][c] - frame.calc.results["forces"][i][c]) ** 2
        sites += len(frame)
        reference = reference_virial(frame)
        if reference is not None:
            for k in range(6):
                difference = predicted[2][s][k] - reference[k]
                squares["virial"] += difference**2
                squares["stress"] += (difference * len(frame) / frame.cell.volume * GPA) ** 2
            virials += 1
    counts = {"energy": len(frames), "force": 3 * sites, "virial": 6 * virials, "stress": 6 * virials}
    return {name: sqrt(squares[name] / count) if count else 0.0 for name, count in counts.items()}


# ---- frames ----------------------------------------------------------------------------------------------------------


def random_frames(
    seed,
    n_frames,
    species,
    *,
    sites=(4, 7),
    volume=18.0,
    nearest=1.5,
    energies=True,
    virials=True,
    weights=True,
    temperatures=False,
    errors=False,
):
    """Tiny periodic frames in triclinic cells, with random numbers for everything that a model could be trained on.

    Parameters
    ----------
    species
        Labels, chemical symbols or not. Of three frames one has sites of a single type (each type in turn), if there
        are several, the others have all types.
    sites
        Smallest and largest number of sites. ``volume`` (Å^3) per site; no two sites, images included, are nearer than
        ``nearest`` (Å).
    energies
        True: of five frames one has no energy, the others one of about -3 eV per site. False: none has.
    virials
        True: of four frames two have ``info["virial"]``, one a stress instead, one neither. False: none has.
    weights
        True: all frames have a ``weight`` between 0.5 and 2. Every second one has an ``energy_weight`` (if it has an
        energy) between 0.1 and 1, one of six the energy weight 0.
    temperatures
        True: ``info["temperature"]`` between 250 and 450 K.
    errors
        True: ``arrays["force_errors"]`` and, with a virial, ``info["virial_error"]``; all positive.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for s in range(n_frames):
        n = int(rng.integers(max(sites[0], len(species)), sites[1] + 1))
        labels = [species[(s // 3) % len(species)]] * n if s % 3 == 2 else [species[i % len(species)] for i in range(n)]
        frame = _random_atoms(rng, n, volume, nearest)
        if all(label in atomic_numbers for label in species):
            frame.set_chemical_symbols(labels)
        else:
            set_labels(frame, labels, masses=18.0)
        forces = rng.normal(0.0, 0.6, (n, 3))
        results = {"forces": forces - forces.mean(axis=0)}
        if errors:
            frame.set_array("force_errors", rng.uniform(0.05, 0.2, (n, 3)))
        if energies and s % 5 != 4:
            results["energy"] = n * float(rng.normal(-3.0, 0.2))
        if virials and s % 4 != 3:
            virial = rng.normal(0.0, 0.3, (3, 3)) * n
            virial = (virial + virial.T) / 2
            if s % 4 == 1:
                results["stress"] = -virial.ravel()[[0, 4, 8, 5, 2, 1]] / frame.cell.volume
            else:
                frame.info["virial"] = virial
            if errors:
                error = rng.uniform(0.02, 0.1, (3, 3)) * n
                frame.info["virial_error"] = (error + error.T) / 2
        if weights:
            frame.info["weight"] = float(rng.uniform(0.5, 2.0))
            if s % 2 and "energy" in results:
                frame.info["energy_weight"] = 0.0 if s % 6 == 5 else float(rng.uniform(0.1, 1.0))
        if temperatures:
            frame.info["temperature"] = float(rng.uniform(250.0, 450.0))
        frame.calc = (SinglePointCalculator if "energy" in results else FrameCalculator)(frame, **results)
        frames.append(frame)
    return frames


def _random_atoms(rng, n, volume, nearest):
    while True:
        cell = np.eye(3) + rng.uniform(-0.25, 0.25, (3, 3))
        cell *= (n * volume / abs(np.linalg.det(cell))) ** (1 / 3)
        atoms = Atoms(numbers=[0] * n, scaled_positions=rng.uniform(0, 1, (n, 3)), cell=cell, pbc=True)
        distances = atoms.get_all_distances(mic=True)[np.triu_indices(n, 1)]
        own_images = atoms.cell.minkowski_reduce()[0].lengths()
        if min(distances.min(initial=np.inf), own_images.min()) > nearest:
            return atoms
