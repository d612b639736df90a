"""Checkpoints of MD: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import os

import numpy as np
from ase.io.jsonio import decode, encode

from ..calculator import NEP
from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..model import NEPModel
from ..potential.simd import LANES
from .ensembles import ensemble_from_dict
from .observers import from_dict as observer_from_dict
from .outputs import output_from_dict

__all__ = ["checked_path", "read", "write"]

_KIND = "md"
# outputs whose path is that of a file
_FILES = ("trajectory", "thermo", "log")
_STATE = ("x", "v", "f", "cell", "virial", "energy", "energies", "held", "n_dof")


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
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise CheckpointError(f"{path}: there is no folder {folder}; make it first")
    if os.path.exists(path):
        read_checkpoint(path, _KIND)
    return path


def _seen_from(folder: str, path):
    """``path`` as it is kept: what lies in the folder of the checkpoint may be moved or copied together with it."""
    if path is None:
        return None
    path = os.path.abspath(path)
    inside = os.path.commonpath([folder, path]) == folder
    return os.path.relpath(path, folder) if inside else path


def _moved(entry: dict, move) -> dict:
    """Settings of an output with its path changed by ``move``."""
    return entry | {"path": move(entry["path"])} if entry["kind"] in _FILES and entry["path"] else entry


def write(path, md) -> None:
    """Write the run ``md`` to ``path``, atomically."""
    folder = os.path.dirname(os.path.abspath(path))
    simulation = md.simulation
    state = simulation.state
    arrays = {name: getattr(state, name) for name in _STATE}
    arrays |= {"q": simulation.q, "progress": simulation.progress, "limits": simulation.limits}
    arrays |= {"ints": simulation.calendar.ints, "floats": simulation.calendar.floats}
    arrays["model"] = np.frombuffer(_model_text(md).encode(), np.uint8)
    atoms = md.atoms.copy()
    header = {
        "timestep_fs": md.timestep_fs,
        "ensemble": md.ensemble.todict(),
        "seed": md.seed,
        "calculator": {name: md.calc.parameters[name] for name in ("device", "precision", "threads", "temperature_K")},
        "model_hash": _fingerprint(_model_text(md)),
        "atoms": encode(atoms),
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
            _moved(output.todict(), lambda path: _seen_from(folder, path)) | {"mark": output.mark()}
            for output in md.outputs
        ],
    }
    write_checkpoint(path, _KIND, header, arrays)


def read(cls, path, calc, progress):
    """The run of ``path``, see :meth:`~ase_nepcg.MD.restart`."""
    header, arrays = read_checkpoint(path, _KIND)
    if header["observers"] and header["lanes"] != LANES:
        raise CheckpointError(
            f"{os.fspath(path)}: the observers' numbers were kept for a processor with vectors of {header['lanes']} "
            f"numbers, here they have {LANES}; go on with the run on a machine like the first one"
        )
    folder = os.path.dirname(os.path.abspath(path))
    own = header["checkpoint_path"]
    text = arrays["model"].tobytes().decode()
    if calc is None:
        calc = NEP(NEPModel.from_text(text), **header["calculator"])
    elif not isinstance(calc, NEP) or _fingerprint(calc.model.to_text()) != header["model_hash"]:
        raise CheckpointError(
            f"{os.fspath(path)}: made with another model than that of the given calculator; leave calc out to use the "
            "model in the checkpoint"
        )
    elif calc.parameters.temperature_K != header["calculator"]["temperature_K"]:
        raise CheckpointError(
            f"{os.fspath(path)}: made with temperature_K={header['calculator']['temperature_K']} of the model, now "
            f"{calc.parameters.temperature_K}"
        )
    atoms = decode(header["atoms"])
    atoms.calc = calc
    md = cls(
        atoms,
        header["timestep_fs"],
        ensemble_from_dict(header["ensemble"]),
        seed=header["seed"],
        checkpoint=None if own is None else os.path.join(folder, own),
        checkpoint_interval=header["checkpoint_interval"],
        progress=progress,
    )
    simulation = md.simulation
    at = [0, 0]
    for entry in header["observers"]:
        end = at[0] + entry["sizes"][0], at[1] + entry["sizes"][1]
        sums = arrays["ints"][at[0] : end[0]].copy(), arrays["floats"][at[1] : end[1]].copy()
        md._attach_observer(observer_from_dict(entry["settings"]), entry["interval"], arrays=sums, after=entry["after"])
        at = end
    targets = {name: getattr(simulation.state, name) for name in _STATE}
    targets |= {"q": simulation.q, "progress": simulation.progress, "limits": simulation.limits}
    for name, target in targets.items():
        if arrays[name].shape != target.shape:
            raise CheckpointError(
                f"{os.fspath(path)}: {name} has shape {arrays[name].shape}, expected {target.shape}; the file belongs "
                "to another run"
            )
        target[...] = arrays[name]
    md._ready, md._called, md.max_steps = True, header["called"], header["max_steps"]
    md._sync()
    for entry in header["outputs"]:
        output = output_from_dict(_moved(entry, lambda path: os.path.join(folder, path)))
        if entry["mark"] is not None:
            output.restore(entry["mark"])
        md.add_output(output)
    return md
