"""The ``nepcg`` command: one sub-command per job, each with ``--help``.

A sub-command is a class with a docstring (the text of its ``--help``), ``add_arguments(parser)`` and ``run(args)``,
which returns the exit status (None: 0). To add one, add its line to :data:`COMMANDS`; its module is imported only when
the command is used, so that ``nepcg --help`` and ``nepcg info`` start without numba and matplotlib.

Exit status: 0 done, 1 failed (one sentence on stderr; ``-T`` shows the traceback), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import itertools
import json
import os
import sys
from importlib import import_module

from . import __version__
from .errors import NepCGError, closest

__all__ = ["COMMANDS", "Info", "Parser", "UsageError", "main"]

#: sub-command -> (what it does in a few words, "module:class")
COMMANDS = {
    "quickstart": (
        "from atoms to a bead model and a report: water, or a system of yours",
        "ase_nepcg.cli_quickstart:Quickstart",
    ),
    "info": ("print what a model file is", "ase_nepcg.cli:Info"),
    "lint": ("check which atoms make which bead, before sampling", "ase_nepcg.cli_lint:Lint"),
    "sample": ("mean forces on beads: structures in, training frames out", "ase_nepcg.cli_sample:Sample"),
    "train": ("fit a model to frames, or run a folder with nep.in and train.xyz", "ase_nepcg.cli_train:Train"),
    "md": ("molecular dynamics: trajectory, table of averages, checkpoint, restart", "ase_nepcg.cli_md:MDCommand"),
    "rdf": ("radial distribution functions of a trajectory", "ase_nepcg.cli_analysis:RDFCommand"),
    "eos": ("equation of state of one or several models", "ase_nepcg.cli_analysis:EOSCommand"),
    "hnemd": ("thermal conductivity under a driving force", "ase_nepcg.cli_analysis:HNEMDCommand"),
    "stress-strain": ("stress-strain curve, moduli", "ase_nepcg.cli_analysis:StressStrainCommand"),
    "export": ("model and structure as input of GPUMD or LAMMPS", "ase_nepcg.cli_export:Export"),
    "predict": ("evaluate a model on frames: table of errors, files to plot", "ase_nepcg.cli_predict:Predict"),
    "bench": ("time the calculator against other installed ones", "ase_nepcg.bench:Bench"),
}

_TRACEBACK = {"action": "store_true", "help": "show the Python traceback of an error"}


class UsageError(Exception):
    """Wrong arguments: exit status 2. Sub-commands may raise it too."""


class Parser(argparse.ArgumentParser):
    """argparse with exact option names, and errors that are raised and suggest the nearest name."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message):
        raise UsageError(message)

    def parse(self, arguments) -> argparse.Namespace:
        """Parse all of ``arguments``; :class:`UsageError` for any that is not known."""
        args, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].split("=")[0]
            if name.startswith("-"):
                raise UsageError(f"unknown option {name!r}; {closest(name, self._option_string_actions)}")
            raise UsageError(f"unexpected argument {unknown[0]!r}")
        return args


def main(argv=None) -> int:
    """Run ``nepcg`` with ``argv`` (default: the arguments of the process); returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Å and µ must not end a program whose terminal cannot show them
            stream.reconfigure(errors="replace")
    # the options before the command take no values
    own = list(itertools.takewhile(lambda token: token.startswith("-"), argv))
    rest = argv[len(own) :]
    program, traceback = "nepcg", "-T" in own or "--traceback" in own
    try:
        top = _top_parser()
        top.parse(own)
        if not rest:
            top.print_help(sys.stderr)
            return 2
        name, *rest = rest
        if name not in COMMANDS:
            raise UsageError(f"unknown sub-command {name!r}; {closest(name, COMMANDS)}")
        program = f"nepcg {name}"
        command = _load(name)
        parser = Parser(prog=program, description=inspect.getdoc(command))
        command.add_arguments(parser)
        parser.add_argument("-T", "--traceback", **_TRACEBACK)
        args = parser.parse(rest)
        args.traceback = traceback = args.traceback or traceback
        status = command.run(args) or 0
        # here, and not when the interpreter ends, so that a closed pipe is noticed
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"{program}: error: {error} (see {program} --help)", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader (head, less) has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if traceback:
            raise
        print(f"{program}: error: {_sentence(error)}", file=sys.stderr)
        return 1


def _top_parser() -> Parser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {summary}" for name, (summary, _) in COMMANDS.items())
    parser = Parser(
        prog="nepcg",
        usage="nepcg [-h] [--version] [-T] COMMAND ...",
        description="Coarse-grained and mixed-resolution neuroevolution potentials (NEP-CG, NEP-AACG) for ASE.",
        epilog=f"commands:\n{listing}\n\n'nepcg COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"nepcg {__version__}")
    parser.add_argument("-T", "--traceback", **_TRACEBACK)
    return parser


def _load(name: str):
    module, attribute = COMMANDS[name][1].split(":")
    return getattr(import_module(module), attribute)


def _sentence(error: Exception) -> str:
    """An exception in one sentence; its type only where the message was not written for the user."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    message = " ".join(str(error).split())
    expected = isinstance(error, NepCGError) or type(error).__module__.startswith("ase.calculators.")
    if message and (expected or isinstance(error, ValueError | OSError)):
        return message
    return f"{type(error).__name__}: {message or 'no message'} (nepcg -T ... shows where)"


# ---- nepcg info ---------------------------------------------------------------------------------------------------


class Info:
    """Print what model files (nep.txt) are: species, cutoffs, descriptor, network, ZBL, number of parameters.

    Lengths in Å. Each file is read and checked as a whole. If one of them cannot be read, the exit status is 1 and the
    others are still printed.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("files", nargs="*", metavar="FILE", help="model file (nep.txt)")
        parser.add_argument("--json", action="store_true", help="print a JSON list with one object per file")
        parser.add_argument(
            "--cuda",
            action="store_true",
            help="say what there is of CUDA, whether kernels run, and what to install",
        )

    @staticmethod
    def run(args) -> int:
        if args.cuda:
            return _print_cuda(args.json)
        if not args.files:
            print("nepcg info: error: the following arguments are required: FILE (or --cuda)", file=sys.stderr)
            return 2
        from .model import NEPModel

        status, records, blocks = 0, [], []
        for path in args.files:
            try:
                model = NEPModel.read(path)
                records.append({"file": path, "bytes": os.path.getsize(path), **summarize(model)})
                lines = [*describe(model), ("file", _bytes(os.path.getsize(path)))]
                width = max(len(label) for label, _ in lines)
                blocks.append("\n".join([path, *(f"  {label:{width}}  {text}".rstrip() for label, text in lines)]))
            except (NepCGError, OSError) as error:
                if args.traceback:
                    raise
                status = 1
                records.append({"file": path, "error": _sentence(error)})
                print(f"nepcg info: error: {_sentence(error)}", file=sys.stderr)
        if args.json:
            print(json.dumps(records, indent=2))
        elif blocks:
            print("\n\n".join(blocks))
        return status


def _print_cuda(as_json: bool) -> int:
    """Print what there is of CUDA; 1 where something is to be done."""
    from ase_nepcg_cuda.diagnose import diagnose

    found = diagnose()
    if as_json:
        print(json.dumps([one._asdict() for one in found], indent=2))
    else:
        width = max(len(one.what) for one in found)
        for one in found:
            print(f"{one.what:{width}}  {one.answer}" + (f"\n{'':{width}}  -> {one.advice}" if one.advice else ""))
    return int(any(one.advice for one in found))


def summarize(model) -> dict:
    """Numbers of ``model`` as plain Python values; lengths in Å. The pair tables have a row per centre type."""
    network = model.n_parameters - model.c_radial.size - model.c_angular.size
    radial, angular = model.pair_cutoffs()
    zbl = None
    if model.zbl is not None:
        table = model.zbl_pairs()
        zbl = {"form": _zbl_form(model)[0], "inner": table[..., 0].tolist(), "outer": table[..., 1].tolist()}
    return {
        "model": model.name,
        "version": model.version,
        "species": list(model.species),
        "cutoff_form": model.cutoff_form,
        "cutoff_radial": model.cutoff_radial.tolist(),
        "cutoff_angular": model.cutoff_angular.tolist(),
        "pair_cutoff_radial": radial.tolist(),
        "pair_cutoff_angular": angular.tolist(),
        "typewise": None if model.typewise is None else list(model.typewise),
        "n_max": list(model.n_max),
        "basis_size": list(model.basis_size),
        "l_max": model.l_max,
        "many_body": list(model.many_body),
        "n_descriptor": model.n_descriptor,
        "neurons": [model.neurons, model.neurons2] if model.neurons2 else [model.neurons],
        "n_parameters": model.n_parameters,
        "n_parameters_network": network,
        "n_parameters_descriptor": model.n_parameters - network,
        "zbl": zbl,
        "temperature": model.temperature,
        "max_neighbors": None if model.max_neighbors is None else list(model.max_neighbors),
    }


def describe(model) -> list[tuple[str, str]]:
    """What ``model`` is, as lines (label, text); an empty label continues the line before."""
    from .hyper import UNKNOWN_NEIGHBORS

    networks = {
        3: "one network for all species",
        4: "one network per species",
        5: "one network and one energy shift per species",
    }[model.version]
    extras = " + ZBL repulsion" * (model.zbl is not None) + " + temperature input" * model.temperature
    lines = [("model", f"{model.name}: NEP{model.version} potential, {networks}{extras}")]
    lines += _labelled("species", _wrapped(model.species, " "))
    lines[1] = ("species", f"{model.n_types}: {lines[1][1]}")
    lines += _labelled("cutoffs", _cutoffs(model))
    for name, n, k in zip(("radial", "angular"), model.n_max, model.basis_size, strict=True):
        functions = f"{n + 1} function{'s' * (n > 0)} of {k + 1} basis function{'s' * (k > 0)}"
        lines.append((name, f"n_max {n}, basis_size {k}: {functions}"))
    orders = [(f"{len(name)}-body", name) for name in model.many_body]
    terms = [f"3-body up to l = {model.l_max}"]
    terms += [
        f"{order} {' '.join(n for o, n in orders if o == order)}" for order in dict.fromkeys(o for o, _ in orders)
    ]
    lines.append(("l_max", f"{model.l_max}: " + ", ".join(terms)))
    n_radial, n_angular = model.n_components
    blocks = model.l_max + len(model.many_body)
    parts = f"{n_radial} radial + {n_angular} x {blocks} angular" + " + temperature" * model.temperature
    lines.append(("descriptor", f"{model.n_descriptor} components: {parts}"))
    sizes = [model.n_descriptor, model.neurons, *([model.neurons2] if model.neurons2 else []), 1]
    lines.append(("network", " -> ".join(map(str, sizes)) + f" ({networks})"))
    numbers = summarize(model)
    split = f"{numbers['n_parameters_network']} network, {numbers['n_parameters_descriptor']} descriptor"
    lines.append(("parameters", f"{model.n_parameters}: {split}"))
    lines += _labelled("ZBL", ["none"] if model.zbl is None else _zbl(model))
    lines.append(("temperature", "input of the network, in K" if model.temperature else "no input"))
    if model.max_neighbors is None:
        counts = "not in the file"
    elif model.max_neighbors == UNKNOWN_NEIGHBORS:
        counts = "not counted (the file has GPUMD's limits, {} and {})".format(*UNKNOWN_NEIGHBORS)
    else:
        counts = "at most {} radial, {} angular in training".format(*model.max_neighbors)
    lines.append(("neighbours", counts))
    return lines


def _labelled(label: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(label if row == 0 else "", text) for row, text in enumerate(texts)]


def _wrapped(items, separator: str, width: int = 90) -> list[str]:
    """Lines of about ``width`` characters."""
    lines = [""]
    for item in items:
        if lines[-1] and len(lines[-1]) + len(item) > width:
            lines.append("")
        lines[-1] += separator * bool(lines[-1]) + item
    return lines


def _by_pair(model, first, second) -> list[str]:
    """A length or range of each unordered pair of types, e.g. ``O-H 3.2/2.1``."""
    cells = [
        f"{model.species[a]}-{model.species[b]} {first[a, b]:.4g}/{second[a, b]:.4g}"
        for a, b in itertools.combinations_with_replacement(range(model.n_types), 2)
    ]
    width = max(map(len, cells))
    return [line.rstrip() for line in _wrapped((f"{cell:{width}}" for cell in cells), "  ")]


def _cutoffs(model) -> list[str]:
    radial, angular = model.cutoff_radial, model.cutoff_angular
    largest = f"radial {radial.max():g} Å, angular {angular.max():g} Å"
    if model.cutoff_form == "per-type":
        cells = [f"{s} {r:g}/{a:g}" for s, r, a in zip(model.species, radial, angular, strict=True)]
        width = max(map(len, cells))
        table = [line.rstrip() for line in _wrapped((f"{cell:{width}}" for cell in cells), "  ")]
        return ["per species, radial/angular in Å (a pair has the mean of its two):", *table]
    if model.typewise is not None and model.typewise[0] > 0:
        factors = "{:g} (radial) and {:g} (angular)".format(*model.typewise[:2])
        head = f"per pair: {factors} times the sum of covalent radii x 4/3, at most {largest}; radial/angular in Å:"
        return [head, *_by_pair(model, *model.pair_cutoffs())]
    return [largest]


def _zbl_form(model) -> tuple[str, float]:
    """Name of the form and the element-wise factor (0: none)."""
    if model.zbl.flexible is not None:
        return "flexible", 0.0
    factor = model.zbl.factor or (model.typewise[2] if model.typewise is not None else 0.0)
    return ("typewise", factor) if factor > 0 else ("universal", 0.0)


def _zbl(model) -> list[str]:
    form, factor = _zbl_form(model)
    if form == "universal":
        return [f"universal: full below {model.zbl.inner:g} Å, none beyond {model.zbl.outer:g} Å"]
    if form == "flexible":
        head = "flexible, own parameters per pair; full below/none beyond, in Å:"
    else:
        head = (
            f"universal, outer radius {factor:g} times the sum of covalent radii x 4/3, at most {model.zbl.outer:g} Å; "
            "full below/none beyond, in Å:"
        )
    table = model.zbl_pairs()
    return [head, *_by_pair(model, table[..., 0], table[..., 1])]


def _bytes(size: int) -> str:
    return f"{size} bytes" if size < 10_000 else f"{size / 1000:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
