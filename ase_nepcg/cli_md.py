"""``nepcg md``: molecular dynamics of a structure with a model."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from .cli_md_start import set_velocities, starting_structure
from .cli_numbers import finite, from_zero, positive, positive_integer
from .devices import DEVICES
from .errors import closest

__all__ = ["MDCommand"]

#: as the user says it -> class in ase_nepcg.md
ENSEMBLES = {
    "nve": "NVE",
    "langevin": "Langevin",
    "bussi": "Bussi",
    "nose-hoover": "NoseHoover",
    "npt": "NPT",
    "deform": "Deform",
    "hnemd": "HNEMD",
}
# settings of ensembles that have a default here, and not in their classes
_DEFAULTS = {"tau_fs": 100.0, "tau_p_fs": 1000.0, "friction_per_fs": 0.01}
_FORMATS = ("traj", "xyz", "nc", "none")
# steps between samples of averages
_SAMPLE = 10
# what --restart goes with
_OF_RESTART = ("restart", "steps", "time_ps", "traceback")
_POSITIONALS = ("structure", "model")


class MDCommand:
    """Run molecular dynamics of atoms or beads with a NEP model, or go on with such a run.

        nepcg md STRUCTURE MODEL --ensemble npt --temperature-K 300 --pressure-GPa 0 --timestep-fs 2 --time-ps 100

    writes PREFIX.traj (or .xyz, .nc: AMBER), PREFIX.csv (a line per --thermo-interval; units in the names of the
    columns), PREFIX.npz (checkpoint, about every minute and at the end), and PREFIX.rdf.csv with --rdf. At the end:
    averages of the whole run with standard errors. (To leave out the relaxation at the beginning run it on its own, and
    start from its last frame.)

        nepcg md --restart PREFIX.npz [--steps N]

    goes on after a crash, or for longer: the files are cut back to where they were at the checkpoint and continued, as
    if the run had never stopped. Without --steps and --time-ps: to the end that was planned.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("structure", nargs="?", metavar="STRUCTURE", help="file with atoms or beads, or FILE@INDEX")
        parser.add_argument("model", nargs="?", metavar="MODEL", help="model file (nep.txt)")
        run = _adder(parser.add_argument_group("run"))
        run("--ensemble", type=_ensemble, metavar="NAME", help=", ".join(ENSEMBLES))
        run("--timestep-fs", "--timestep", type=positive, metavar="T", help="time step in fs")
        run("--steps", type=_steps, metavar="N", help="length of the run in steps, or")
        run("--time-ps", type=from_zero, metavar="T", help="in ps (with --restart: how much further)")
        run("--seed", type=int, metavar="N", help="of noise and velocities (default: a new one)")
        run("--device", choices=DEVICES, help="where to compute (default: a CUDA device if there is one, else the CPU)")
        run("--threads", type=positive_integer, metavar="N", help="threads (default: all cores)")
        run("--restart", metavar="PREFIX.npz", help="go on from a checkpoint")

        ensemble = _adder(parser.add_argument_group("ensemble (each takes some of these; others are refused)"))
        ensemble("--temperature-K", "--temperature", type=positive, metavar="T", help="temperature in K")
        ensemble(
            *("--pressure-GPa", "--pressure"),
            type=_pressures,
            metavar="P",
            help="in GPa; npt: also several, e.g. --pressure-GPa=0,none (none: this axis keeps its length)",
        )
        ensemble("--tau-fs", "--tau", type=positive, metavar="T", help="time of the thermostat (default 100)")
        ensemble("--tau-p-fs", "--tau-p", type=positive, metavar="T", help="time of the barostat (default 1000)")
        ensemble("--friction-per-fs", "--friction", type=positive, metavar="F", help="of langevin (default 0.01)")
        ensemble("--chain", type=positive_integer, metavar="N", help="thermostats of nose-hoover and hnemd (default 3)")
        ensemble(
            "--coupling", metavar="NAME", help="npt: isotropic (default), semi-isotropic, anisotropic or triclinic"
        )
        ensemble("--method", metavar="NAME", help="npt: scr (default, stochastic cell rescaling) or mttk")
        ensemble("--compressibility-per-GPa", type=positive, metavar="X", help="npt, deform (default 0.45, water's)")
        ensemble("--axis", metavar="A", help="deform: x, y or z")
        ensemble("--rate-per-ps", "--rate", type=finite, metavar="R", help="deform: change of the strain per ps")
        ensemble("--free", metavar="AXES", help="deform: axes that follow the pressure, e.g. yz (default: none)")
        ensemble("--field-per-A", "--field", type=_vector, metavar="X,Y,Z", help="hnemd: driving force in 1/Å")
        ensemble("--convective", action="store_true", help="hnemd: with the heat that moving beads carry (fluids)")

        start = _adder(parser.add_argument_group("start"))
        start("--replicate", type=_replicate, metavar='"A B C"', help="repeat the cell along its vectors")
        start("--masses", type=_masses, action="append", metavar="LABEL=M", help="in u, e.g. WAT=18.015,MET=32.042")
        start(
            "--velocities",
            type=_velocities,
            metavar="WHICH",
            help="keep: those of the structure (default if it has any), new: from --initial-temperature-K",
        )
        start(
            *("--initial-temperature-K", "--initial-temperature"),
            type=from_zero,
            metavar="T",
            help="of new velocities (default: that of the ensemble)",
        )

        files = _adder(parser.add_argument_group("files"))
        files("--output", metavar="PREFIX", help="of all files (default md)")
        files("--overwrite", action="store_true", help="replace the files of an earlier run")
        files("--format", type=_format, metavar="F", help="of the trajectory: traj (default), xyz, nc or none")
        files("--trajectory-interval", type=positive_integer, metavar="N", help="steps between frames (default 1000)")
        files("--thermo-interval", type=positive_integer, metavar="N", help="steps between lines (default 100)")
        files(
            "--checkpoint-interval",
            type=positive_integer,
            metavar="N",
            help="steps between checkpoints (default: a minute)",
        )
        files("--rdf", type=_rdf, metavar="R_MAX[,N]", help="radial distributions up to R_MAX Å every N (10) steps")
        files("--training-data", metavar="FILE", help="report pairs that are closer than any in these frames")

    @staticmethod
    def run(args) -> int:
        if "restart" in args:
            md, steps, prefix = _restarted(args)
        else:
            md, steps, prefix = _new(args)
        began, first = time.monotonic(), md.nsteps
        with md:
            try:
                md.run(steps)
            except KeyboardInterrupt:
                print(
                    f"\nnepcg md: interrupted after step {md.nsteps}; nepcg md --restart {prefix}.npz goes on",
                    file=sys.stderr,
                )
                raise
            _report(md, prefix, md.nsteps - first, time.monotonic() - began)
        return 0


def _adder(group):
    """``group.add_argument`` for options that are no attribute of the result unless they are given."""
    return lambda *names, **settings: group.add_argument(*names, **({"default": argparse.SUPPRESS} | settings))


def _option(name: str) -> str:
    return name.upper() if name in _POSITIONALS else "--" + name.replace("_", "-")


# ---- a new run ----------------------------------------------------------------------------------------------------


def _new(args):
    from .cli import UsageError

    for name in _POSITIONALS:
        if getattr(args, name) is None:
            raise UsageError("expected STRUCTURE and MODEL, or --restart PREFIX.npz")
    for name, what in (("ensemble", f"one of {', '.join(ENSEMBLES)}"), ("timestep_fs", "the time step in fs")):
        if name not in args:
            raise UsageError(f"expected {_option(name)}, {what}")
    steps = _length(args, args.timestep_fs)
    if steps is None:
        raise UsageError("how long? Give --steps or --time-ps")
    if "seed" in args and not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed: expected an integer from 0 to 2^63 - 1, got {args.seed}")
    settings = _ensemble_settings(args)
    paths = _paths(args)
    atoms = starting_structure(args)

    from . import md as room
    from .calculator import NEP
    from .md.ensembles import EnsembleError
    from .md.outputs import ThermoOutput, open_output
    from .model import NEPModel

    try:
        ensemble = getattr(room, ENSEMBLES[args.ensemble])(**settings)
    except EnsembleError as error:
        raise UsageError(str(error)) from error
    model = NEPModel.read(args.model)
    kelvin = settings.get("temperature_K", getattr(args, "initial_temperature_K", None))
    if model.temperature and kelvin is None:
        raise UsageError(f"{args.model} has a temperature input; give --temperature-K or --initial-temperature-K")
    closest_pairs = _closest_pairs(args)
    seed = _seed(args)
    set_velocities(args, atoms, settings.get("temperature_K"), seed)
    atoms.calc = NEP(
        model,
        device=getattr(args, "device", None) or "auto",
        threads=getattr(args, "threads", None),
        temperature_K=float(kelvin) if model.temperature else None,
    )
    md = room.MD(
        atoms,
        args.timestep_fs,
        ensemble,
        seed=seed,
        checkpoint=str(paths["checkpoint"]),
        checkpoint_interval=getattr(args, "checkpoint_interval", None),
    )
    if "overwrite" in args:
        # what cannot begin must not replace anything
        atoms.get_forces()
    try:
        md.attach(room.Thermo(), interval=_SAMPLE)
        if "rdf" in args:
            r_max, interval = args.rdf
            md.attach(room.RDF(r_max), interval=interval)
        if args.ensemble == "hnemd":
            md.attach(room.Conductivity(), interval=_SAMPLE)
        if closest_pairs is not None:
            md.attach(closest_pairs, interval=_SAMPLE)
        # last, since they are new files: whatever refuses the run does so before
        if "trajectory" in paths:
            md.add_output(open_output(paths["trajectory"], getattr(args, "trajectory_interval", 1000)))
        md.add_output(ThermoOutput(paths["thermo"], getattr(args, "thermo_interval", 100)))
        if "overwrite" in args:
            # a crash must not leave an old checkpoint beside new files
            paths["checkpoint"].unlink(missing_ok=True)
        _announce(md, atoms, args, steps)
        md.max_steps = steps
        md.checkpoint(paths["checkpoint"])
    except BaseException:
        md.close()
        raise
    return md, steps, _prefix(args)


def _length(args, timestep_fs: float) -> int | None:
    """Steps of the run; None if nothing was said."""
    from .cli import UsageError

    if "steps" in args and "time_ps" in args:
        raise UsageError("--steps and --time-ps exclude each other")
    if "steps" in args:
        return args.steps
    return round(args.time_ps * 1000.0 / timestep_fs) if "time_ps" in args else None


def _ensemble_settings(args) -> dict:
    """Keywords of the ensemble's class; UsageError for options that it does not take, or does not find."""
    from . import md as room
    from .cli import UsageError

    classes = {name: getattr(room, kind) for name, kind in ENSEMBLES.items()}
    everything = {field.name for kind in classes.values() for field in dataclasses.fields(kind)}
    own = {field.name: field for field in dataclasses.fields(classes[args.ensemble])}
    given = {name: value for name, value in vars(args).items() if name in everything}
    for name in given:
        if name not in own:
            takes = f"it takes {', '.join(map(_option, own))}" if own else "it has no settings"
            hint = "; for velocities at the start give --initial-temperature-K" if name == "temperature_K" else ""
            raise UsageError(f"{_option(name)} does not go with --ensemble {args.ensemble}: {takes}{hint}")
    required = [name for name, field in own.items() if field.default is dataclasses.MISSING]
    settings = {name: _DEFAULTS[name] for name in required if name in _DEFAULTS} | given
    missing = [name for name in required if name not in settings]
    if missing:
        raise UsageError(f"--ensemble {args.ensemble} needs {', '.join(map(_option, missing))}")
    return settings


def _prefix(args) -> str:
    return getattr(args, "output", "md")


def _paths(args) -> dict[str, Path]:
    """The files of the run; UsageError now, and not after hours, if they cannot be written."""
    from .cli import UsageError

    prefix = _prefix(args)
    folder = Path(prefix).parent
    if not prefix or prefix.endswith(os.sep) or Path(prefix).is_dir():
        raise UsageError(f"--output {prefix}: expected the beginning of file names, that is a folder; e.g. {prefix}/md")
    if not folder.is_dir():
        raise UsageError(f"--output {prefix}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {prefix}: {folder} cannot be written to")
    suffix = getattr(args, "format", "traj")
    paths = {} if suffix == "none" else {"trajectory": Path(f"{prefix}.{suffix}")}
    paths |= {"thermo": Path(f"{prefix}.csv"), "checkpoint": Path(f"{prefix}.npz")}
    written = list(paths.values()) + [Path(f"{prefix}.{name}.csv") for name in _tables(args)]
    structure = args.structure if os.path.exists(args.structure) else args.structure.rpartition("@")[0]
    for path in written:
        for source in (structure, args.model):
            if path.exists() and os.path.exists(source) and path.samefile(source):
                raise UsageError(f"--output {prefix}: {path} would be overwritten, which the run starts from")
    existing = [str(path) for path in written if path.exists()]
    if existing and "overwrite" not in args:
        going_on = f"go on with that run (nepcg md --restart {paths['checkpoint']}), "
        raise UsageError(
            f"there already: {', '.join(existing)}; {going_on * paths['checkpoint'].exists()}choose another --output, "
            "or --overwrite"
        )
    return paths


def _tables(args) -> list[str]:
    return ["rdf"] * ("rdf" in args) + ["conductivity"] * (getattr(args, "ensemble", None) == "hnemd")


def _seed(args) -> int:
    import secrets

    return args.seed if "seed" in args else secrets.randbits(31)


def _closest_pairs(args):
    if "training_data" not in args:
        return None
    from .dataset import read_dataset
    from .md import ClosePairs

    with open(args.training_data, "rb"):
        pass
    return ClosePairs.from_frames(read_dataset(args.training_data))


# ---- an old run ---------------------------------------------------------------------------------------------------


def _restarted(args):
    from .cli import UsageError

    for name, value in vars(args).items():
        if name not in _OF_RESTART and value is not None:
            raise UsageError(
                f"{_option(name)} does not go with --restart: the checkpoint says it all; --steps or --time-ps say how "
                "much further"
            )
    path = args.restart
    with open(path, "rb"):
        pass
    from .md import MD

    md = MD.restart(path)
    try:
        planned = md.max_steps - md.nsteps
        steps = _length(args, md.timestep_fs)
        if steps is None:
            if planned <= 0:
                raise UsageError(
                    f"{path}: the run is at its end (step {md.nsteps}); how much further? Give --steps or --time-ps"
                )
            steps = planned
        md.max_steps = md.nsteps + steps
        print(f"{path}: goes on at step {md.nsteps} ({md.time_ps:.6g} ps) for {steps} steps", flush=True)
    except BaseException:
        md.close()
        raise
    return md, steps, path[:-4] if path.endswith(".npz") else path


# ---- what is told -------------------------------------------------------------------------------------------------

# columns of the thermo observer: name in the table, factor by 1/sites, unit
_ROWS = (
    ("temperature_K", "temperature", False, "K"),
    ("potential_eV", "potential energy", True, "eV/site"),
    ("total_eV", "total energy", True, "eV/site"),
    ("pressure_GPa", "pressure", False, "GPa"),
    ("density_g_cm3", "density", False, "g/cm^3"),
    ("volume_A3", "volume", False, "Å^3"),
)


def _announce(md, atoms, args, steps: int) -> None:
    settings = {key: value for key, value in md.ensemble.todict().items() if key != "name" and value is not None}
    words = ", ".join(f"{key}={value}" for key, value in settings.items())
    print(f"{args.structure}: {len(atoms)} sites; {args.model}: {md.calc.model.name}")
    print(f"{args.ensemble}{f' ({words})' * bool(words)}, {steps} steps of {md.timestep_fs:g} fs, seed {md.seed}")
    sys.stdout.flush()


def _report(md, prefix: str, steps: int, seconds: float) -> None:
    """Averages, tables of observers, speed and files."""
    import numpy as np

    results = {handle.observer.name: handle.results() for handle in md.handles}
    thermo = results.pop("thermo", None)
    if thermo is not None:
        rows = []
        for column, name, per_site, unit in _ROWS:
            mean, error = thermo[column]
            if np.isfinite(mean):
                scale = 1.0 / len(md.atoms) if per_site else 1.0
                reliable = thermo.reliable[thermo.columns.index(column)]
                text = f"{error * scale:.2g}" if np.isfinite(error) else "?"
                rows.append((name, f"{mean * scale:.6g}", f"+- {text}{'' if reliable else ' (short run)'}", unit))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(f"averages of {md.time_ps:.6g} ps ({thermo.samples} samples):")
        for name, mean, error, unit in rows:
            print(f"  {name:{widths[0]}}  {mean:>{widths[1]}} {error:{widths[2]}}  {unit}")
    files = [output.path for output in md.outputs if output.path] + [f"{prefix}.npz"]
    for name, result in results.items():
        if name == "close_pairs":
            _report_close(result)
            continue
        files.append(_write_table(f"{prefix}.{name}.csv", *result.as_table()))
        if name == "conductivity":
            print(
                f"conductivity along the field: {result.kappa_parallel:.4g} +- {result.kappa_parallel_error:.2g} W/m/K"
            )
    speed = f", {steps * md.timestep_fs * 1e-6 / seconds * 86400:.3g} ns/day" if steps else ""
    print(f"{steps} steps in {seconds:.3g} s{speed}; wrote {' '.join(map(os.path.relpath, files))}")


def _report_close(result) -> None:
    for (a, b), limit, count, times, smallest in zip(
        result.pairs, result.limits_A, result.counts, result.samples_with, result.smallest_A, strict=True
    ):
        if count:
            print(
                f"extrapolation: {a}-{b} closer than {limit:.3f} Å, the smallest distance of the training data, in "
                f"{times} of {result.samples} samples (down to {smallest:.3f} Å)"
            )
    if not result.found:
        print("no pair came closer than those of the training data")


def _write_table(path: str, header, rows) -> str:
    from .nepfile import write_atomically

    lines = [",".join(header), *(",".join(f"{value:.10g}" for value in row) for row in rows)]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


# ---- syntax -------------------------------------------------------------------------------------------------------


def _one_of(text: str, valid) -> str:
    if text not in valid:
        raise argparse.ArgumentTypeError(f"unknown {text!r}; {closest(text, valid)}")
    return text


def _ensemble(text: str) -> str:
    return _one_of(text.lower().replace("_", "-"), ENSEMBLES)


def _format(text: str) -> str:
    return _one_of(text.lower().lstrip("."), _FORMATS)


def _velocities(text: str) -> str:
    return _one_of(text.lower(), ("keep", "new"))


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a number of steps, got {text!r}")
    return int(text)


def _pressures(text: str):
    """A number, or a tuple of numbers and None."""
    values = tuple(None if part.strip().lower() == "none" else finite(part) for part in text.split(","))
    return values[0] if len(values) == 1 and values[0] is not None else values


def _vector(text: str) -> tuple:
    values = tuple(finite(part) for part in text.split(","))
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"expected three numbers such as 1e-4,0,0, got {text!r}")
    return values


def _replicate(text: str) -> tuple:
    parts = text.replace(",", " ").replace("x", " ").split()
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected three positive integers such as '2 2 1', got {text!r}")
    return tuple(map(int, parts))


def _masses(text: str) -> dict:
    masses = {}
    for part in text.split(","):
        label, equals, mass = part.partition("=")
        if not (label.strip() and equals):
            raise argparse.ArgumentTypeError(f"expected LABEL=MASS, e.g. WAT=18.015, got {part!r}")
        masses[label.strip()] = positive(mass)
    return masses


def _rdf(text: str) -> tuple:
    parts = text.split(",")
    if len(parts) > 2:
        raise argparse.ArgumentTypeError(f"expected R_MAX or R_MAX,INTERVAL, e.g. 10,20, got {text!r}")
    return positive(parts[0]), positive_integer(parts[1]) if len(parts) == 2 else _SAMPLE
