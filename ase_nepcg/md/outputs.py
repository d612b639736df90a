"""Files that a run writes, frame by frame or line by line, such that a killed run can go on with them.

>>> md.add_output(open_output("run.nc", interval=1000))
>>> md.add_output(ThermoOutput("run.csv", interval=100))

Each output holds its file open and locked (``flock``). A frame is made in memory and then written: first what is new,
at the end of the file, then the few numbers at its beginning that make it count. So a reader sees complete frames at
all times, and a write that fails is undone. :meth:`Output.mark` describes the state of a file in a few bytes, which a
checkpoint contains; :meth:`Output.restore` brings this state back later, whatever has been written since.

Formats of trajectories: ``.traj`` (ASE; everything, the labels of beads in tags and ``info``), ``.xyz`` or ``.extxyz``
(extended XYZ; everything, labels in the column ``bead``; 8 decimals), ``.nc`` (AMBER, :mod:`.amber`; positions and
velocities in single precision, for long runs: 24 bytes per site and frame).
"""

from __future__ import annotations

import io
import os
import warnings

import numpy as np
from ase.md.logger import MDLogger

from ..errors import closest
from .outfile import REMEDY, Output, OutputError, checked_interval
from .trajectories import AmberFile, TrajFile, XyzFile

__all__ = [
    "FORMATS",
    "AseLog",
    "Output",
    "OutputError",
    "ThermoOutput",
    "WriterOutput",
    "open_output",
    "output_from_dict",
]

# ---- text ---------------------------------------------------------------------------------------------------------

_STRESS = ("xx", "yy", "zz", "yz", "xz", "xy")


class ThermoOutput(Output):
    """A table (CSV) with a line per write and units in the names of the columns; stress is positive under tension,
    with its kinetic part, and ``nan`` without a cell."""

    kind = "thermo"
    columns = (
        *("step", "time_ps", "temperature_K", "potential_energy_eV", "kinetic_energy_eV", "conserved_energy_eV"),
        *("pressure_GPa", *(f"stress_{name}_GPa" for name in _STRESS), "volume_A3"),
        *("a_A", "b_A", "c_A", "alpha_deg", "beta_deg", "gamma_deg"),
    )

    def _patches(self, atoms, md):
        stress = md.stress_GPa()
        stress = np.full(6, np.nan) if stress is None else stress
        numbers = [
            *(md.time_ps, md.temperature_K(), md.potential_energy(), md.kinetic_energy(), md.conserved_energy()),
            *(-(stress[0] + stress[1] + stress[2]) / 3.0, *stress),
            *(atoms.cell.volume if atoms.cell.rank == 3 else np.nan, *atoms.cell.cellpar()),
        ]
        line = ",".join([str(md.nsteps), *(f"{number:.10g}" for number in numbers)]) + "\n"
        size = self._size()
        return [(size, ((",".join(self.columns) + "\n") * (size == 0) + line).encode())]

    def _compare(self, atoms):
        expected = (",".join(self.columns) + "\n").encode()
        if os.pread(self._fd, len(expected), 0) != expected:
            raise OutputError(f"{self.path}: nothing can be appended to a table with other columns; {REMEDY}")
        if os.pread(self._fd, 1, self._size() - 1) != b"\n":
            raise OutputError(f"{self.path}: nothing can be appended, the last line is not complete; {REMEDY}")


class AseLog(Output):
    """The lines of ASE's ``MDLogger``; an existing file is continued, as by ASE, with a header per run.

    ``logfile``: name, "-" for standard output, or an open text file; the last two have no marks.
    """

    kind = "log"

    def __init__(self, logfile, interval=1, append=True):
        self._header_due, self._stream = True, None
        named = isinstance(logfile, str | os.PathLike)
        if named and logfile != "-" and (not os.path.exists(logfile) or os.path.isfile(logfile)):
            super().__init__(logfile, interval, append=append)
            return
        self.interval, self.path = checked_interval(interval), None
        if named:
            self._stream, self._target = "-", os.fspath(logfile)
        elif hasattr(logfile, "write"):
            self._stream, self._target = logfile, None
        else:
            raise OutputError(f"logfile: expected a name, '-' or an open text file, got {logfile!r}")

    def _text(self, atoms, md) -> str:
        text = io.StringIO()
        MDLogger(md, atoms, text, header=self._header_due)()
        return text.getvalue()

    def _patches(self, atoms, md):
        return [(self._size(), self._text(atoms, md).encode())]

    def _compare(self, atoms):
        """Logs of several runs may stand in one file."""

    def write(self, atoms, md):
        if self._stream is None:
            super().write(atoms, md)
        elif self._target == "-":
            # sys.stdout of now: notebooks and tests replace it
            print(self._text(atoms, md), end="", flush=True)
        elif self._target is not None:
            with open(self._target, "a") as file:
                file.write(self._text(atoms, md))
        else:
            self._stream.write(self._text(atoms, md))
            self._stream.flush()
        self._header_due = False

    def mark(self):
        return None if self._stream is not None else super().mark() | {"header_due": self._header_due}

    def restore(self, mark):
        if mark is not None and self._stream is None:
            super().restore(mark)
            self._header_due = mark["header_due"]

    def todict(self):
        if self._stream is None:
            return super().todict()
        return {"kind": self.kind, "path": self._target, "interval": self.interval}

    def close(self):
        if self._stream is None:
            super().close()


# ---- writers of others --------------------------------------------------------------------------------------------


class WriterOutput:
    """An open writer, as an ``ase.io.Trajectory``: ``target.write(atoms)`` every ``interval`` steps, without marks."""

    kind = "writer"
    path = None

    def __init__(self, target, interval=1):
        self.interval, self.target = checked_interval(interval), target
        self._described = False

    def write(self, atoms, md) -> None:
        if not self._described and hasattr(self.target, "set_description"):
            self.target.set_description(md.todict() | {"interval": self.interval})
        self._described = True
        self.target.write(atoms)

    def check(self, atoms) -> None:
        """The writer looks after its file itself."""

    def mark(self) -> None:
        """None: nothing is known of the file."""

    def restore(self, mark) -> None:
        """Nothing can be restored."""

    def todict(self) -> dict:
        return {"kind": self.kind, "path": type(self.target).__name__, "interval": self.interval}

    def close(self) -> None:
        """Whoever opened the writer closes it."""


class _Nowhere:
    """In place of a writer that a restarted run does not have any more."""

    def write(self, atoms):
        pass


# ---- which one ----------------------------------------------------------------------------------------------------

#: suffix -> class of the trajectory
FORMATS = {".traj": TrajFile, ".xyz": XyzFile, ".extxyz": XyzFile, ".nc": AmberFile}


def open_output(target, interval=1, append=False, atoms=None):
    """The trajectory ``target``: a file name with a suffix of :data:`FORMATS`, or an open writer.

    ``append``, ``atoms``: as of :class:`Output`. Raises :class:`OutputError`.
    """
    if isinstance(target, Output | WriterOutput):
        return target
    if hasattr(target, "write") and not isinstance(target, os.PathLike):
        return WriterOutput(target, interval)
    if not isinstance(target, str | os.PathLike):
        raise OutputError(f"trajectory: expected a file name or an open writer, got {target!r}")
    suffix = os.path.splitext(os.fspath(target))[1].lower()
    if suffix not in FORMATS:
        hint = f": {closest(suffix, FORMATS)}" if suffix else ""
        raise OutputError(
            f"{os.fspath(target)}: the suffix says the format of a trajectory, expected .traj (ASE), .xyz (extended "
            f"XYZ) or .nc (AMBER, NetCDF){hint}"
        )
    return FORMATS[suffix](target, interval, append=append, atoms=atoms)


def output_from_dict(settings: dict):
    """The output that ``todict()`` described, to be continued with :meth:`Output.restore`.

    Writers and text files that were given open cannot be opened again: they are left out, with a warning.
    """
    kind, path, interval = settings["kind"], settings["path"], settings["interval"]
    if kind == "trajectory":
        return open_output(path, interval, append=True)
    if kind == "thermo":
        return ThermoOutput(path, interval, append=True)
    if kind == "log" and path is not None:
        return AseLog(path, interval)
    if kind not in ("log", "writer"):
        raise OutputError(f"unknown kind of output {kind!r}; expected trajectory, thermo, log or writer")
    warnings.warn(
        f"an output of the run was given as an open {'text file' if kind == 'log' else path}, which cannot be opened "
        "again: attach it anew if it is wanted",
        RuntimeWarning,
        stacklevel=2,
    )
    return WriterOutput(_Nowhere(), interval)
