"""``nepcg export``: a model and a structure as input of GPUMD or LAMMPS."""

from __future__ import annotations

import argparse

from .cli_mapping import add_mapping_arguments, make_mapping
from .cli_md import _adder, _masses, _one_of, _replicate
from .cli_md_start import starting_structure
from .cli_numbers import finite, positive, positive_integer

__all__ = ["Export"]

_PROGRAMS = ("gpumd", "lammps")


class Export:
    """Write model, structure (with masses) and an input file for GPUMD or LAMMPS (pair_style nep of NEP_CPU).

        nepcg export gpumd beads.xyz nep.txt --symbols WAT=F --timestep-fs 2 --steps 50000 --temperature-K 300

    FOLDER gets nep.txt, model.xyz and run.in, or nep.txt, structure.data and in.lammps. These programs know chemical
    symbols only: other labels get one by --symbols; the masses stay those of the beads. With --groups (GPUMD, all-atom
    structures) model.xyz has a column with the number of the bead of each atom, and bead_name.txt is written.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("program", type=_program, metavar="PROGRAM", help=" or ".join(_PROGRAMS))
        parser.add_argument("structure", metavar="STRUCTURE", help="file with atoms or beads, or FILE@INDEX")
        parser.add_argument("model", metavar="MODEL", help="model file (nep.txt)")
        parser.add_argument("--output", metavar="FOLDER", help="(default: the name of the program)")
        parser.add_argument("--overwrite", action="store_true", help="replace the files if they exist")
        parser.add_argument("--symbols", type=_symbols, default={}, metavar="LABEL=SYMBOL", help="e.g. WAT=F,MET=Cl")
        parser.add_argument("--groups", action="store_true", help="gpumd: beads of an all-atom structure as groups")
        run = parser.add_argument_group("run")
        run.add_argument("--timestep-fs", "--timestep", type=positive, required=True, metavar="T", help="in fs")
        run.add_argument("--steps", type=positive_integer, required=True, metavar="N", help="length of the run")
        run.add_argument(
            "--temperature-K", "--temperature", type=positive, metavar="T", help="(default: constant energy)"
        )
        run.add_argument("--pressure-GPa", "--pressure", type=finite, metavar="P", help="(default: constant volume)")
        start = _adder(parser.add_argument_group("start"))
        start(
            "--replicate",
            type=_replicate,
            metavar='"A B C"',
            help="repeat the cell along its vectors, with new velocities",
        )
        start("--masses", type=_masses, action="append", metavar="LABEL=M", help="in u, e.g. WAT=18.015,MET=32.042")
        add_mapping_arguments(parser)

    @staticmethod
    def run(args) -> int:
        from .cli import UsageError
        from .export import export_gpumd, export_lammps

        if args.groups and args.program != "gpumd":
            raise UsageError("--groups is for gpumd")
        atoms = starting_structure(args)
        if getattr(args, "replicate", (1, 1, 1)) != (1, 1, 1):
            # copies of a cell must not move in step
            if args.temperature_K is None:
                raise UsageError("--replicate: copies need velocities of their own; give the --temperature-K of them")
            atoms.arrays.pop("momenta", None)
        settings = {
            "timestep_fs": args.timestep_fs,
            "steps": args.steps,
            "temperature_K": args.temperature_K,
            "pressure_GPa": args.pressure_GPa,
            "symbols": args.symbols,
            "overwrite": args.overwrite,
        }
        folder = args.output or args.program
        if args.program == "gpumd":
            mapping = make_mapping(args, atoms) if args.groups else None
            paths = export_gpumd(folder, atoms, args.model, mapping=mapping, **settings)
        else:
            paths = export_lammps(folder, atoms, args.model, **settings)
        print("wrote", *paths)
        return 0


def _program(text: str) -> str:
    return _one_of(text.lower(), _PROGRAMS)


def _symbols(text: str) -> dict:
    symbols = {}
    for part in text.split(","):
        label, equals, symbol = part.partition("=")
        if not (label.strip() and equals and symbol.strip()):
            raise argparse.ArgumentTypeError(f"expected LABEL=SYMBOL, e.g. WAT=F, got {part!r}")
        symbols[label.strip()] = symbol.strip()
    return symbols
