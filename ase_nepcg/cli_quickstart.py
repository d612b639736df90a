"""``nepcg quickstart``: from atoms to a coarse-grained model, with a report."""

from __future__ import annotations

import argparse
import shlex
import sys

from .cli_calculator import (
    add_calculator_arguments,
    calculator_options,
    check_calculator_usage,
    make_calculator,
)
from .cli_mapping import add_mapping_arguments, make_mapping, read_structure
from .cli_numbers import finite, from_zero, positive, positive_integer

__all__ = ["Quickstart"]

# option -> (type, number of values, name of the value, what it is)
_SETTINGS = {
    "temperature-K": (positive, None, "T", "temperature in K (default 330)"),
    "densities": (positive, "+", "D", "of the boxes in g/cm^3 (default: 1 1.05 1.1 1.2 or around the structure's)"),
    "timestep-fs": (positive, None, "T", "time step of the atoms (default 0.5)"),
    "equilibration-ps": (from_zero, None, "T", "of each all-atom box (default 8)"),
    "time-ps": (positive, None, "T", "of each all-atom run (default 40)"),
    "frames": (positive_integer, None, "N", "configurations per density to train with (default 40)"),
    "test-frames": (positive_integer, None, "N", "configurations per density to test with (default 4)"),
    "frame-ps": (positive, None, "T", "sampling of mean forces, each configuration (default 0.3)"),
    "cutoff": (positive, 2, ("R", "A"), "radial and angular cutoff of the beads in Å (default 6 5)"),
    "neurons": (positive_integer, None, "N", "in the hidden layer (default 10)"),
    "steps": (positive_integer, None, "N", "of the training (default 800)"),
    "bead-timestep-fs": (positive, None, "T", "time step of the beads (default 4)"),
    "bead-time-ps": (positive, None, "T", "of each run of the beads (default 200)"),
}


class Quickstart:
    """Make, run and compare a coarse-grained model, from scratch, with one report.

        nepcg quickstart

    does it for water with an embedded all-atom model: boxes at several densities are run with atoms; the beads (one per
    molecule) of some configurations are held and the forces on them averaged; a NEP is trained on these averages, and
    another one on virials without their correction; beads run at the same densities; structure, pressure and speed are
    compared in FOLDER/report.html, with the commands that do each stage on its own. The folder also holds nep.txt,
    train.xyz, trajectories and figures. Killed or interrupted, the same command goes on.

        nepcg quickstart --structure box.xyz --model nep.txt --mapping molecules --folder mine

    does it for a liquid or crystal of yours, with any model or ASE calculator.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument(
            "--folder", default="nepcg_quickstart", metavar="DIR", help="for everything (default nepcg_quickstart)"
        )
        length = parser.add_mutually_exclusive_group()
        length.add_argument("--quick", action="store_true", help="a minute: does everything work?")
        length.add_argument("--long", action="store_true", help="half an hour: up to 1 GPa, smaller errors")
        parser.add_argument("--structure", metavar="FILE", help="box of yours, in any format of ASE, or FILE@INDEX")
        parser.add_argument("--name", metavar="TEXT", help="of the system, in the report")
        add_calculator_arguments(parser)
        add_mapping_arguments(parser)
        run = parser.add_argument_group("settings")
        for option, (kind, count, shown, text) in _SETTINGS.items():
            run.add_argument(f"--{option}", type=kind, nargs=count, metavar=shown, help=text, default=argparse.SUPPRESS)
        run.add_argument("--seed", type=_seed, default=1, metavar="N", help="of everything random (default 1)")
        run.add_argument("--threads", type=positive_integer, metavar="N", help="of NEP models (default: all cores)")
        run.add_argument("--workers", type=positive_integer, metavar="N", help="processes (default: as many as cores)")

    @staticmethod
    def run(args) -> int:
        from .cli import UsageError
        from .quickstart.settings import Settings

        given = {name.replace("-", "_") for name in _SETTINGS} & set(vars(args))
        args.temperature_K = getattr(args, "temperature_K", Settings.temperature_K)
        check_calculator_usage(args, needed=args.structure is not None)
        atoms = mapping = calculator = None
        if args.structure is None:
            if args.model is not None or args.calculator is not None:
                raise UsageError("--model and --calculator go with --structure")
            if args.mapping != ("molecules", None) or args.species is not None or args.atomistic is not None:
                raise UsageError("--mapping, --species and --atomistic go with --structure")
        else:
            atoms = read_structure(args.structure)
            calculator = make_calculator(args)
            mapping = make_mapping(args, atoms)
        from .quickstart import quickstart

        try:
            quickstart(
                args.folder,
                atoms=atoms,
                calculator=calculator,
                mapping=mapping,
                preset="quick" if args.quick else "long" if args.long else "full",
                threads=args.threads,
                workers=args.workers,
                name=args.name,
                calculator_options=None if calculator is None else calculator_options(args),
                command=shlex.join(["nepcg", "quickstart", *_arguments()]),
                seed=args.seed,
                **{name: getattr(args, name) for name in given},
            )
        except KeyboardInterrupt:
            print("\nnepcg quickstart: interrupted; the same command goes on", file=sys.stderr)
            raise
        return 0


def _arguments() -> list[str]:
    """What stands behind the name of the command, when it was given in a shell."""
    words = sys.argv[1:]
    return words[words.index("quickstart") + 1 :] if "quickstart" in words else []


def _seed(text: str) -> int:
    number = finite(text)
    if number != int(number) or not 0 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2^31 - 1, got {text}")
    return int(number)
