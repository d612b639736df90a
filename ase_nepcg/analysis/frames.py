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
from ..labels import get_labels, needs_masses, set_labels
from ..md.observers import MSD, VACF, Thermo
from ..md.observers.base import Observer, ObserverInfo
from ..md.state import make_state

__all__ = [
    "AnalysisError",
    "Series",
    "count_of",
    "observe",
    "positive",
    "read_amber",
    "read_frames",
    "require_masses",
    "spacing_fs",
]

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


def spacing_fs(source, first: Atoms, second: Atoms | None, frame_fs: float | None) -> float:
    """Time between frames in fs: what the caller says, or what the files know.

    ``.traj`` files of ASE's drivers and of MD hold time step and interval, ``.xyz`` and ``.nc`` files of MD the time of
    each frame. Raises :class:`AnalysisError` where nobody knows it, or caller and file contradict each other.
    """
    if frame_fs is not None:
        positive("frame_fs", frame_fs, "the time between frames in fs")
    known = None
    if second is not None and "time_ps" in first.info and "time_ps" in second.info:
        known = 1000.0 * (_time(second, 1) - _time(first, 0))
    elif isinstance(source, str | os.PathLike) and os.fspath(source).lower().endswith(".traj"):
        with Trajectory(os.fspath(source)) as reader:
            about = getattr(reader, "description", None) or {}
        if "timestep" in about and "interval" in about:
            known = about["timestep"] * about["interval"] / units.fs
    if known is not None and not 0 < known < np.inf:
        raise AnalysisError(
            f"{_name(source)}: the second frame is {known:g} fs later than the first; frames must be in the order of "
            "time, each only once"
        )
    if frame_fs is None and known is None:
        raise AnalysisError(f"{_name(source)}: the time between frames is not known; give frame_fs")
    if frame_fs is None or known is None:
        return float(frame_fs if known is None else known)
    if abs(known / frame_fs - 1.0) > _SAME_TIME:
        raise AnalysisError(
            f"{_name(source)}: frame_fs={frame_fs:g} was given, but the file says {known:g} fs between frames; leave "
            "frame_fs out, or multiply by the stride if frames were left out"
        )
    return float(frame_fs)


def _time(frame, number) -> float:
    time = frame.info["time_ps"]
    if not is_number(time) or not np.isfinite(time):
        raise AnalysisError(f"frame {number}: time_ps is {time!r}, expected a number")
    return float(time)


class Series:
    """Frames of a source that belong together: iterate for the frames, each checked against the first.

    All have the same labels and ``pbc``, finite numbers, and cells whose periodic vectors are independent. With
    ``moving`` they all have momenta, and masses where those of elements would be wrong. ``labels`` (N,) are known
    from the start; ``head``: the first two frames (or one). :meth:`every` asks for the same time between them.
    """

    def __init__(self, source, *, moving: bool = False):
        self._source, self._moving, self._spacing = source, moving, None
        self._frames = read_frames(source)
        # a copy: a run may yield the same Atoms each time
        self.head = [next(self._frames).copy()]
        self.head += itertools.islice(self._frames, 1)
        self.labels, self.pbc = get_labels(self.head[0]), self.head[0].pbc.copy()

    def every(self, frame_fs: float | None) -> float:
        """Time between frames in fs, see :func:`spacing_fs`, which later frames must have, too."""
        self._spacing = spacing_fs(self._source, self.head[0], self.head[1] if len(self.head) > 1 else None, frame_fs)
        return self._spacing

    def __iter__(self) -> Iterator[Atoms]:
        last = None
        for number, frame in enumerate(itertools.chain(self.head, self._frames)):
            self._check(frame, number)
            time = _time(frame, number) if self._spacing and "time_ps" in frame.info else None
            if None not in (last, time):
                self._check_time(last, time, number)
            last = time
            yield frame

    def _check(self, frame, number) -> None:
        if not np.array_equal(get_labels(frame), self.labels):
            raise AnalysisError(
                f"frame {number} has other sites than frame 0 ({len(frame)} and {len(self.labels)} of them); a "
                "trajectory has the same sites in the same order in all frames"
            )
        if not np.array_equal(frame.pbc, self.pbc):
            raise AnalysisError(f"frame {number} has pbc {frame.pbc.tolist()}, frame 0 {self.pbc.tolist()}")
        if self._moving:
            if not frame.has("momenta"):
                raise AnalysisError(f"frame {number} has no momenta, which this property is made of")
            require_masses(frame, number)
        for name in ("positions", "momenta", "cell"):
            value = frame.cell.array if name == "cell" else frame.arrays.get(name, 0.0)
            if not np.isfinite(value).all():
                raise AnalysisError(f"frame {number}: {name} are not finite; the run has failed before")
        periodic = frame.cell.array[frame.pbc]
        if np.linalg.matrix_rank(periodic) < len(periodic):
            raise AnalysisError(
                f"frame {number}: pbc is {frame.pbc.tolist()}, but the cell {frame.cell.array.tolist()} has no vectors "
                "for that (zero, or not independent)"
            )

    def _check_time(self, last, time, number) -> None:
        step = 1000.0 * (time - last)
        # files in single precision resolve 1e-7 of the time since the start
        if abs(step - self._spacing) > _SAME_TIME * self._spacing + 1e-3 * abs(time):
            raise AnalysisError(
                f"frames {number - 1} and {number} are {step:g} fs apart, others {self._spacing:g} fs: the file "
                "has a gap, or several runs are in it; analyse the parts on their own"
            )


def require_masses(frame: Atoms, number: int = 0) -> None:
    """Raises :class:`AnalysisError` where the masses would be those of elements that beads are only called after."""
    if needs_masses(frame):
        raise AnalysisError(
            f"frame {number}: the beads have no masses (those of the elements would be used, which are wrong): give "
            "frames with atoms.set_masses(...)"
        )


class _State:
    """The state that observers look at, renewed frame by frame."""

    def __init__(self, first: Atoms, labels, unwrap: bool):
        table, place = np.unique(labels, return_index=True)
        self.species = tuple(table[np.argsort(place)].tolist())
        types = np.array([self.species.index(label) for label in labels.tolist()])
        self._unwrap, self._last = unwrap, None
        self._images = np.zeros((len(first), 3))
        self.state = make_state(
            [first.positions], [_velocities(first)], [first.get_masses()], [types], first.cell.array, first.pbc
        )

    def show(self, frame: Atoms) -> None:
        """A frame into the state."""
        s = self.state
        s.x[:] = frame.positions
        if self._unwrap:
            cell = frame.cell.complete()
            fractions = cell.scaled_positions(frame.positions)
            if self._last is not None:
                # the nearest image of where it was. Counted in cells, which change their size from frame to frame
                moved = (fractions - self._last) @ cell.array
                nearest = find_mic(moved, frame.cell, frame.pbc)[0]
                self._images += np.round(cell.scaled_positions(nearest - moved))
            self._last = fractions
            s.x[:] += self._images @ cell.array
        s.cell[0], s.v[:] = frame.cell.array, _velocities(frame)

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
    frames = Series(source, moving=isinstance(observer, VACF))
    spacing = frames.every(frame_fs) if timed else 1.0
    if timed and observer.remove_drift:
        require_masses(frames.head[0])
    shown = None
    for number, frame in enumerate(frames):
        if shown is None:
            shown = _State(frame, frames.labels, unwrap)
            info = ObserverInfo(timestep_fs=spacing, interval=1, species=shown.species)
            ints, floats = observer.allocate(shown.state, 0, info)
            kernel = observer.kernel()
        before = shown.state.x.copy() if moving and number and not unwrap else None
        shown.show(frame)
        if before is not None:
            shown.check_jumps(before, number)
        kernel(shown.state, 0, number, ints, floats)
    return observer.results(ints, floats)
