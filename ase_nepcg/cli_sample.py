"""``nepcg sample``: mean forces on the beads of some structures, written as training frames."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

from .cli_calculator import add_calculator_arguments, check_calculator_usage, make_calculator
from .cli_mapping import StructureError, add_mapping_arguments, make_mapping
from .cli_numbers import frame_index, from_zero, positive, positive_integer

__all__ = ["Sample"]

_COLUMNS = ("no.", "sites", "time", "rms force", "rms error", "n_eff", "pull", "drift", "remarks", "structure")
_UNITS = ("", "", "ps", "eV/Å", "eV/Å", "", "", "", "", "")


class Sample:
    """Hold the beads of structures, let the atoms move, average the forces: structures in, training frames out.

    Forces come from a NEP model (--model) or one of ASE's calculators (--calculator). The run of each structure ends
    after --time-ps, or once the rms error of its forces is --force-error, whichever comes first. Structures are
    run side by side in processes. With --folder the same command goes on where it was interrupted, or killed.

    The table: rms of the forces and of their standard errors, median number of independent samples behind a force,
    difference of the two virial estimators and change of the forces during the run, both in units of their errors
    (about 1 where all is well). The exit status is 1 if a structure failed; the frames of the others are written.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("structures", nargs="+", metavar="STRUCTURE", help="file that ASE reads, or FILE@INDEX")
        parser.add_argument(
            "--index",
            type=frame_index,
            metavar="I",
            help="which structures of each file: 3, -1, 0:10, : (default last)",
        )
        add_calculator_arguments(parser)
        add_mapping_arguments(parser)
        run = parser.add_argument_group("run")
        run.add_argument("--temperature-K", type=positive, required=True, metavar="T", help="temperature in K")
        run.add_argument("--time-ps", type=positive, metavar="T", help="length of each run in ps")
        run.add_argument("--force-error", type=positive, metavar="F", help="rms error of the forces to stop at, eV/Å")
        run.add_argument("--timestep-fs", type=positive, default=0.5, metavar="T", help="time step (default 0.5)")
        run.add_argument("--ensemble", type=_ensemble, default="nvt", help="nvt (default) or nve")
        run.add_argument(
            "--friction-per-fs", type=positive, default=0.01, metavar="F", help="of the thermostat (default 0.01)"
        )
        run.add_argument(
            "--equilibration-ps", type=from_zero, default=1.0, metavar="T", help="thrown away first (default 1)"
        )
        run.add_argument(
            "--interval", type=positive_integer, default=1, metavar="N", help="steps between samples (default 1)"
        )
        run.add_argument(
            "--thermal-response", action="store_true", help="also derivatives with respect to temperature (nvt)"
        )
        run.add_argument("--seed", type=int, metavar="N", help="of the random numbers (default: a new one)")
        run.add_argument("--workers", type=positive_integer, metavar="N", help="processes (default: as many as cores)")
        run.add_argument(
            "--threads", type=positive_integer, metavar="N", help="threads of each process (default: cores/workers)"
        )
        files = parser.add_argument_group("files")
        files.add_argument(
            "--folder", metavar="DIR", help="keep checkpoints and results here; a rerun goes on from them"
        )
        files.add_argument("--output", default="train.xyz", metavar="FILE", help="training frames (default train.xyz)")
        run.add_argument(
            "--accept-errors", action="store_true", help="sample although the mapping has errors (nepcg lint)"
        )
        files.add_argument("--force", action="store_true", help="replace the output file if it exists")

    @staticmethod
    def run(args) -> int:
        _check_usage(args)
        _check_output(args)
        structures = [pair for path in args.structures for pair in _read(path, args.index)]
        calculator = make_calculator(args)
        frames = [atoms for _, atoms in structures]
        mappings = _make_mappings(args, structures)
        _lint(args, structures, mappings)
        from .meanforce.campaign import CampaignError, CampaignInterrupted, sample_many

        try:
            with warnings.catch_warnings():
                # they are in the table
                warnings.filterwarnings("ignore", r"configuration \d+: ", RuntimeWarning)
                results = sample_many(
                    frames,
                    mappings,
                    calculator=calculator,
                    **{name: getattr(args, name) for name in _PASSED},
                )
            failures = []
        except CampaignError as error:
            results, failures = error.results, error.failures
        except CampaignInterrupted as interrupt:
            _after_interrupt(args, structures, interrupt.results)
            raise
        _report(args, structures, results)
        for failure in failures:
            name = structures[failure.index][0]
            print(f"nepcg sample: error: {name} (no. {failure.index}): {failure.reason}", file=sys.stderr)
            if args.traceback and failure.traceback:
                print(failure.traceback, file=sys.stderr)
        from .training.targets import went_wrong

        off = [
            name for (name, *_), result in zip(structures, results, strict=True) if result and went_wrong(result.frame)
        ]
        if off:
            print(
                f"nepcg sample: error: {', '.join(off)}: the kinetic temperature is wrong (see above), and so are the "
                "averages; sample again with a shorter --timestep-fs or a longer --equilibration-ps",
                file=sys.stderr,
            )
        return 1 if failures or off else 0


_PASSED = ("temperature_K", "time_ps", "force_error", "timestep_fs", "ensemble", "friction_per_fs", "equilibration_ps")
_PASSED += ("interval", "thermal_response", "seed", "workers", "threads", "folder")


# ---- before the run -----------------------------------------------------------------------------------------------


def _check_usage(args) -> None:
    from .cli import UsageError

    check_calculator_usage(args)
    if args.time_ps is None and args.force_error is None:
        raise UsageError("when to stop? Give --time-ps, --force-error, or both")
    if args.thermal_response and args.ensemble == "nve":
        raise UsageError("--thermal-response needs --ensemble nvt: at constant energy the fluctuations are too small")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed: expected an integer from 0 to 2^63 - 1, got {args.seed}")


def _check_output(args) -> None:
    """Find out now, and not after hours of sampling, that the output cannot be written."""
    from .cli import UsageError

    output = Path(args.output)
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise UsageError(f"--output {output}: {output.parent} cannot be written to")
    if output.is_dir():
        raise UsageError(f"--output {output}: expected a file name, that is a folder")
    if not output.exists():
        return
    for path in args.structures:
        if os.path.exists(path) and os.path.samefile(path, output):
            raise UsageError(f"--output {output}: that is one of the structures")
    if not args.force:
        raise UsageError(f"--output {output}: the file exists; choose another name, or --force to replace it")


def _read(path: str, index) -> list[tuple[str, object]]:
    """(name, atoms) of the structures ``index`` of a file, in any format that ASE reads."""
    from ase import Atoms
    from ase.io import read

    plain, own = path, ""
    if not Path(path).exists() and "@" in path:
        plain, _, own = path.rpartition("@")
    # ASE's formats report a missing file in many ways
    with open(plain, "rb"):
        pass
    try:
        index = frame_index(own) if own else index
        found = read(plain, index=-1 if index is None else index)
    except argparse.ArgumentTypeError as error:
        raise StructureError(f"{path}: {error}") from None
    except (IndexError, StopIteration) as error:
        raise StructureError(f"{path}: no such structure in the file, or the file is empty or cut short") from error
    except Exception as error:
        # readers raise whatever a damaged file makes them stumble over
        reason = " ".join(str(error).split()) or "no message"
        raise StructureError(f"{plain}: cannot be read as a structure ({type(error).__name__}: {reason})") from error
    single = isinstance(found, Atoms)
    found = [found] if single else found
    if not found or not all(len(atoms) for atoms in found):
        raise StructureError(f"{path}: expected structures, got {'one without atoms' if found else 'none'}")
    return [(path if single else f"{plain}, {k + 1} of {len(found)}", atoms) for k, atoms in enumerate(found)]


def _make_mappings(args, structures) -> list:
    """A mapping for each structure; refuses now what could not be written at the end."""
    import contextlib
    import io

    import numpy as np

    from .dataset import DatasetError, FrameCalculator, validate
    from .mapping import MappingError

    mappings, beads, told = [], [], {}
    for name, atoms in structures:
        text = io.StringIO()
        try:
            with contextlib.redirect_stderr(text):
                mapping = make_mapping(args, atoms)
            frame = mapping.beads(atoms)
        except MappingError as error:
            raise MappingError(f"{name}: {error}") from error
        # what the structures have in common is told once
        told.update(dict.fromkeys(text.getvalue().splitlines()))
        frame.calc = FrameCalculator(frame, forces=np.zeros((len(frame), 3)))
        mappings.append(mapping)
        beads.append(frame)
    for line in told:
        print(line, file=sys.stderr)
    try:
        validate(beads)
    except DatasetError as error:
        where = "" if error.frame is None else f"{structures[error.frame][0]}: "
        hint = "" if args.species is not None else "; to choose the labels give --species"
        raise MappingError(f"{where}the frames could not be written: {error}{hint}") from error
    return mappings


# ---- after the run ------------------------------------------------------------------------------------------------


def _lint(args, structures, mappings) -> None:
    """Print warnings about the mappings; UsageError for errors, unless they are accepted."""
    from .cli import UsageError

    seen, errors = set(), 0
    for (name, atoms), mapping in zip(structures, mappings, strict=True):
        for finding in mapping.lint(atoms):
            text = str(finding)
            if finding.severity == "note" or text in seen:
                continue
            seen.add(text)
            errors += finding.severity == "error"
            print(f"{name}: {text}", file=sys.stderr)
    if errors and not args.accept_errors:
        raise UsageError("the mapping has errors; correct it, or give --accept-errors to sample nevertheless")


def _report(args, structures, results) -> None:
    """Print the table and write the frames."""
    import numpy as np

    from .dataset import write_dataset

    rows, remarks = [], []
    for number, ((name, _), result) in enumerate(zip(structures, results, strict=True)):
        if result is None:
            rows.append([str(number), *["-"] * 7, "failed", name])
            continue
        texts = list(result.warnings)
        if args.force_error is not None and result.force_error > args.force_error:
            texts.append(f"the force error did not get down to {args.force_error:g} eV/Å; sample longer")
        remarks += [f"no. {number}: {text}" for text in texts]
        rms = float(np.sqrt((result.forces**2).mean()))
        rows.append(
            [
                str(number),
                str(len(result.forces)),
                f"{result.time_ps:.6g}",
                f"{rms:.4f}",
                f"{result.force_error:.4f}",
                f"{np.median(result.n_effective):.0f}",
                "-" if result.virial_pull is None else f"{result.virial_pull:.1f}",
                f"{result.drift:.1f}",
                str(len(texts)) if texts else "",
                name,
            ]
        )
    print(_table([_COLUMNS, _UNITS, *rows]))
    for text in remarks:
        print(text)
    done = [result for result in results if result is not None]
    if done:
        write_dataset(args.output, [result.frame for result in done])
        print(f"{args.output}: {len(done)} frame{'s' * (len(done) != 1)}, seed {_seed(args, done)}")
        if any(result.virial is None for result in done):
            print("the calculator gives no stress: frames without virials")


def _seed(args, results) -> str:
    """What to give as --seed to get the same again."""
    if args.seed is not None:
        return str(args.seed)
    if args.folder is not None:
        return f"in {args.folder}"
    return "drawn anew (give --seed, or --folder, to get the same again)"


def _table(rows) -> str:
    """Columns of text, right-justified except for the last."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join([*(text.rjust(width) for text, width in zip(row[:-1], widths[:-1], strict=True)), row[-1]]).rstrip()
        for row in rows
    )


def _after_interrupt(args, structures, results) -> None:
    done = [result for result in results if result is not None]
    if args.folder is not None:
        print(
            f"nepcg sample: interrupted, {len(done)} of {len(results)} finished; the same command goes on from "
            f"{args.folder}",
            file=sys.stderr,
        )
    elif done:
        # without a folder they would be lost
        _report(args, structures, results)
        print(f"nepcg sample: interrupted, {len(done)} of {len(results)} finished", file=sys.stderr)
    else:
        print(
            "nepcg sample: interrupted, nothing was finished or kept (--folder DIR keeps checkpoints)", file=sys.stderr
        )


# ---- syntax -------------------------------------------------------------------------------------------------------


def _ensemble(text: str) -> str:
    if text.lower() in ("npt", "nph"):
        raise argparse.ArgumentTypeError(
            f"{text}: pressure and held beads exclude each other; choose the volume of the structures first"
        )
    if text not in ("nvt", "nve"):
        raise argparse.ArgumentTypeError(f"expected nvt or nve, got {text!r}")
    return text
