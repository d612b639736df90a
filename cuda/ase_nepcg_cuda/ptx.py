"""Compile the kernels without a device: PTX, and what the assembler says about it.

    python -m ase_nepcg_cuda.ptx [--cc 9.0] [--precision mixed] [--models "water CG" ...] [--json FILE]

prints registers, stack, spills and shared memory of each kernel for a set of model shapes. Needs numba-cuda with the
compiler (``numba-cuda[cu13]`` or ``[cu12]``) and the assembler ``ptxas`` of the same release (``nvidia-cuda-nvcc``).
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numba
import numpy as np
from numba import cuda

from ase_nepcg.md.ensembles.langevin import Langevin
from ase_nepcg.md.ensembles.npt import NPTbySCR
from ase_nepcg.md.state import make_state
from ase_nepcg.potential.layout import Shape

from .advance import Counts, build_advance
from .gradient import build_gradient
from .integrate import build_follow, build_kernels_of_halves, collect, collect_totals
from .lists import build_lists
from .meanforce import build_kernel_of_mean_force
from .nep import build_kernels
from .precision import PRECISIONS, precision
from .totals import add_totals, block_totals, totals
from .train import score

__all__ = [
    *("ARCHITECTURES", "SHAPES", "Resources", "assemble", "compile_advance", "compile_halves", "compile_kernel"),
    *("compile_stage", "find_assembler", "pretend", "stages_of"),
]

#: compute capabilities for which kernels must compile
ARCHITECTURES = ((7, 5), (8, 0), (9, 0))
_DEFAULT = {"n_radial": 5, "k_radial": 9, "n_angular": 5, "k_angular": 9, "l_max": 4, "many_body": ("q222",)}
_DEFAULT |= {"neurons": 10, "neurons2": 0, "temperature": False, "zbl": False}
#: models for which resources are reported: coarse-grained ones first
SHAPES = {
    "water CG": Shape(**_DEFAULT),
    "water CG, ZBL": Shape(**_DEFAULT | {"zbl": True}),
    "C60 CG, 25 Å": Shape(**_DEFAULT | {"neurons": 20}),
    "gold AACG": Shape(**_DEFAULT | {"neurons": 30, "zbl": True}),
    "water AA": Shape(**_DEFAULT | {"n_radial": 10, "n_angular": 8, "k_radial": 10, "k_angular": 8, "neurons": 100}),
    "metal, 5-body": Shape(**_DEFAULT | {"many_body": ("q222", "q1111"), "neurons": 80, "zbl": True}),
}
#: those that must not need a stack
COARSE_GRAINED = tuple(SHAPES)[:4]
# numba types of arguments by their names; R: real numbers, F: places
_TYPES = {
    **dict.fromkeys(("n", "copies", "copied", "n_types", "slots", "room", "n0", "n1", "n2", "blocks"), numba.int64),
    **dict.fromkeys(("replica", "types", "counts", "members", "near_end", "near", "angular_end"), numba.int32[::1]),
    **dict.fromkeys(("angular", "back", "state", "first"), numba.int32[::1]),
    **dict.fromkeys(("bins", "bin_first"), numba.int64[::1]),
    **dict.fromkeys(
        ("x", "boxed", "free", "to_box", "rows", "built", "out", "sums", "parts_of_blocks"), numba.float64[::1]
    ),
    **dict.fromkeys(("list_cutoff", "skin"), numba.float64),
    **dict.fromkeys(("with_virials", "per_site"), numba.boolean),
    **dict.fromkeys(("u", "offsets", "origin"), "F"),
    "cell": numba.float64[:, :, ::1],
    "pbc": numba.boolean[:, ::1],
}


class Resources(NamedTuple):
    """Of one kernel: registers per thread; bytes of stack, spill stores and loads, shared memory; double-precision
    instructions."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    doubles: int


def _argument_types(names, name: str) -> numba.types.Tuple:
    """Types of arguments called ``names`` in precision ``name``."""
    kinds = precision(name)
    real, fixed = (numba.from_dtype(np.dtype(kind)) for kind in (kinds.real, kinds.fixed))
    found = []
    for one in names:
        kind = _TYPES.get(one, real[::1])
        found.append({"R": real, "F": fixed[::1]}.get(kind, kind) if isinstance(kind, str) else kind)
    return numba.types.Tuple(found)


def _state_type():
    one = np.zeros((1, 3))
    return numba.typeof(make_state([one], [one], [[1.0]], [[0]], [np.eye(3)], [[True] * 3]))


def stages_of(shape: Shape, name: str) -> dict:
    """Stages of one shape and precision by name, those that find neighbours too."""
    found = {one.name: one for one in build_lists(name)}
    kernels = build_kernels(shape, name)
    found |= {one.name: one for one in kernels[:3]}
    return found | dict(zip(("gather", "gather, virial", "gather, virials"), kernels.gather, strict=True))


@contextlib.contextmanager
def pretend(cc):
    """Calls between compiled functions, and kernels, ask for the current device; there is none."""
    from numba.cuda import compiler, dispatcher
    from numba.cuda.cudadrv import devices

    class Device:
        compute_capability = cc

    class Context:
        device = Device

    with contextlib.ExitStack() as stack:
        for module in (cuda, compiler, dispatcher):
            if hasattr(module, "get_current_device"):
                stack.enter_context(mock.patch.object(module, "get_current_device", Device))
        stack.enter_context(mock.patch.object(devices, "get_context", return_value=Context))
        yield


def compile_stage(one, name: str, cc=(9, 0)) -> str:
    """PTX of the kernel of a stage of precision ``name`` for compute capability ``cc``."""
    return compile_kernel(one.kernel, (numba.int64, _argument_types(one.signature, name)), cc)


def compile_kernel(kernel, types, cc=(9, 0)) -> str:
    """PTX of a kernel with arguments of these numba types for compute capability ``cc``."""
    fastmath = kernel.targetoptions.get("fastmath", False)
    with pretend(cc):
        ptx, _ = cuda.compile_ptx(kernel.py_func, numba.void(*types), cc=cc, fastmath=fastmath)
    return ptx


def compile_halves(ensemble, n_state: int, kind: str, cc=(9, 0)) -> dict:
    """PTX of the kernels of an ensemble's halves, for a team of ``kind``."""
    arrays, state = numba.float64[:, ::1], _state_type()
    half = numba.int64, state, numba.float64, arrays, arrays, numba.int64
    partial, words = numba.float64[::1], numba.int32[::1]
    begin, end = build_kernels_of_halves(ensemble, n_state, kind)
    return {
        "begin": compile_kernel(begin, (*half, partial), cc),
        "end": compile_kernel(end, (*half, arrays, words, partial), cc),
    }


def compile_advance(shape: Shape, name: str, ensemble, n_state: int, kind: str, cc=(9, 0), observes=False) -> str:
    """PTX of the kernel of many steps."""

    def types(*names):
        return _argument_types(names, name)

    lists, kernels = build_lists(name), build_kernels(shape, name)
    of_blocks = tuple(inspect.signature(block_totals.py_func).parameters)[4:]
    follow, remember = build_follow(name)
    arrays, whole = numba.float64[:, ::1], numba.int64
    arguments = (
        *(whole, whole, numba.boolean, numba.typeof(Counts(1, 1, 1, 1, 1, 1)), numba.int32[::1]),
        *(types(*one.signature) for one in lists[:2]),
        numba.types.Tuple([types(*one.signature) for one in lists[2:]]),
        numba.types.Tuple([types(*one.signature) for one in (*kernels[:3], kernels.gather[0])]),
        numba.types.Tuple(
            [types(*of_blocks), types(*add_totals.signature), types(*collect.signature[:3]), types("sums")]
        ),
        numba.types.Tuple([types(*follow.signature), types(*remember.signature)]),
        numba.types.Tuple([whole, whole, numba.int64[::1], numba.float64[::1], numba.int64[::1], numba.int64[::1]]),
        *(_state_type(), numba.float64, arrays, arrays, arrays, numba.float64[::1]),
    )
    return compile_kernel(build_advance(shape, name, ensemble, n_state, kind, observes), arguments, cc)


def compile_others(shape: Shape, name: str, cc=(9, 0)):
    """(name, PTX) of what is neither a stage of forces or lists nor a step: sums, samples, loss and its gradient."""

    def types(*names):
        return _argument_types(names, name)

    numbers, whole, state = numba.float64[::1], numba.int64, _state_type()
    yield "totals", compile_kernel(totals, tuple(types(*inspect.signature(totals.py_func).parameters)), cc)
    yield "add_totals", compile_stage(add_totals, name, cc)
    for one in (collect, collect_totals):
        arguments = numba.types.Tuple([*types(*one.signature[:-1]), state])
        yield one.name, compile_kernel(one.kernel, (whole, arguments), cc)
    for one in build_follow(name):
        yield one.name, compile_stage(one, name, cc)
    for kind in ("block", "grid"):
        sample = state, numba.int64[::1], numbers, numba.int64[::1], numba.int64[::1], numbers
        yield f"mean force, {kind}", compile_kernel(build_kernel_of_mean_force(kind), sample, cc)
    of_score = *types("first", "n"), whole, *types("forces"), numbers, numbers, numbers, numbers
    yield "score", compile_kernel(score, of_score, cc)
    gradient = build_gradient(shape, name)
    for one in gradient[:2]:
        yield one.name, compile_stage(one, name, cc)
    for one, arguments in zip(gradient[2:], (3, 4, 4), strict=True):
        given = (*types("n", "n_types", "types"), types(*["Q"] * arguments), numbers)
        yield one.py_func.__name__, compile_kernel(one, given, cc)


def find_assembler() -> Path | None:
    """``ptxas`` of the wheel ``nvidia-cuda-nvcc``, or None."""
    try:
        import nvidia
    except ImportError:
        return None
    found = [path for folder in nvidia.__path__ for path in Path(folder).rglob("ptxas")]
    return found[0] if found else None


def assemble(ptx: str, assembler: Path, cc=(9, 0)) -> Resources:
    """Assemble and read the report; RuntimeError with the assembler's words where it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [assembler, "-v", "-c", f"-arch=sm_{cc[0]}{cc[1]}", source, "-o", Path(folder, "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ptxas: {done.stderr.strip()}")

    def number(pattern):
        found = re.search(pattern, done.stderr)
        return int(found.group(1)) if found else 0

    return Resources(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores"),
        number(r"(\d+) bytes spill loads"),
        number(r"(\d+) bytes smem"),
        len(re.findall(r"^\s*(?:@%?\w+ )?\w+[\w.]*\.f64", ptx, flags=re.MULTILINE)),
    )


def sources(models, name: str, cc=(9, 0), whole: bool = False):
    """(name, PTX) of one kernel after the other: of stages and halves, those of ``models`` (names of SHAPES), and, for
    ``whole``, that of many steps for the first model."""
    seen = set()
    for title in models:
        for what, one in stages_of(SHAPES[title], name).items():
            if one.kernel in seen:
                continue
            seen.add(one.kernel)
            of_all = what in {one.name for one in build_lists(name)}
            yield what if of_all else f"{what} [{title}]", compile_stage(one, name, cc)
    for ensemble, kind in ((Langevin, "block"), (Langevin, "grid"), (NPTbySCR, "block")):
        for half, ptx in compile_halves(ensemble, ensemble.n_state, kind, cc).items():
            yield f"{half}, {ensemble.__name__}, {kind}", ptx
    if whole:
        for what, ptx in compile_others(SHAPES[models[0]], name, cc):
            yield f"{what} [{models[0]}]", ptx
        for ensemble, observes in ((Langevin, True), (NPTbySCR, False)):
            ptx = compile_advance(SHAPES[models[0]], name, ensemble, ensemble.n_state, "block", cc, observes)
            yield f"advance, {ensemble.__name__}{', mean force' * observes} [{models[0]}]", ptx


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cc", default="9.0", help="compute capability (default %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="mixed")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="MODEL",
                        help=f"some of: {', '.join(SHAPES)} (default: all)")  # fmt: skip
    parser.add_argument("--whole", action="store_true", help="also all other kernels, for the first model")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    given = parser.parse_args(arguments)
    cc = tuple(map(int, given.cc.split(".")))
    assembler = find_assembler()
    if assembler is None:
        raise SystemExit("there is no ptxas: pip install nvidia-cuda-nvcc, of the release of nvidia-nvvm")
    table = {}
    print(f"sm_{cc[0]}{cc[1]}, {given.precision}\n{'kernel':42s} registers stack spills shared f64")
    for label, ptx in sources(given.models, given.precision, cc, given.whole):
        found = assemble(ptx, assembler, cc)
        table[label] = found._asdict()
        spills = found.spill_stores + found.spill_loads
        print(f"{label:42s} {found.registers:9d} {found.stack:5d} {spills:6d} {found.shared:6d} {found.doubles:3d}")
    if given.json:
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
