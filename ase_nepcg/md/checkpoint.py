"""Checkpoints of MD: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import os
import warnings

import numpy as np
from ase.io.jsonio import decode, encode

from ..calculator import NEP
from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..errors import NepCGError
from ..model import NEPModel
from ..potential.simd import LANES
from .ensembles import ensemble_from_dict
from .observers import from_dict as observer_from_dict
from .outputs import output_from_dict

__all__ = ["checked_path", "read", "write"]

_KIND = "md"
# outputs whose path is that of a file
_FILES = ("trajectory", "thermo", "log")
# of the state; virials of the sites belong to it where the ensemble's forces depend on them
_STATE = ("x", "v", "f", "cell", "virial", "energy", "energies", "held", "n_dof")


def _state_arrays(md) -> dict:
    """name -> array of everything that changes."""
    simulation = md.simulation
    names = (*_STATE, "virials") if md.ensemble.per_site else _STATE
    arrays = {name: getattr(simulation.state, name) for name in names}
    return arrays | {"q": simulation.q, "progress": simulation.progress, "limits": simulation.limits}


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _model_text(md) -> str:
    if getattr(md, "_model_text", None) is None:
        md._model_text = md.calc.model.to_text()
    return md._model_text


def checked_path(path):
    """``path`` if a checkpoint can be written there; an older one of MD may be replaced, nothing else."""
    if path is None:
        return None
    # the same file wherever the process goes meanwhile
    path = os.path.abspath(os.fsdecode(path))
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise CheckpointError(f"{path}: there is no folder {folder}; make it first")
    if os.path.exists(path):
        read_checkpoint(path, _KIND)
    return path


def _seen_from(folder: str, path):
    """``path`` as it is kept: what lies in the folder of the checkpoint may be moved or copied together with it."""
    if path is None:
        return None
    path = _located(path)
    inside = os.path.commonpath([folder, path]) == folder
    return os.path.relpath(path, folder) if inside else path


def _located(path) -> str:
    """Absolute name without links to folders; the file itself may be a link."""
    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    return os.path.join(os.path.realpath(folder), name)


def _moved(entry: dict, move) -> dict:
    """Settings of an output with its path changed by ``move``."""
    named = entry["kind"] in _FILES and entry["path"] and entry["mark"] is not None
    return entry | {"path": move(entry["path"])} if named else entry


def _storable(md):
    """A copy of the atoms of ``md`` without what JSON cannot hold in ``info``."""
    atoms = md.atoms.copy()
    left = []
    for key in list(atoms.info):
        try:
            encode({key: atoms.info[key]})
        except TypeError:
            left.append(key)
            del atoms.info[key]
    if left and left != getattr(md, "_left_out", None):
        md._left_out = left
        warnings.warn(
            f"atoms.info: {', '.join(map(repr, left))} cannot be kept in a checkpoint (neither numbers, texts, arrays, "
            "nor lists or dictionaries of them); a restarted run will not have it",
            RuntimeWarning,
            stacklevel=2,
        )
    return atoms


def write(path, md) -> None:
    """Write the run ``md`` to ``path``, atomically; CheckpointError if there is no room, the older file is kept."""
    folder = os.path.dirname(_located(path))
    arrays = _state_arrays(md)
    arrays |= {"ints": md.simulation.calendar.ints, "floats": md.simulation.calendar.floats}
    arrays["model"] = np.frombuffer(_model_text(md).encode(), np.uint8)
    header = {
        "timestep_fs": md.timestep_fs,
        "ensemble": md.ensemble.todict(),
        "seed": md.seed,
        "calculator": {name: md.calc.parameters[name] for name in ("device", "precision", "threads", "temperature_K")},
        "model_hash": _fingerprint(_model_text(md)),
        "model_file": source if isinstance(source := md.calc.parameters["model"], str) else None,
        "atoms": encode(_storable(md)),
        "called": md._called,
        "max_steps": md.max_steps,
        "lanes": LANES,
        "checkpoint_interval": md.checkpoint_interval,
        "checkpoint_path": _seen_from(folder, md.checkpoint_path),
        "observers": [
            {
                "settings": handle.observer.todict(),
                "interval": handle.interval,
                "after": handle.after,
                "sizes": [len(handle.ints), len(handle.floats)],
            }
            for handle in md.handles
        ],
        "outputs": [
            _moved(output.todict() | {"mark": output.mark()}, lambda path: _seen_from(folder, path))
            for output in md.outputs
        ],
    }
    try:
        write_checkpoint(path, _KIND, header, arrays)
    except OSError as error:
        raise CheckpointError(
            f"{os.fsdecode(path)}: the checkpoint cannot be written ({error.strerror or error}); an older one is as it "
            "was. Make room or choose another place"
        ) from error


def read(cls, path, calc, progress):
    """The run of ``path``, see :meth:`~ase_nepcg.MD.restart`."""
    header, arrays = read_checkpoint(path, _KIND)
    path = os.fsdecode(path)
    if header["observers"] and header["lanes"] != LANES:
        raise CheckpointError(
            f"{path}: the observers' numbers were kept for a processor with vectors of {header['lanes']} numbers, here "
            f"they have {LANES}; go on with the run on a machine like the first one"
        )
    folder = os.path.dirname(_located(path))
    own = header["checkpoint_path"]
    atoms = decode(header["atoms"])
    atoms.calc = _calculator(path, header, arrays["model"].tobytes().decode(), calc)
    ensemble = _named(path, ensemble_from_dict, header["ensemble"])
    observers = [_named(path, observer_from_dict, entry["settings"]) for entry in header["observers"]]
    md = cls(
        atoms,
        header["timestep_fs"],
        ensemble,
        seed=header["seed"],
        checkpoint=None if own is None else os.path.join(folder, own),
        checkpoint_interval=header["checkpoint_interval"],
        progress=progress,
    )
    at = [0, 0]
    for observer, entry in zip(observers, header["observers"], strict=True):
        end = at[0] + entry["sizes"][0], at[1] + entry["sizes"][1]
        sums = arrays["ints"][at[0] : end[0]].copy(), arrays["floats"][at[1] : end[1]].copy()
        md._attach_observer(observer, entry["interval"], arrays=sums, after=entry["after"])
        at = end
    for name, target in _state_arrays(md).items():
        if arrays[name].shape != target.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {arrays[name].shape}, expected {target.shape}; the file belongs to another "
                "run"
            )
        target[...] = arrays[name]
    md._ready, md._called, md.max_steps = True, header["called"], header["max_steps"]
    md._sync()
    try:
        for entry in header["outputs"]:
            output = md.add_output(output_from_dict(_moved(entry, lambda path: os.path.join(folder, path))))
            if entry["mark"] is not None:
                output.restore(entry["mark"])
    except BaseException:
        # others may use the files now
        md.close()
        raise
    return md


def _calculator(path, header: dict, text: str, calc) -> NEP:
    """``calc`` if it is the one of the run; None: a new one."""
    made = header["calculator"]
    if calc is None:
        return NEP(_source(header) or NEPModel.from_text(text), **made)
    if not isinstance(calc, NEP) or _fingerprint(calc.model.to_text()) != header["model_hash"]:
        raise CheckpointError(
            f"{path}: made with another model than that of the given calculator; leave calc out to use the model in "
            "the checkpoint"
        )
    if calc.parameters.temperature_K != made["temperature_K"]:
        raise CheckpointError(
            f"{path}: made with temperature_K={made['temperature_K']} of the model, got a calculator with "
            f"{calc.parameters.temperature_K}; give it the same, or leave calc out"
        )
    return calc


def _source(header: dict) -> str | None:
    """The file that the model was read from, if it is still there: trajectories repeat its name with every frame, and
    the whole model where there is none."""
    source = header["model_file"]
    try:
        same = source is not None and _fingerprint(NEPModel.read(source).to_text()) == header["model_hash"]
    except (NepCGError, OSError):
        return None
    return source if same else None


def _named(path, make, settings: dict):
    """An ensemble or observer from its settings in the file ``path``."""
    try:
        return make(settings)
    except (NepCGError, TypeError) as error:
        raise CheckpointError(
            f"{path}: made by another version of ase_nepcg, or with a class of one's own ({error}); go on with that "
            "version, or start a new run from the last frame"
        ) from None
