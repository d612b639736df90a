"""Checkpoints of MD: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import os

import numpy as np
from ase.io.jsonio import decode, encode

from ..calculator import NEP
from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..model import NEPModel
from .ensembles import ensemble_from_dict
from .observers import from_dict as observer_from_dict
from .outputs import output_from_dict

__all__ = ["read", "write"]

_KIND = "md"
_STATE = ("x", "v", "f", "cell", "virial", "energy", "energies", "held", "n_dof")


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _model_text(md) -> str:
    if getattr(md, "_model_text", None) is None:
        md._model_text = md.calc.model.to_text()
    return md._model_text


def write(path, md) -> None:
    """Write the run ``md`` to ``path``, atomically."""
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
        "calculator": {
            name: md.calc.parameters[name] for name in ("device", "precision", "threads", "temperature_K")
        },
        "model_hash": _fingerprint(_model_text(md)),
        "atoms": encode(atoms),
        "called": md._called,
        "checkpoint_interval": md.checkpoint_interval,
        "checkpoint_path": None if md.checkpoint_path is None else os.path.abspath(md.checkpoint_path),
        "observers": [
            {
                "settings": handle.observer.todict(),
                "interval": handle.interval,
                "after": handle.after,
                "sizes": [len(handle.ints), len(handle.floats)],
            }
            for handle in md.handles
        ],
        "outputs": [output.todict() | {"mark": output.mark()} for output in md.outputs],
    }
    write_checkpoint(path, _KIND, header, arrays)


def read(cls, path, calc, progress):
    """The run of ``path``, see :meth:`~ase_nepcg.MD.restart`."""
    header, arrays = read_checkpoint(path, _KIND)
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
        checkpoint=header["checkpoint_path"],
        checkpoint_interval=header["checkpoint_interval"],
        progress=progress,
    )
    simulation = md.simulation
    at = [0, 0]
    for entry in header["observers"]:
        end = at[0] + entry["sizes"][0], at[1] + entry["sizes"][1]
        own = arrays["ints"][at[0] : end[0]].copy(), arrays["floats"][at[1] : end[1]].copy()
        md._attach_observer(observer_from_dict(entry["settings"]), entry["interval"], arrays=own, after=entry["after"])
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
    md._ready, md._called = True, header["called"]
    md._sync()
    for entry in header["outputs"]:
        output = output_from_dict(entry)
        if entry["mark"] is not None:
            output.restore(entry["mark"])
        md.add_output(output)
    return md
