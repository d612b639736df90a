"""Trajectories, of any kind that ASE reads, as input of the compiled observers.

The observers of :mod:`ase_nepcg.md` look at arrays, not at a run: what accumulates inside the compiled loop can be fed
with the frames of a finished trajectory as well. So there is one implementation of each property, with the same error
bars.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import numpy as np
from ase import Atoms, units
from ase.cell import Cell
from ase.geometry import find_mic
from ase.io import Trajectory

from ..errors import NepCGError, is_integer, is_number
from ..labels import get_labels, set_labels
from ..md.observers import MSD, VACF, Thermo
from ..md.observers.base import Observer, ObserverInfo
from ..md.state import make_state

__all__ = ["AnalysisError", "count_of", "observe", "positive", "read_amber", "read_frames", "spacing_fs"]

# relative difference of two times between frames that are called equal: files store times in single precision
_SAME_TIME = 1e-3


class AnalysisError(NepCGError, ValueError):
    """Frames that a property cannot be taken from, or settings that make no sense for them."""


def positive(name: str, value, what: str = "a positive number") -> float:
    """``value`` as float; raises :class:`AnalysisError` unless it is a positive finite number."""
    if not is_number(value) or not 0 < value < np.inf:
        raise AnalysisError(f"{name}: expected {what}, got {value!r}")
    return float(value)


def count_of(name: str, value, least: int, what: str) -> int:
    """``value`` as int; raises :class:`AnalysisError` unless it is an integer of at least ``least``."""
    if not is_integer(value) or value < least:
        raise AnalysisError(f"{name}: expected {what}, got {value!r}")
    return int(value)


def read_frames(source) -> Iterator[Atoms]:
    """Frames of ``source``: a file that ASE reads (AMBER ``.nc`` files with the labels, masses and velocities that MD
    writes), a list of such files, an ``Atoms``, or anything that yields ``Atoms``.

    Raises :class:`AnalysisError` if there are none, or if they are no frames.
    """
    found = False
    for frame in _each(source):
        if not isinstance(frame, Atoms):
            raise AnalysisError(f"expected frames (Atoms), got {type(frame).__name__}: {frame!r:.80}")
        found = True
        yield frame
    if not found:
        raise AnalysisError(f"{_name(source)}: there are no frames in it")


def _each(source):
    if isinstance(source, Atoms):
        return iter([source])
    if isinstance(source, str | os.PathLike):
        return _of_file(os.fspath(source))
    try:
        entries = iter(source)
    except TypeError:
        raise AnalysisError(f"expected a file, Atoms or a list of them, got {source!r}") from None
    return itertools.chain.from_iterable(
        _of_file(os.fspath(entry)) if isinstance(entry, str | os.PathLike) else [entry] for entry in entries
    )


def _of_file(path: str):
    with open(path, "rb"):
        pass  # a clear FileNotFoundError, before ASE guesses the format
    if path.lower().endswith(".nc"):
        yield from read_amber(path)
        return
    import ase.io

    try:
        yield from ase.io.iread(path, ":")
    except NepCGError:
        raise
    except Exception as error:
        # readers of damaged files stumble in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AnalysisError(f"{path}: ASE cannot read it as a trajectory ({reason})") from error


def read_amber(path) -> Iterator[Atoms]:
    """Frames of an AMBER NetCDF trajectory that :class:`~ase_nepcg.MD` wrote, with labels, masses and momenta."""
    from scipy.io import netcdf_file

    from ..md import amber

    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            labels, masses = amber.read_header(file)
    except ValueError as error:
        raise AnalysisError(
            f"{path}: not an AMBER trajectory written by this version of MD ({error}); read it with another library "
            "and give the frames instead"
        ) from error
    with netcdf_file(path, "r", mmap=False, maskandscale=False) as file:
        numbers = file.variables["atom_types"][:].astype(int)
        template = Atoms(numbers, positions=np.zeros((len(numbers), 3)))
        set_labels(template, labels)
        template.set_masses(masses)
        get = {name: file.variables[name] for name in ("time", "coordinates", "velocities", *_CELL)}
        for k in range(get["time"].shape[0]):
            frame = template.copy()
            lengths, angles = (get[name][k].astype(float) for name in _CELL)
            frame.pbc = lengths > 0
            frame.cell = np.concatenate([lengths, angles])
            frame.positions = get["coordinates"][k].astype(float)
            velocities = get["velocities"][k].astype(float) * (amber.VELOCITY_UNIT / (1000.0 * units.fs))
            frame.set_momenta(velocities * masses[:, None])
            frame.info["time_ps"] = float(get["time"][k])
            yield frame


_CELL = ("cell_lengths", "cell_angles")


def _name(source) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"the given {type(source).__name__}"


def spacing_fs(source, first: Atoms, second: Atoms | None, frame_fs: float | None) -> float | None:
    """Time between frames in fs: what the caller says, or what the files know; None if nobody does.

    ``.traj`` files of ASE's drivers and of MD hold time step and interval, ``.xyz`` and ``.nc`` files of MD the time of
    each frame. Raises :class:`AnalysisError` where caller and file contradict each other.
    """
    if frame_fs is not None:
        positive("frame_fs", frame_fs, "the time between frames in fs")
    known = None
    if second is not None and "time_ps" in first.info and "time_ps" in second.info:
        known = 1000.0 * (float(second.info["time_ps"]) - float(first.info["time_ps"]))
    elif isinstance(source, str | os.PathLike) and os.fspath(source).lower().endswith(".traj"):
        with Trajectory(os.fspath(source)) as reader:
            about = getattr(reader, "description", None) or {}
        if "timestep" in about and "interval" in about:
            known = about["timestep"] * about["interval"] / units.fs
    if frame_fs is None or known is None:
        return frame_fs if known is None else known
    if abs(known / frame_fs - 1.0) > _SAME_TIME:
        raise AnalysisError(
            f"{_name(source)}: frame_fs={frame_fs:g} was given, but the file says {known:g} fs between frames; leave "
            "frame_fs out, or multiply by the stride if frames were left out"
        )
    return float(frame_fs)


class _State:
    """The state that observers look at, renewed frame by frame."""

    def __init__(self, first: Atoms, frame_fs: float | None, unwrap: bool):
        self.labels = get_labels(first)
        table, place = np.unique(self.labels, return_index=True)
        self.species = tuple(table[np.argsort(place)].tolist())
        types = np.array([self.species.index(label) for label in self.labels.tolist()])
        self._unwrap, self._frame_fs = unwrap, frame_fs
        self._last = self._time = None
        self.state = make_state(
            [first.positions], [_velocities(first)], [first.get_masses()], [types], first.cell.array, first.pbc
        )

    def show(self, frame: Atoms, number: int) -> None:
        """Frame ``number`` of the trajectory into the state."""
        s = self.state
        if not np.array_equal(get_labels(frame), self.labels):
            raise AnalysisError(
                f"frame {number} has other sites than frame 0 ({len(frame)} and {len(self.labels)} of them); a "
                "trajectory has the same sites in the same order in all frames"
            )
        if not np.array_equal(frame.pbc, s.pbc[0]):
            raise AnalysisError(f"frame {number} has pbc {frame.pbc.tolist()}, frame 0 {s.pbc[0].tolist()}")
        velocities = _velocities(frame)
        for name, value in (("positions", frame.positions), ("momenta", velocities), ("cell", frame.cell.array)):
            if not np.isfinite(value).all():
                raise AnalysisError(f"frame {number}: {name} are not finite; the run has failed before")
        self._check_time(frame, number)
        if self._last is None or not self._unwrap:
            s.x[:] = frame.positions
        else:
            # the nearest image of where it was
            s.x[:] += find_mic(frame.positions - self._last, frame.cell, frame.pbc)[0]
        self._last = frame.positions.copy()
        s.cell[0], s.v[:] = frame.cell.array, velocities

    def _check_time(self, frame, number) -> None:
        time = frame.info.get("time_ps")
        if self._frame_fs is not None and None not in (time, self._time):
            step = 1000.0 * (time - self._time)
            # files in single precision resolve 1e-7 of the time since the start
            if abs(step - self._frame_fs) > _SAME_TIME * self._frame_fs + 1e-3 * abs(time):
                raise AnalysisError(
                    f"frames {number - 1} and {number} are {step:g} fs apart, others {self._frame_fs:g} fs: the file "
                    "has a gap, or several runs are in it; analyse the parts on their own"
                )
        self._time = time

    def check_jumps(self, before: np.ndarray, number: int) -> None:
        """Refuse sites that were moved to another image between two frames."""
        s = self.state
        periodic = s.pbc[0]
        if not periodic.any():
            return
        cell = Cell(s.cell[0]).complete()
        fraction = np.abs(cell.scaled_positions(s.x - before))[:, periodic]
        if fraction.max() > 0.5:
            i = int(np.argmax(fraction.max(axis=1)))
            raise AnalysisError(
                f"site {i} moves by more than half the cell between frames {number - 1} and {number}: positions were "
                "wrapped (give unwrap=True), or the frames are too far apart"
            )


def _velocities(frame: Atoms) -> np.ndarray:
    if not frame.has("momenta"):
        return np.zeros((len(frame), 3))
    return frame.arrays["momenta"] / frame.get_masses()[:, None]


def observe(observer: Observer, source, *, frame_fs: float | None = None, unwrap: bool = False):
    """Results of a compiled observer of :mod:`ase_nepcg.md` over the frames of a trajectory, with its error bars.

    ``source``: as of :func:`read_frames`. ``frame_fs``: time between frames, if the file does not know it and the
    observer asks for it (``MSD``, ``VACF``). ``unwrap``: positions were wrapped into the cell; sites are followed to
    the nearest image from frame to frame.

    Not for observers of energies and virials of sites (``HeatCurrent``, ``Conductivity``), which trajectories do not
    hold. Raises :class:`AnalysisError`, and ObserverError where the observer cannot be used.
    """
    if observer.per_site or isinstance(observer, Thermo):
        raise AnalysisError(
            f"{type(observer).__name__} needs energies and virials that trajectories do not hold; attach it to the run "
            "(MD.attach)"
        )
    timed, moving = isinstance(observer, MSD | VACF), isinstance(observer, MSD)
    frames = read_frames(source)
    head = list(itertools.islice(frames, 2))
    spacing = spacing_fs(source, head[0], head[1] if len(head) > 1 else None, frame_fs)
    if timed and spacing is None:
        raise AnalysisError(f"{_name(source)}: the time between frames is not known; give frame_fs")
    if isinstance(observer, VACF) and not head[0].has("momenta"):
        raise AnalysisError(f"{_name(source)}: the frames have no momenta, which velocity autocorrelations need")
    shown = _State(head[0], spacing, unwrap)
    info = ObserverInfo(timestep_fs=spacing or 1.0, interval=1, species=shown.species)
    ints, floats = observer.allocate(shown.state, 0, info)
    kernel = observer.kernel()
    for number, frame in enumerate(itertools.chain(head, frames)):
        before = shown.state.x.copy() if moving and number and not unwrap else None
        shown.show(frame, number)
        if before is not None:
            shown.check_jumps(before, number)
        kernel(shown.state, 0, number, ints, floats)
    return observer.results(ints, floats)
