"""Data sets: files of training frames, what a frame may contain, splitting.

>>> frames = read_dataset("train.xyz")
>>> train, test = split(frames, 0.1, seed=1)
>>> write_dataset("test.xyz", test)

A frame is an ``Atoms`` of sites: labels (:mod:`ase_nepcg.labels`), masses, a cell, forces in a calculator, and:

- ``info``: ``virial`` (3, 3) in eV, positive = compressed, its ``virial_error``, and the same pair for
  ``virial_molecular``, ``virial_atomic`` (the two estimators) and ``virial_dT`` (per K); ``temperature`` (K),
  ``ensemble``, ``timestep_fs``, ``time_ps``, ``seed``, ``calculator`` (of the atoms), ``mean_energy`` with
  ``mean_energy_error`` (eV, of the atoms: not the potential of mean force), ``n_atoms``, ``energy_weight`` (0: the
  frame has no energy), ``weight``;
- ``arrays``: ``force_errors`` and ``n_effective`` (N, 3), ``atoms_per_bead`` (N,), and for thermal response
  ``forces_dT`` (eV/Å/K) and ``forces_dT2`` with ``…_errors``, all (N, 3).

All but forces and cell are optional. Files are extended XYZ as GPUMD's trainer reads it, see :mod:`ase_nepcg.io`. Two
things that GPUMD does not know: ``gnep`` and releases before ``energy_weight`` take every energy seriously, so train
mean-force frames there with ``lambda_e 0``; and it treats every cell as periodic in all directions.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Iterable

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io.formats import open_with_compression

from ..errors import ModelError, validate_array
from ..hyper import is_plain
from ..labels import get_labels, has_labels
from .reader import read_frames
from .results import DatasetError, FrameCalculator, frame_virial, frame_volume, stored_results
from .writer import format_frame

__all__ = ["DatasetError", "FrameCalculator", "read_dataset", "split", "summary", "validate", "write_dataset"]

_COMPRESS = {".gz": lambda text: gzip.compress(text, mtime=0), ".bz2": bz2.compress, ".xz": lzma.compress}
# arrays of floats (N, 3); all but the responses themselves may not be negative
_ARRAYS = ("force_errors", "n_effective", "forces_dT", "forces_dT_errors", "forces_dT2", "forces_dT2_errors")
_TENSORS = ("virial_error", "virial_molecular", "virial_molecular_error", "virial_atomic", "virial_atomic_error")
_TENSORS += ("virial_dT", "virial_dT_error")
# smallest value, and whether that value itself is allowed
_NUMBERS = {
    "temperature": (0, False),
    "timestep_fs": (0, False),
    "time_ps": (0, True),
    "mean_energy": (-np.inf, False),
    "mean_energy_error": (0, True),
    "n_atoms": (1, True),
    "energy_weight": (0, True),
    "weight": (0, False),
}
_MASS_TOLERANCE = 0.01
_GPUMD_SYMBOLS = frozenset(chemical_symbols[1:95])  # H to Pu


def read_dataset(path) -> list[Atoms]:
    """All frames of a file (also .gz, .bz2, .xz): labels, masses, arrays, info and results as they were written.

    Also reads the training files of other programs. Raises :class:`DatasetError`, naming frame and line, for a
    malformed or truncated file and for frames without forces, ``FileNotFoundError`` if there is no file.
    """
    path = os.fspath(path)
    try:
        with open_with_compression(path) as file:
            frames = list(read_frames(file, path=path))
    except (UnicodeDecodeError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DatasetError(f"expected a complete text file (extended XYZ): {error}", path) from error
    for i, atoms in enumerate(frames):
        if "forces" not in stored_results(atoms):
            raise DatasetError("expected a column forces:R:3 or force:R:3, got none", path, i)
    return frames


def write_dataset(path, frames) -> None:
    """Write frames (an iterable of ``Atoms``, or one) to a file, replacing an existing one at once when all is well.

    Numbers keep all their digits. A name that ends in .gz, .bz2 or .xz gives a compressed file. Raises
    :class:`DatasetError`, naming the frame, for what :func:`validate` refuses or the format cannot hold; then nothing
    is written.
    """
    from ..nepfile import write_atomically

    path = os.fspath(path)
    frames = as_list(frames)
    validate(frames)
    texts = []
    for i, atoms in enumerate(frames):
        try:
            texts.append(format_frame(atoms))
        except DatasetError as error:
            raise DatasetError(str(error), frame=i) from error
    text = "".join(texts).encode("ascii")
    compress = _COMPRESS.get(os.path.splitext(os.fsdecode(path))[1])
    write_atomically(path, compress(text) if compress else text)


def split(frames, fraction: float = 0.1, seed: int = 0) -> tuple[list[Atoms], list[Atoms]]:
    """Training and test frames: a random ``fraction`` of the frames, at least one, is the test set.

    The same ``seed`` gives the same choice; the order within each set is kept, frames are not copied. Each set gets at
    least one frame. Neighbouring snapshots of one trajectory are no independent test: split trajectories instead.
    """
    frames = as_list(frames)
    if len(frames) < 2:
        raise DatasetError(f"expected at least 2 frames to split, got {len(frames)}")
    if not isinstance(fraction, int | float | np.number) or not 0 < fraction < 1:
        raise DatasetError(f"fraction: expected a number between 0 and 1, got {fraction!r}")
    n_test = min(max(1, round(fraction * len(frames))), len(frames) - 1)
    chosen = np.random.default_rng(seed).choice(len(frames), n_test, replace=False)
    is_test = np.zeros(len(frames), dtype=bool)
    is_test[chosen] = True
    return (
        [frame for frame, test in zip(frames, is_test, strict=True) if not test],
        [frame for frame, test in zip(frames, is_test, strict=True) if test],
    )


# ---- checks ---------------------------------------------------------------------------------------------------------


def validate(frames) -> list[str]:
    """Check that ``frames`` can be trained on; return remarks on what is legal but may be unintended.

    Raises :class:`DatasetError`, naming the frame, for: missing or outdated forces, numbers that are not finite, labels
    other programs cannot read, a cell without volume, a virial that is not symmetric or contradicts the stress, arrays
    and info of wrong shape or sign, errors without the quantity they belong to, and one label for sites whose masses
    differ from frame to frame by more than 1 %.
    """
    frames = as_list(frames)
    masses = {}
    for i, atoms in enumerate(frames):
        try:
            _check_frame(atoms)
            _check_masses(masses, atoms, i)
        except (ModelError, DatasetError) as error:
            raise DatasetError(str(error), frame=i) from error
    return _remarks(frames)


def summary(frames) -> str:
    """A few lines of text about ``frames``: sites and masses of each label, forces and their errors, what is there."""
    frames = as_list(frames)
    labels = np.concatenate([get_labels(atoms) for atoms in frames])
    masses = np.concatenate([_known_masses(atoms) for atoms in frames])
    sizes = sorted({len(atoms) for atoms in frames})
    sites = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    lines = [f"{_frames(len(frames))} of {sites} sites"]
    for label in dict.fromkeys(labels.tolist()):
        chosen = masses[labels == label]
        low, high = (f"{f(chosen):.6g}" for f in (np.min, np.max))
        mass = "no mass" if np.isnan(chosen).any() else f"{low} amu" if low == high else f"{low} to {high} amu"
        lines.append(f"  {label:16} {len(chosen):8d} sites, {mass}")
    results = [stored_results(atoms) for atoms in frames]
    lines.append(f"forces: rms {_rms([stored['forces'] for stored in results if 'forces' in stored])} eV/Å")
    errors = [atoms.arrays["force_errors"] for atoms in frames if "force_errors" in atoms.arrays]
    lines.append(f"standard errors of the forces: rms {_rms(errors)} eV/Å, {_frames(len(errors))}")
    virials = [frame_virial(atoms, stored) for atoms, stored in zip(frames, results, strict=True)]
    lines.append(f"virials: {_frames(sum(virial is not None for virial in virials))}")
    lines.append(f"energies: {_frames(sum('energy' in stored for stored in results))}")
    lines.append(f"thermal response: {_frames(sum('forces_dT' in atoms.arrays for atoms in frames))}")
    temperatures = sorted({float(atoms.info["temperature"]) for atoms in frames if "temperature" in atoms.info})
    lines.append("temperatures: " + (", ".join(f"{value:g}" for value in temperatures) + " K" if temperatures else "-"))
    return "\n".join(lines)


def as_list(frames) -> list[Atoms]:
    frames = [frames] if isinstance(frames, Atoms) else frames
    if not isinstance(frames, Iterable) or isinstance(frames, str | bytes):
        raise DatasetError(f"frames: expected a list of Atoms, got {frames!r}")
    frames = list(frames)
    for i, atoms in enumerate(frames):
        if not isinstance(atoms, Atoms):
            remedy = ": give its .frame" if hasattr(atoms, "frame") else ""
            raise DatasetError(f"expected Atoms, got {type(atoms).__name__}{remedy}", frame=i)
    if not frames:
        raise DatasetError("frames: expected at least one frame, got none")
    return frames


def _check_frame(atoms) -> None:
    n = len(atoms)
    if not n:
        raise DatasetError("expected at least one site, got none")
    validate_array("positions", atoms.positions, (n, 3))
    validate_array("cell", atoms.cell.array, (3, 3))
    if not frame_volume(atoms):
        raise DatasetError(
            f"cell: expected three vectors that span space, got {atoms.cell.array.tolist()}; frames have a cell also "
            "where they are not periodic (atoms.center(vacuum=10) makes one)"
        )
    results = stored_results(atoms)
    if "forces" not in results:
        stale = atoms.calc is not None and "forces" in (getattr(atoms.calc, "results", None) or {})
        reason = "those of its calculator belong to other positions or labels" if stale else "it has none"
        raise DatasetError(f"forces: expected a calculator with stored forces for these positions, but {reason}")
    validate_array("forces", results["forces"], (n, 3))
    virial = frame_virial(atoms, results)

    info = atoms.info
    for name in _ARRAYS:
        if name in atoms.arrays:
            array = validate_array(name, atoms.arrays[name], (n, 3))
            if not name.endswith(("_dT", "_dT2")) and (array < 0).any():
                raise DatasetError(f"{name}: expected numbers >= 0, got {array.min():g}")
    if "atoms_per_bead" in atoms.arrays:
        counts = atoms.arrays["atoms_per_bead"]
        if counts.shape != (n,) or counts.dtype.kind not in "iu" or (counts < 1).any():
            raise DatasetError(f"atoms_per_bead: expected ({n},) integers >= 1, got {counts.dtype} {counts.shape}")
    for name in _TENSORS:
        if info.get(name) is not None:
            tensor = validate_array(name, info[name], (3, 3))
            if name.endswith("_error") and (tensor < 0).any():
                raise DatasetError(f"{name}: expected numbers >= 0, got {tensor.min():g}")
    for name, (least, inclusive) in _NUMBERS.items():
        value = info.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not np.isfinite(value):
            raise DatasetError(f"{name}: expected a number, got {value!r}")
        if value < least or (value == least and not inclusive):
            raise DatasetError(f"{name}: expected a number {'>=' if inclusive else '>'} {least:g}, got {value!r}")
    if (info.get("weight") or 1) > 100:
        raise DatasetError(f"weight: GPUMD expects at most 100, got {info['weight']!r}")
    for name in ("calculator", "ensemble"):
        value = info.get(name)
        if value is not None and not (isinstance(value, str) and value and is_plain(value)):
            raise DatasetError(f"{name}: expected one word without blanks, quotes and '=', got {value!r}")
    for name in (*_ARRAYS[1:], *_TENSORS, *_NUMBERS):
        base = name.removesuffix("s").removesuffix("_error")
        there = {*atoms.arrays, *info, *(["virial"] if virial is not None else [])}
        if name in there and name.endswith(("_error", "_errors")) and base not in there:
            raise DatasetError(f"{name}: expected {base} with it, got none")


def _known_masses(atoms) -> np.ndarray:
    """Masses (N,) in amu, NaN where they are neither given nor those of an element."""
    masses = atoms.get_masses()
    if not atoms.has("masses"):
        masses[atoms.numbers == 0] = np.nan
        if has_labels(atoms):
            masses[:] = np.nan
    return masses


def _check_masses(seen: dict, atoms, frame: int) -> None:
    """Compare masses with those ``seen`` under the same label in earlier frames: label -> (least, greatest, frame)."""
    labels, masses = get_labels(atoms), _known_masses(atoms)
    if not (np.isnan(masses) | (masses > 0)).all():
        raise DatasetError(f"masses: expected positive numbers, got {np.nanmin(masses):g}")
    for label in np.unique(labels).tolist():
        chosen = masses[labels == label]
        if np.isnan(chosen).any():
            continue
        low, high = float(chosen.min()), float(chosen.max())
        least, greatest, first = seen.setdefault(label, (low, high, frame))
        if low > greatest * (1 + _MASS_TOLERANCE) or high < least * (1 - _MASS_TOLERANCE):
            raise DatasetError(
                f"label {label!r} has mass {low:g} amu, but {least:g} in frame {first}: one label for two kinds of "
                "sites? Give them different labels (ase_nepcg.labels.set_labels)"
            )


def _remarks(frames: list[Atoms]) -> list[str]:
    remarks = []

    def remark(chosen: list[bool], text: str) -> None:
        if any(chosen):
            remarks.append(f"{sum(chosen)} of {_frames(len(frames))} {text}; the first is frame {chosen.index(True)}")

    results = [stored_results(atoms) for atoms in frames]
    virials = [frame_virial(atoms, stored) is None for atoms, stored in zip(frames, results, strict=True)]
    remark(virials, "have no virial: pressures and densities will not be learnt from them")
    remark(
        [not atoms.pbc.all() for atoms in frames],
        "are not periodic in all directions: GPUMD's trainer takes them as periodic",
    )
    remark(
        ["energy" in stored and stored["energy"] < -100 * len(a) for a, stored in zip(frames, results, strict=True)],
        "have energies below -100 eV per site: subtract those of free atoms, GPUMD trains in single precision",
    )
    foreign = sorted({label for atoms in frames for label in get_labels(atoms).tolist()} - _GPUMD_SYMBOLS)
    if foreign:
        remarks.append(
            f"GPUMD's trainer takes only chemical symbols H to Pu as labels, not {', '.join(foreign[:10])}: choose "
            "symbols that do not occur otherwise if it is to read the file"
        )
    return remarks


def _frames(n: int) -> str:
    return f"{n} frame" if n == 1 else f"{n} frames"


def _rms(arrays: list) -> str:
    return f"{np.sqrt(np.mean(np.square(np.concatenate(arrays)))):.4g}" if arrays else "-"
