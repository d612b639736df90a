"""A model and a structure as input of GPUMD and LAMMPS, such that nothing is taken for something else on the way.

What these programs do with files of beads, and what is done here about it:

- Names must be chemical symbols, and ZBL takes the charges of nuclei from them: other labels are renamed
  (``symbols=``), in model and structure alike, and never where the model has a ZBL part, whose meaning would change.
- GPUMD takes masses from the symbols unless the structure has a column of masses; LAMMPS has one mass per type: masses
  are always written, and beads without explicit masses are refused.
- Numbers of types of LAMMPS follow the model: the input names the label of each type.
- Units: GPUMD counts relaxation times in time steps and velocities in Å/fs; LAMMPS (metal) has ps and bar.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import replace

import numpy as np
from ase import units
from ase.data import atomic_numbers

from .errors import NepCGError, closest, is_integer, is_number
from .labels import ARRAY, TABLE, get_labels, needs_masses
from .model import NEPModel
from .nepfile import write_atomically

__all__ = ["ExportError", "export_gpumd", "export_lammps"]

_TAU_FS, _TAU_P_FS = 100.0, 1000.0
# of water, GPa: sets the relaxation time of GPUMD's barostat only
_ELASTIC_GPA = 2.2
_THERMO, _FRAMES = 100, 1000


class ExportError(NepCGError, ValueError):
    """A model or structure that another program would misread, or settings that make no sense."""


def export_gpumd(
    folder,
    atoms,
    model,
    *,
    timestep_fs,
    steps,
    temperature_K=None,
    pressure_GPa=None,
    symbols=None,
    mapping=None,
    overwrite=False,
) -> list[str]:
    """``nep.txt``, ``model.xyz`` and ``run.in`` for GPUMD in ``folder``; returns their paths.

    ``atoms``: with masses; velocities are written if there are any, else ``run.in`` draws them at ``temperature_K``.
    ``model``: :class:`~ase_nepcg.NEPModel` or path. Constant energy without ``temperature_K``, else stochastic velocity
    rescaling, with ``pressure_GPa`` stochastic cell rescaling. ``symbols``: ``{label: symbol}`` for labels that are no
    chemical symbols. ``mapping``: :class:`~ase_nepcg.Mapping` of all-atom structures; adds the column ``group`` (number
    of the bead) and ``bead_name.txt``, for NEP-CG sampling there. Raises :class:`ExportError`.
    """
    model, labels, masses = _checked(atoms, model, symbols)
    if model.version not in (4, 5):
        raise ExportError(f"GPUMD reads nep4 and nep5 models (nep3 up to its version 5.2), this is nep{model.version}")
    if model.typewise is not None and model.typewise[0] > 0:
        raise ExportError("the model has the typewise cutoffs of GPUMD 3.9.5 to 4.6, which later versions refuse")
    _check_run(atoms, timestep_fs, steps, temperature_K, pressure_GPa)
    if pressure_GPa is not None and np.count_nonzero(atoms.cell.array - np.diag(np.diag(atoms.cell.array))):
        raise ExportError(
            "pressure_GPa: GPUMD has an isotropic barostat for cells along x, y and z only; leave the pressure out and "
            "write the ensemble with six components into run.in"
        )
    if atoms.cell.rank < 3:
        raise ExportError("GPUMD needs a cell with a volume, also in directions that are not periodic: set atoms.cell")
    moving = atoms.has("momenta") and bool(np.any(atoms.arrays["momenta"]))
    if not moving and temperature_K is None:
        raise ExportError("the atoms have no velocities: give them, or a temperature (temperature_K)")
    groups, files = None, {}
    if mapping is not None:
        groups = _groups(mapping, len(atoms))
        names = mapping.beads(atoms)
        bead_labels = get_labels(names)
        files["bead_name.txt"] = "".join(f"{bead_labels[g]}\n" for g in groups)
    files["nep.txt"] = model.to_text()
    files["model.xyz"] = _model_xyz(atoms, labels, masses, groups, moving)
    tau, tau_p = _TAU_FS / timestep_fs, _TAU_P_FS / timestep_fs
    t = f"{temperature_K:g} {temperature_K:g} {tau:.6g}" if temperature_K is not None else ""
    if temperature_K is None:
        ensemble = "nve"
    elif pressure_GPa is None:
        ensemble = f"nvt_bdp {t}"
    else:
        ensemble = f"npt_scr {t} {pressure_GPa:g} {_ELASTIC_GPA:g} {tau_p:.6g}"
    lines = ["potential nep.txt"]
    lines += [] if moving else [f"velocity {temperature_K:g}"]
    lines += [f"time_step {timestep_fs:g}", f"ensemble {ensemble}"]
    lines += [f"dump_thermo {_THERMO}", f"dump_exyz {_FRAMES} 1 0", f"run {steps}"]
    files["run.in"] = "\n".join(lines) + "\n"
    return _write(folder, files, overwrite)


def export_lammps(
    folder,
    atoms,
    model,
    *,
    timestep_fs,
    steps,
    temperature_K=None,
    pressure_GPa=None,
    symbols=None,
    seed: int = 1,
    overwrite=False,
) -> list[str]:
    """``nep.txt``, ``structure.data`` and ``in.lammps`` (``units metal``, ``pair_style nep`` of NEP_CPU) in ``folder``.

    Arguments as of :func:`export_gpumd`; ``seed``: of velocities. The structure is turned such that its cell is lower
    triangular, as LAMMPS has it. Raises :class:`ExportError`.
    """
    from ase.io.lammpsdata import write_lammps_data

    model, labels, masses = _checked(atoms, model, symbols)
    _check_run(atoms, timestep_fs, steps, temperature_K, pressure_GPa)
    if model.temperature:
        raise ExportError("the LAMMPS interface of NEP_CPU has no temperature input")
    if atoms.cell.rank < 3:
        raise ExportError("LAMMPS needs a box, also in directions that are not periodic: set atoms.cell")
    if not is_integer(seed) or not 0 < seed < 2**31:
        raise ExportError(f"seed: expected an integer from 1 to 2^31 - 1, got {seed!r}")
    moving = atoms.has("momenta") and bool(np.any(atoms.arrays["momenta"]))
    if not moving and temperature_K is None:
        raise ExportError("the atoms have no velocities: give them, or a temperature (temperature_K)")
    present = [label for label in model.species if label in set(labels.tolist())]
    for label in present:
        own = masses[labels == label]
        if np.ptp(own) > 1e-9 * own[0]:
            raise ExportError(
                f"LAMMPS has one mass per type, the sites {label!r} have {own.min():g} to {own.max():g} u"
            )
    copy = atoms.copy()
    copy.set_constraint()
    for name in (ARRAY, "tags"):
        copy.arrays.pop(name, None)
    copy.info.pop(TABLE, None)
    copy.numbers[:] = [atomic_numbers[label] for label in labels.tolist()]
    copy.set_masses(masses)
    # inside the box in periodic directions
    copy.wrap()
    text = io.StringIO()
    write_lammps_data(text, copy, specorder=present, masses=True, velocities=moving, units="metal", atom_style="atomic")
    boundary = " ".join("p" if periodic else "s" for periodic in atoms.pbc)
    ps = 1e-3
    lines = ["units metal", "atom_style atomic", f"boundary {boundary}", "read_data structure.data", ""]
    lines += [f"# types {', '.join(f'{k + 1}: {label}' for k, label in enumerate(present))}"]
    lines += ["pair_style nep", f"pair_coeff * * nep.txt {' '.join(present)}", ""]
    lines += [] if moving else [f"velocity all create {temperature_K:g} {seed} mom yes rot no dist gaussian"]
    lines += [f"timestep {timestep_fs * ps:g}"]
    fix = "nve" if temperature_K is None else f"nvt temp {temperature_K:g} {temperature_K:g} {_TAU_FS * ps:g}"
    if pressure_GPa is not None:
        bar = pressure_GPa * 1e4
        fix = f"npt{fix[3:]} iso {bar:g} {bar:g} {_TAU_P_FS * ps:g}"
    lines += [f"fix integrate all {fix}", f"thermo {_THERMO}"]
    lines += [f"dump frames all custom {_FRAMES} dump.lammpstrj id type xu yu zu", f"run {steps}"]
    files = {"nep.txt": model.to_text(), "structure.data": text.getvalue(), "in.lammps": "\n".join(lines) + "\n"}
    return _write(folder, files, overwrite)


# ---- checks -------------------------------------------------------------------------------------------------------


def _checked(atoms, model, symbols):
    """The model and the labels (N,) with chemical symbols as names, and masses (N,) in u."""
    model = model if isinstance(model, NEPModel) else NEPModel.read(model)
    if len(atoms) == 0:
        raise ExportError("there are no atoms")
    for name, value in (("positions", atoms.positions), ("cell", atoms.cell.array), ("momenta", atoms.get_momenta())):
        if not np.isfinite(value).all():
            raise ExportError(f"{name} must be finite")
    if atoms.constraints:
        kinds = ", ".join(sorted({type(one).__name__ for one in atoms.constraints}))
        raise ExportError(f"the atoms have constraints ({kinds}), which the input would not have; remove them")
    if (model.cutoff_angular > model.cutoff_radial).any():
        raise ExportError(
            "the model has an angular cutoff beyond the radial one, and the other program would miss neighbours: it "
            "looks for them within the radial one"
        )
    labels = get_labels(atoms)
    foreign = sorted(set(labels.tolist()) - set(model.species))
    if foreign:
        raise ExportError(f"the model knows {', '.join(model.species)}, the structure has {', '.join(foreign)} too")
    if needs_masses(atoms):
        raise ExportError(
            "the beads have no masses, and the other program would take those of the symbols: atoms.set_masses(...), "
            "or take the beads from Mapping.beads"
        )
    masses = atoms.get_masses()
    if not (np.isfinite(masses) & (masses > 0)).all():
        raise ExportError("masses must be positive numbers")
    renamed = _renaming(model, symbols or {})
    if renamed != {label: label for label in model.species}:
        if model.zbl is not None:
            raise ExportError(
                "the model has a ZBL part, whose charges are those of its symbols: its labels cannot be renamed"
            )
        model = replace(model, species=tuple(renamed[label] for label in model.species))
        labels = np.array([renamed[label] for label in labels.tolist()], labels.dtype)
    return model, labels, masses


def _renaming(model, symbols: dict) -> dict:
    """{label: chemical symbol} of all species of the model."""
    for label in symbols:
        if label not in model.species:
            raise ExportError(f"symbols: the model has no {label!r}; {closest(str(label), model.species)}")
    renamed = {label: symbols.get(label, label) for label in model.species}
    for label, symbol in renamed.items():
        if not isinstance(symbol, str) or not 0 < atomic_numbers.get(symbol, 0) <= 94:
            free = next(s for s in ("He", "Ne", "Ar", "Kr", "Xe", "F") if s not in renamed.values())
            raise ExportError(
                f"{label!r} must become a chemical symbol (H to Pu) for the other program, got {symbol!r}; give for "
                f"example symbols={{{label!r}: {free!r}}}, on the command line --symbols {label}={free} "
                "(its mass is that of the bead all the same)"
            )
    if len(set(renamed.values())) < len(renamed):
        raise ExportError(f"two species would get the same symbol: {renamed}; give each its own in symbols")
    return renamed


def _check_run(atoms, timestep_fs, steps, temperature_K, pressure_GPa) -> None:
    for name, value in (("timestep_fs", timestep_fs), ("temperature_K", temperature_K)):
        if (name == "timestep_fs" or value is not None) and not (is_number(value) and 0 < value < math.inf):
            raise ExportError(f"{name}: expected a positive number, got {value!r}")
    if not is_integer(steps) or steps < 1:
        raise ExportError(f"steps: expected a positive number of steps, got {steps!r}")
    if pressure_GPa is not None:
        if not (is_number(pressure_GPa) and math.isfinite(pressure_GPa)):
            raise ExportError(f"pressure_GPa: expected a number, got {pressure_GPa!r}")
        if temperature_K is None:
            raise ExportError("a pressure needs a temperature (temperature_K), too")
        if not atoms.pbc.all():
            raise ExportError(
                f"pressure_GPa: pbc is {atoms.pbc.tolist()}, and an isotropic barostat needs a cell that is periodic "
                "in all directions"
            )


def _groups(mapping, n: int) -> np.ndarray:
    """Number of the bead of each atom."""
    number = np.full(n, -1)
    for g, members in enumerate(mapping.groups):
        number[np.asarray(members)] = g
    left = np.flatnonzero(number < 0)
    if len(left):
        raise ExportError(
            f"mapping: atom {left[0]} is in no bead ({len(left)} such atoms); GPUMD needs a group for each"
        )
    return number


# ---- files --------------------------------------------------------------------------------------------------------


def _model_xyz(atoms, labels, masses, groups, moving) -> str:
    cell = " ".join(f"{x:.15g}" for x in atoms.cell.array.ravel())
    pbc = " ".join("T" if periodic else "F" for periodic in atoms.pbc)
    properties = "species:S:1:pos:R:3:mass:R:1" + ":vel:R:3" * moving + ":group:I:1" * (groups is not None)
    lines = [str(len(atoms)), f'Lattice="{cell}" pbc="{pbc}" Properties={properties}']
    velocities = atoms.get_velocities() * units.fs if moving else None
    for i, label in enumerate(labels.tolist()):
        row = [label, *(f"{x:.12g}" for x in atoms.positions[i]), f"{masses[i]:.12g}"]
        row += [f"{x:.12g}" for x in velocities[i]] if moving else []
        row += [str(groups[i])] if groups is not None else []
        lines.append(" ".join(row))
    return "\n".join(lines) + "\n"


def _write(folder, files: dict, overwrite: bool) -> list[str]:
    folder = os.fspath(folder)
    paths = {name: os.path.join(folder, name) for name in files}
    existing = [path for path in paths.values() if os.path.exists(path)]
    if existing and not overwrite:
        raise ExportError(f"there already: {', '.join(existing)}; use another folder, or allow to overwrite")
    os.makedirs(folder, exist_ok=True)
    for name, path in paths.items():
        write_atomically(path, files[name].encode())
    return list(paths.values())
