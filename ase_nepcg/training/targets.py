"""What a model is trained on, as arrays: the frames of a data set without ASE."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ..dataset.core import as_list, validate
from ..dataset.results import DatasetError, frame_virial, frame_volume, stored_results
from ..errors import is_number
from ..labels import get_labels

__all__ = ["VOIGT", "TargetError", "Targets", "species_of"]

#: components of a 3x3 tensor in the order of the trainer's files, xx yy zz xy yz zx: the lower of each pair of halves
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 0), (2, 1), (2, 0))


class TargetError(DatasetError):
    """Frames a model cannot be trained on."""


def species_of(frames) -> tuple[str, ...]:
    """Labels that occur in the frames, sorted."""
    return tuple(sorted({label for atoms in frames for label in np.unique(get_labels(atoms)).tolist()}))


@dataclass(frozen=True, eq=False)
class Targets:
    """Sites of S frames one after the other, N in all, and what is known about them."""

    species: tuple[str, ...]
    n_sites: np.ndarray  #: (S,)
    first: np.ndarray  #: (S + 1,) offsets of the sites of each frame
    types: np.ndarray  #: (N,) index into ``species``
    positions: np.ndarray  #: (N, 3) Å
    cells: np.ndarray  #: (S, 3, 3) Å
    pbc: np.ndarray  #: (S, 3) bool
    volumes: np.ndarray  #: (S,) Å^3
    energies: np.ndarray  #: (S,) eV/atom, NaN where a frame has none
    forces: np.ndarray  #: (N, 3) eV/Å
    virials: np.ndarray  #: (S, 6) eV/atom, order ``VOIGT``, positive = compressed, NaN where a frame has none
    weights: np.ndarray  #: (S,)
    energy_weights: np.ndarray  #: (S,), 0 where there is no energy
    temperatures: np.ndarray | None  #: (S,) K, for models with a temperature input
    force_errors: np.ndarray | None  #: (N, 3) eV/Å, NaN where a frame has none; None: no frame has any
    virial_errors: np.ndarray | None  #: (S, 6) eV/atom, likewise
    names: tuple[str, ...]  #: (S,) for messages

    def __len__(self) -> int:
        return len(self.n_sites)

    @property
    def has_virial(self) -> np.ndarray:
        """(S,) bool."""
        return ~np.isnan(self.virials[:, 0])

    def sites(self, frame: int) -> slice:
        """Where the sites of a frame are."""
        return slice(self.first[frame], self.first[frame + 1])

    def select(self, indices) -> Targets:
        """The frames ``indices`` (integers, or a mask), in that order."""
        indices = np.arange(len(self))[indices]
        sites = np.concatenate([np.arange(self.first[s], self.first[s + 1]) for s in indices])
        values = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "names":
                value = tuple(value[s] for s in indices)
            elif field.name == "first":
                value = np.concatenate([[0], np.cumsum(self.n_sites[indices])])
            elif field.name in ("types", "positions", "forces", "force_errors"):
                value = None if value is None else value[sites]
            elif field.name != "species" and value is not None:
                value = value[indices]
            values[field.name] = value
        return Targets(**values)

    @classmethod
    def from_frames(cls, frames, species, *, temperature: bool = False) -> Targets:
        """Check ``frames`` (list of Atoms) and take what a model for ``species`` can be trained on.

        ``temperature``: the model has a temperature input, which every frame must give as ``info["temperature"]`` (K).
        Raises :class:`~ase_nepcg.dataset.DatasetError`, with the number of the frame, for anything that is missing,
        malformed or contradictory.
        """
        frames = as_list(frames)
        validate(frames)
        species = tuple(species)
        per_frame = [_take(atoms, species, temperature, index) for index, atoms in enumerate(frames)]
        n_sites = np.array([len(atoms) for atoms in frames])

        def stacked(name):
            return np.array([frame[name] for frame in per_frame])

        def joined(name):
            # of Fortran-ordered arrays numpy makes another one, and kernels want rows
            return np.ascontiguousarray(np.concatenate([frame[name] for frame in per_frame]))

        def known(array):
            return None if np.isnan(array).all() else array

        return cls(
            species=species,
            n_sites=n_sites,
            first=np.concatenate([[0], np.cumsum(n_sites)]),
            types=joined("types").astype(np.int32),
            positions=joined("positions"),
            cells=stacked("cell"),
            pbc=stacked("pbc"),
            volumes=stacked("volume"),
            energies=stacked("energy"),
            forces=joined("forces"),
            virials=stacked("virial"),
            weights=stacked("weight"),
            energy_weights=stacked("energy_weight"),
            temperatures=stacked("temperature") if temperature else None,
            force_errors=known(joined("force_errors")),
            virial_errors=known(stacked("virial_error")),
            names=tuple(frame["name"] for frame in per_frame),
        )


# times the wanted temperature: twice can be chance in a short run of few atoms
_WRONG = 5.0


def went_wrong(atoms) -> bool:
    """Whether a frame of averages is from a run whose kinetic temperature was far above the wanted one."""
    wanted, found = (atoms.info.get(name) for name in ("temperature", "kinetic_temperature"))
    # NaN where nothing moved
    return is_number(wanted) and is_number(found) and bool(found > _WRONG * wanted)


def _take(atoms, species, temperature: bool, index: int) -> dict:
    n, info, results = len(atoms), atoms.info, stored_results(atoms)
    labels = get_labels(atoms)
    unknown = sorted(set(labels.tolist()) - set(species))
    if unknown:
        raise TargetError(
            f"labels {', '.join(unknown)} are not among the species of the model ({', '.join(species)}); give species= "
            "with all labels of the frames",
            frame=index,
        )
    energy_weight = info.get("energy_weight")
    energy = results.get("energy", np.nan)
    if not np.isfinite(energy):
        if "energy" in results:
            raise TargetError(f"energy: expected a finite number, got {energy!r}", frame=index)
        if energy_weight:
            raise TargetError(f"energy_weight is {energy_weight:g}, but there is no energy", frame=index)
        energy_weight = 0.0
    kelvin = info.get("temperature")
    if temperature and kelvin is None:
        raise TargetError(
            "temperature: the model has a temperature input, expected info['temperature'] in K, got none", frame=index
        )
    if went_wrong(atoms):
        raise TargetError(
            f"kinetic_temperature is {info['kinetic_temperature']:g} K, temperature {kelvin:g} K: the run that this "
            "frame is an average of went wrong; leave it out or sample it again",
            frame=index,
        )
    virial = frame_virial(atoms, results)
    error = info.get("virial_error") if virial is not None else None
    return {
        "types": np.array([species.index(label) for label in labels.tolist()]),
        "positions": atoms.positions.copy(),
        "cell": atoms.cell.array.copy(),
        "pbc": atoms.pbc.copy(),
        "volume": frame_volume(atoms),
        "energy": energy / n,
        "forces": np.array(results["forces"], float),
        "virial": _six(virial, n),
        "weight": 1.0 if info.get("weight") is None else float(info["weight"]),
        "energy_weight": 1.0 if energy_weight is None else float(energy_weight),
        "temperature": np.nan if kelvin is None else float(kelvin),
        "force_errors": np.asarray(atoms.arrays.get("force_errors", np.full((n, 3), np.nan)), float),
        "virial_error": _six(error, n),
        "name": str(info.get("config_type", f"frame {index}")),
    }


def _six(tensor, n: int) -> np.ndarray:
    """A tensor of the whole cell, (3, 3) or None, per atom in the order ``VOIGT``."""
    if tensor is None:
        return np.full(6, np.nan)
    return np.array([np.asarray(tensor)[i] / n for i in VOIGT])
