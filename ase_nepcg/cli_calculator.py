"""Options of the command line that say where the forces on atoms come from, shared by the sub-commands that need them.

>>> add_calculator_arguments(parser)
>>> check_calculator_usage(args)
>>> calculator = make_calculator(args)
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from importlib import import_module
from pathlib import Path

from .cli_numbers import positive
from .errors import NepCGError, closest

__all__ = [
    "CALCULATORS",
    "CalculatorFileError",
    "add_calculator_arguments",
    "calculator_options",
    "check_calculator_usage",
    "make_calculator",
]

#: calculators of ASE that need no files: name -> (module, class, types of the options, options without useful default)
CALCULATORS = {
    "emt": ("ase.calculators.emt", "EMT", {"asap_cutoff": bool}, ()),
    "lj": (
        "ase.calculators.lj",
        "LennardJones",
        {"epsilon": float, "sigma": float, "rc": float, "ro": float, "smooth": bool},
        ("epsilon", "sigma"),
    ),
    "morse": (
        "ase.calculators.morse",
        "MorsePotential",
        dict.fromkeys(("epsilon", "r0", "rho0", "rcut1", "rcut2"), float),
        ("epsilon", "r0", "rho0"),
    ),
}


class CalculatorFileError(NepCGError, ValueError):
    """A Python file that gives no calculator."""


def add_calculator_arguments(parser) -> None:
    """Add ``--model``, ``--calculator`` and ``--calculator-option`` to an argparse parser."""
    forces = parser.add_argument_group("forces on the atoms, one of")
    forces.add_argument("--model", metavar="FILE", help="NEP model (nep.txt)")
    forces.add_argument(
        "--calculator",
        type=_calculator,
        metavar="NAME",
        help=f"{', '.join(CALCULATORS)}, or FILE.py:NAME, an ASE calculator (or a function that makes one) of yours",
    )
    forces.add_argument(
        "--calculator-option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="parameter of one of ASE's calculators, e.g. sigma=3.4 (may be repeated)",
    )


def check_calculator_usage(args, needed: bool = True) -> None:
    """Raise UsageError unless exactly one (``needed``) or at most one of the options is given."""
    from .cli import UsageError

    if (args.model is not None and args.calculator is not None) or (needed and args.model is args.calculator is None):
        raise UsageError(
            "where do the forces come from? Give --model FILE or --calculator NAME"
            + ", not both" * (args.model is not None)
        )
    if args.calculator_option and args.calculator is None:
        raise UsageError("--calculator-option goes with --calculator")
    if args.calculator_option and args.calculator not in CALCULATORS:
        raise UsageError(f"--calculator-option goes with {', '.join(CALCULATORS)}; set options in your file")


def make_calculator(args):
    """The calculator that the parsed options describe."""
    from .cli import UsageError

    if args.model is not None:
        from .calculator import NEP
        from .model import NEPModel

        model = NEPModel.read(args.model)
        return NEP(model, device="cpu", temperature_K=args.temperature_K if model.temperature else None)
    if args.calculator not in CALCULATORS:
        return _from_file(*args.calculator.rsplit(":", 1))
    module, name, types, required = CALCULATORS[args.calculator]
    options = {}
    for key, text in args.calculator_option:
        if key not in types:
            raise UsageError(f"--calculator {args.calculator} has no option {key!r}; {closest(key, types)}")
        options[key] = _value(key, text, types[key])
    missing = [key for key in required if key not in options]
    if missing:
        wanted = " ".join(f"--calculator-option {key}=…" for key in missing)
        raise UsageError(f"--calculator {args.calculator} needs {wanted} (in eV and Å)")
    return getattr(import_module(module), name)(**options)


def calculator_options(args) -> str:
    """The options as they are given in a shell, from any folder."""
    import shlex

    if args.model is not None:
        words = ["--model", os.path.abspath(args.model)]
    else:
        path, colon, name = args.calculator.rpartition(":")
        words = ["--calculator", f"{os.path.abspath(path)}:{name}" if colon else args.calculator]
    for key, value in args.calculator_option:
        words += ["--calculator-option", f"{key}={value}"]
    return shlex.join(words)


def _from_file(path: str, name: str):
    """``name`` in the Python file ``path``: a calculator, or what calling it without arguments gives."""
    stem = Path(path).stem
    with open(path, "rb"):
        pass
    # processes that get the calculator must find its class in a module of this name
    sys.path.insert(0, str(Path(path).resolve().parent))
    importlib.invalidate_caches()
    spec = None if "." in stem else importlib.util.find_spec(stem)
    if spec is None or not os.path.exists(spec.origin or "") or not Path(path).samefile(spec.origin):
        sys.path.pop(0)
        raise CalculatorFileError(
            f"{path}: there is another module called {stem}, or no module can have that name; rename the file"
        )
    try:
        module = import_module(stem)
    except Exception as error:
        raise CalculatorFileError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        raise CalculatorFileError(f"{path}: has no {name!r}; {closest(name, known)}")
    found = getattr(module, name)
    if callable(found):
        try:
            found = found()
        except Exception as error:
            raise CalculatorFileError(f"{path}: {name}() fails ({type(error).__name__}: {error})") from error
    if not hasattr(found, "get_property"):
        raise CalculatorFileError(f"{path}:{name}: expected an ASE calculator, got {type(found).__name__}")
    return found


# ---- syntax -------------------------------------------------------------------------------------------------------


def _calculator(text: str) -> str:
    path, colon, name = text.rpartition(":")
    if colon and path.endswith(".py") and name.isidentifier():
        return text
    if text not in CALCULATORS:
        raise argparse.ArgumentTypeError(
            f"unknown calculator {text!r}; {closest(text, CALCULATORS)} (or FILE.py:NAME for one of yours)"
        )
    return text


def _option(text: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, e.g. sigma=3.4, got {text!r}")
    return key, value


def _value(key: str, text: str, kind: type):
    from .cli import UsageError

    if kind is bool:
        values = {"true": True, "false": False, "1": True, "0": False}
        if text.lower() not in values:
            raise UsageError(f"--calculator-option {key}: expected true or false, got {text!r}")
        return values[text.lower()]
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--calculator-option {key}: {error}") from None
