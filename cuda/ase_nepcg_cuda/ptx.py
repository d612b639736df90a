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

from ase_nepcg.potential.layout import Shape

from .lists import build_lists
from .nep import build_kernels
from .precision import PRECISIONS, precision

__all__ = ["ARCHITECTURES", "SHAPES", "Resources", "assemble", "compile_kernel", "find_assembler", "kernels_of"]

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
_INTEGERS = ("n", "copies", "copied", "n_types", "slots", "room", "count", "n0", "n1", "n2", "replicas", "blocks")
_INT32 = ("replica", "types", "counts", "members", "near_end", "near", "angular_end", "angular", "back", "state")
_INT64 = ("bins", "bin_first")
_FLOAT64 = ("x", "to_box", "block_sums", "out", "parts_of_blocks")


class Resources(NamedTuple):
    """Of one kernel: registers per thread; bytes of stack, spill stores and loads, shared memory; double-precision
    instructions."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    doubles: int


def _argument_type(name: str, kernel: str, real, fixed):
    if name in _INTEGERS:
        return numba.int64
    if name in _INT32 or (name, kernel) == ("first", "totals"):
        return numba.int32[::1]
    if name in _INT64:
        return numba.int64[::1]
    if name in _FLOAT64:
        return numba.float64[::1]
    if name in ("u", "offsets", "origin"):
        return fixed[::1]
    return {"temperature": real, "with_virials": numba.boolean}.get(name, real[::1])


def kernels_of(shape: Shape, name: str) -> dict:
    """Kernels of one shape and precision by name, those that find neighbours too."""
    found = {one.py_func.__name__: one for one in build_lists(name)}
    kernels = build_kernels(shape, name)
    for one in (kernels.sums, kernels.network, kernels.partial_forces):
        found[one.py_func.__name__] = one
    return found | dict(zip(("gather", "gather, virial", "gather, virials"), kernels.gather, strict=True))


@contextlib.contextmanager
def _pretend(cc):
    """Calls between compiled functions ask for the current device; there is none."""
    from numba.cuda import compiler, dispatcher

    class Device:
        compute_capability = cc

    with contextlib.ExitStack() as stack:
        for module in (compiler, dispatcher):
            if hasattr(module, "get_current_device"):
                stack.enter_context(mock.patch.object(module, "get_current_device", Device))
        yield


def compile_kernel(kernel, name: str, cc=(9, 0)) -> str:
    """PTX of a kernel of precision ``name`` for compute capability ``cc``."""
    kinds = precision(name)
    real, fixed = (numba.from_dtype(np.dtype(kind)) for kind in (kinds.real, kinds.fixed))
    function = kernel.py_func
    arguments = [
        _argument_type(argument, function.__name__, real, fixed) for argument in inspect.signature(function).parameters
    ]
    with _pretend(cc):
        ptx, _ = cuda.compile_ptx(
            function, numba.void(*arguments), cc=cc, fastmath=kernel.targetoptions.get("fastmath", False)
        )
    return ptx


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
        command = [assembler, "-v", f"-arch=sm_{cc[0]}{cc[1]}", source, "-o", Path(folder, "kernel.cubin")]
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


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cc", default="9.0", help="compute capability (default %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="mixed")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="MODEL",
                        help=f"some of: {', '.join(SHAPES)} (default: all)")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    given = parser.parse_args(arguments)
    cc = tuple(map(int, given.cc.split(".")))
    assembler = find_assembler()
    if assembler is None:
        raise SystemExit("there is no ptxas: pip install nvidia-cuda-nvcc, of the release of nvidia-nvvm")
    table, seen = {}, set()
    print(f"sm_{cc[0]}{cc[1]}, {given.precision}\n{'kernel':42s} registers stack spills shared f64")
    for title in given.models:
        for what, kernel in kernels_of(SHAPES[title], given.precision).items():
            if kernel in seen:
                continue
            seen.add(kernel)
            found = assemble(compile_kernel(kernel, given.precision, cc), assembler, cc)
            shared = what in {one.py_func.__name__ for one in build_lists(given.precision)}
            label = what if shared else f"{what} [{title}]"
            table[label] = found._asdict()
            spills = found.spill_stores + found.spill_loads
            print(f"{label:42s} {found.registers:9d} {found.stack:5d} {spills:6d} {found.shared:6d} {found.doubles:3d}")
    if given.json:
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
