"""MD: molecular dynamics of a NEP model, compiled from one moment at which Python is due to the next.

>>> md = MD(atoms, 2.0, Langevin(temperature_K=300, friction_per_fs=0.01), trajectory="run.traj", logfile="run.log")
>>> rdf = md.attach(RDF(r_max=10.0), interval=10)
>>> md.run(50_000)
>>> rdf.results().g
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import time
import warnings

import numpy as np
from ase import units
from tqdm import tqdm

from ..devices import choose
from ..errors import NepCGError, is_integer
from ..locks import locked
from ..nepfile import write_atomically
from ..potential.evaluate import EvaluationError
from . import checkpoint as _checkpoint
from .backends import make_backend
from .calendar import FOREVER, Attached, Caller, arrange, uninterrupted
from .loop import PHASE
from .observers.base import Observer, ObserverInfo
from .outputs import AseLog, Output, OutputError, open_output
from .run import Run
from .setup import (
    MDError,
    check_calculator,
    check_finite,
    check_settings,
    check_unchanged,
    limits_of,
    make_setup,
    settle_velocities,
    start_state,
)

__all__ = ["MD", "Attached", "MDFailed"]

# a block of steps whose conserved quantity changes by more than this part of n_dof kT is wrong
_LARGEST_DRIFT = 0.2
# between two looks at the progress bar, s
_REPORT_SECONDS = 0.5


class MDFailed(NepCGError, RuntimeError):
    """A run that cannot go on; the last good state is in the atoms, and in the file that the message names."""


class MD:
    """Molecular dynamics of atoms or beads with a :class:`~ase_nepcg.NEP` calculator.

    Parameters
    ----------
    atoms
        With positions, momenta (zero if there are none), masses (must be explicit for beads), cell and calculator.
        Constraints: ``FixAtoms`` and ``FixBeads`` where the ensemble allows them.
    timestep_fs
        Time step in fs.
    ensemble
        What is sampled: ``NVE()``, ``Langevin(...)``, ``Bussi(...)``, ``NoseHoover(...)``, ``NPT(...)``,
        ``Deform(...)`` or ``HNEMD(...)`` of :mod:`ase_nepcg.md`.
    device, precision
        As the calculator's (None), or one of its values.
    trajectory, logfile, loginterval, append_trajectory
        As of ASE's drivers: a frame and a line every ``loginterval`` steps. Trajectories by their suffix: ``.traj``,
        ``.xyz``, ``.nc`` (AMBER), or an open writer. More by :meth:`add_output`.
    checkpoint, checkpoint_interval
        File that is replaced every ``checkpoint_interval`` steps (None: about every minute) and at the end of each
        :meth:`run`; :meth:`restart` goes on from it. Files of the run in the same folder may be moved with it.
    seed
        Of the noise, 0 to 2^63 - 1; None: chosen, see :attr:`seed`.
    progress
        A bar with ns/day and the time left, where stderr is a terminal.

    ``atoms`` hold positions, momenta, cell and results whenever a function attached by :meth:`attach` is called, and
    after :meth:`run`. A function may change them: the run goes on from what it leaves. Trajectories do not depend on
    the number of threads, on observers, or on how a run is divided into calls. Ensembles that conserve the total
    momentum begin with that momentum taken off.

    Raises
    ------
    MDError, EnsembleError
        Atoms, calculator and settings of which no run can be made.
    MDFailed
        A step that cannot be completed or makes no sense (forces that are not finite, temperature, displacement or
        volume out of bounds, energy not conserved). The state before it is in ``atoms`` and written to a file.
    """

    def __init__(
        self,
        atoms,
        timestep_fs,
        ensemble,
        *,
        device=None,
        precision=None,
        trajectory=None,
        logfile=None,
        loginterval=1,
        append_trajectory=False,
        checkpoint=None,
        checkpoint_interval=None,
        seed=None,
        progress=True,
    ):
        check_settings(ensemble, timestep_fs, seed, loginterval=loginterval, checkpoint_interval=checkpoint_interval)
        seed = secrets.randbits(31) if seed is None else seed
        self.calc = check_calculator(atoms)
        self._check_temperature(ensemble)
        self.atoms, self.ensemble, self.seed = atoms, ensemble, int(seed)
        self.dt, self.timestep_fs = float(timestep_fs) * units.fs, float(timestep_fs)
        self.progress = progress
        self.max_steps = 0
        self._callers, self.handles, self.outputs = [], [], []
        self.checkpoint_path, self.checkpoint_interval = _checkpoint.checked_path(checkpoint), checkpoint_interval
        self._backend = _make_backend(self.calc, device, precision)
        self.setup, frozen, groups = make_setup(atoms, self.dt)
        ensemble.check(self.setup)
        state = start_state(atoms, ensemble, self.setup, frozen, groups, self.seed)
        self.simulation = Run(
            state,
            type(ensemble),
            self.dt,
            np.array([ensemble.parameters(self.setup)], float).reshape(1, -1),
            np.array([ensemble.initial(self.setup)], float).reshape(1, -1),
            limits=limits_of(state, ensemble, self.dt),
        )
        # whether the forces belong to the positions; what the momenta of the atoms were when last looked at
        self._ready, self._called, self._failed = False, False, False
        self._momenta = _momenta(atoms).copy()
        if trajectory is not None:
            self.add_output(open_output(trajectory, loginterval, append=append_trajectory, atoms=atoms))
        if logfile is not None:
            self.add_output(AseLog(logfile, loginterval))

    def _check_temperature(self, ensemble) -> None:
        own = self.calc.parameters.temperature_K
        if own is not None and ensemble.temperature is not None and own != ensemble.temperature:
            warnings.warn(
                f"the model is evaluated at temperature_K={own:g}, the ensemble has {ensemble.temperature:g} K",
                RuntimeWarning,
                stacklevel=3,
            )

    # --- what is known of the run ---------------------------------------------------------------------------------

    @property
    def nsteps(self) -> int:
        """Steps that are complete."""
        return self.simulation.step

    def get_number_of_steps(self) -> int:
        return self.nsteps

    def get_time(self) -> float:
        """Time in ASE units."""
        return self.nsteps * self.dt

    @property
    def time_ps(self) -> float:
        """Time in ps."""
        return self.nsteps * self.timestep_fs / 1000.0

    @property
    def n_dof(self) -> float:
        """Degrees of freedom of the kinetic energy."""
        return float(self.simulation.state.n_dof[0])

    def potential_energy(self) -> float:
        """eV."""
        self._start()
        return float(self.simulation.state.energy[0])

    def kinetic_energy(self) -> float:
        """eV."""
        s = self.simulation.state
        return float(0.5 * (s.m[:, None] * s.v**2).sum())

    def temperature_K(self) -> float:
        """From the kinetic energy and :attr:`n_dof`."""
        return 2.0 * self.kinetic_energy() / (max(self.n_dof, 1.0) * units.kB)

    def conserved_energy(self) -> float:
        """What the equations of motion conserve, eV."""
        return self.potential_energy() + self.kinetic_energy() + float(self.simulation.extra()[0])

    def stress_GPa(self):
        """Stress xx, yy, zz, yz, xz, xy with its kinetic part, positive = tension; None without a cell."""
        self._start()
        s = self.simulation.state
        volume = abs(np.linalg.det(s.cell[0]))
        if volume < 1e-10 * np.prod(np.linalg.norm(s.cell[0], axis=1)) or volume == 0:
            return None
        total = s.virial[0] + np.einsum("i,ia,ib->ab", s.m, s.v, s.v)
        total = (total + total.T) / (-2.0 * volume * units.GPa)
        return total[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]

    def todict(self) -> dict:
        """Description of the run, as ASE writes it into trajectories."""
        settings = self.ensemble.todict()
        return {
            "type": "molecular-dynamics",
            "md-type": type(self.ensemble).__name__,
            "timestep": self.dt,
            "seed": self.seed,
            **{key: value for key, value in settings.items() if value is not None},
        }

    # --- calendar -------------------------------------------------------------------------------------------------

    def attach(self, function, interval=1, *args, **kwargs):
        """Call ``function(*args, **kwargs)`` every ``interval`` steps; ``interval`` <= 0: once, after step -interval.

        As of ASE's drivers; objects with a method ``write`` are accepted. An observer of :mod:`ase_nepcg.md` (as
        ``RDF``) accumulates inside the compiled loop instead; returned is an :class:`Attached` with ``results()``.
        """
        if isinstance(function, Observer):
            return self._attach_observer(function, interval)
        if not is_integer(interval):
            raise MDError(f"interval: expected a number of steps, got {interval!r}")
        if not callable(function):
            if not hasattr(function, "write"):
                raise MDError(f"attach: expected a function, a writer or an observer, got {function!r}")
            function = function.write
        # as of ASE: what is attached before the first step is called at the start
        self._callers.append(Caller(function, int(interval), args, kwargs, called=self.nsteps or -1))
        return None

    def insert_observer(self, function, position=0, interval=1, *args, **kwargs):
        """As :meth:`attach`, but before others; at position 0 also before trajectory and log."""
        handle = self.attach(function, interval, *args, **kwargs)
        if handle is None:
            self._callers.insert(position, self._callers.pop())
        return handle

    def add_output(self, output: Output) -> Output:
        """Write ``output`` (see :mod:`ase_nepcg.md.outputs`) at its interval; it is part of checkpoints."""
        self.outputs.append(output)
        due = self._called or self.nsteps > 0
        self._callers.append(
            Caller(
                *(output.write, output.interval, (self.atoms, self), {}), output=True, called=self.nsteps if due else -1
            )
        )
        return output

    def _attach_observer(self, observer, interval, arrays=None, after=None):
        if not is_integer(interval) or interval < 1:
            raise MDError(f"interval: expected a positive number of steps, got {interval!r}")
        s = self.simulation.state
        if arrays is None:
            info = ObserverInfo(
                timestep_fs=self.timestep_fs,
                interval=int(interval),
                species=tuple(self.calc.model.species),
                temperature_K=self.ensemble.temperature,
                field_per_A=getattr(self.ensemble, "field_per_A", None),
            )
            arrays = observer.allocate(s, 0, info)
        # the grid of samples is that of the steps; the state of now is a sample only at the very beginning
        after = self.nsteps // interval * interval if after is None else after
        handle = Attached(observer, int(interval), after, *arrays)
        self.handles.append(handle)
        self._arrange()
        if self.nsteps == 0 and self._called:
            self._first_sample(handle)
        return handle

    def _arrange(self) -> None:
        self.simulation.calendar = arrange(self.handles, self.simulation.state)

    def _first_sample(self, handle) -> None:
        if handle.observer.per_site:
            self._backend.evaluate(self.simulation, virials=True)
        handle.observer.kernel()(self.simulation.state, 0, 0, handle.ints, handle.floats)

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, steps: int = 50) -> bool:
        """Advance by ``steps``; True, as ASE's drivers. Ctrl-C ends it between two steps, with everything written."""
        with self._begin(steps), self._bar(steps) as bar:
            while self.nsteps < self.max_steps:
                self._advance(min(self.max_steps, self._next_due()), bar)
        return True

    def irun(self, steps: int = 50):
        """As :meth:`run`, step by step: yields after the start and after each step whether it was the last."""
        with self._begin(steps):
            while True:
                try:
                    yield self.nsteps == self.max_steps
                finally:
                    # what the caller did to the atoms, also if this was the last that he wanted
                    self._adopt()
                if self.nsteps == self.max_steps:
                    return
                self._advance(self.nsteps + 1, None)
                self._sync()

    @contextlib.contextmanager
    def _begin(self, steps):
        """Around everything that advances: the checkpoint is ours, and whatever happens, it ends between two steps."""
        if not is_integer(steps) or steps < 0:
            raise MDError(f"steps: expected a number of steps, got {steps!r}")
        with self._lock():
            self._prepare(steps)
            try:
                self._call()
                yield
            except BaseException:
                # an interrupt may come between a step and the files that are due after it
                with contextlib.suppress(OutputError), uninterrupted():
                    self._end(write=not self._failed)
                raise
            with uninterrupted():
                self._end()

    def _end(self, write=True) -> None:
        """Atoms, files and checkpoint of the last complete step."""
        run = self.simulation
        if len(self.atoms) != len(run.state.x):
            return
        if run.progress[PHASE]:
            # energies and virials may be those of the step that is given up
            run.rewind()
            self._backend.evaluate(run)
        self._sync()
        if write:
            self._call(functions=False)
        self._save()

    def _lock(self):
        if self.checkpoint_path is None:
            return contextlib.nullcontext()
        path = os.fspath(self.checkpoint_path)
        return locked(
            f"{path}.lock",
            MDError(f"{path}: another run writes this checkpoint; wait until it has ended, or choose another name"),
        )

    def _prepare(self, steps) -> None:
        if self.atoms.calc is not self.calc:
            raise MDError("the atoms have another calculator than when MD was made: make a new MD")
        check_unchanged(self.atoms, self.setup, self.simulation.state)
        self._adopt()
        self._start()
        self.max_steps = self.nsteps + int(steps)
        self._reference = self.conserved_energy()
        self._failed = False
        if self.nsteps == 0 and not self._called:
            self._called = True
            for handle in self.handles:
                self._first_sample(handle)
        self._written = time.monotonic()

    def _start(self) -> None:
        """Forces at the present positions, if they are not known."""
        if self._ready:
            return
        try:
            self._backend.evaluate(self.simulation, any(handle.observer.per_site for handle in self.handles))
        except (EvaluationError, ValueError) as error:
            raise MDFailed(f"the atoms as they are cannot be evaluated: {error}") from None
        self._ready = True
        self._sync()

    def _next_due(self) -> int:
        step = self.nsteps
        due = [caller.next(step) for caller in self._callers]
        if self.checkpoint_path is not None and self.checkpoint_interval is not None:
            due.append((step // self.checkpoint_interval + 1) * self.checkpoint_interval)
        return min(due, default=FOREVER)

    def _advance(self, target: int, bar) -> None:
        """To step ``target``, where Python is due; checks after each block."""
        simulation = self.simulation
        while simulation.step < target:
            first = simulation.step
            try:
                self._backend.advance(simulation, target)
            except (EvaluationError, ValueError) as error:
                self._fail(f"step {simulation.step + 1} cannot be completed: {error}", error)
            self._check_energy(first)
            if bar is not None:
                bar.update(simulation.step - first)
                self._report(bar)
            if (
                self.checkpoint_path is not None
                and self.checkpoint_interval is None
                and simulation.step < target
                and time.monotonic() - self._written > 60.0
            ):
                self._save()
        self._call()
        self._save_if_due()

    def _save_if_due(self) -> None:
        interval = self.checkpoint_interval
        if self.checkpoint_path is not None and (
            self.nsteps % interval == 0 if interval else time.monotonic() - self._written > 60.0
        ):
            self._save()

    def _check_energy(self, first: int) -> None:
        s = self.simulation.state
        now = float(s.energy[0]) + self.kinetic_energy() + float(self.simulation.extra()[0])
        change, self._reference = now - self._reference, now
        kelvin = max(self.ensemble.temperature or 0.0, self.temperature_K(), 100.0)
        allowed = _LARGEST_DRIFT * max(self.n_dof, 1.0) * units.kB * kelvin
        if self.simulation.step > first and not abs(change) <= allowed:
            self._fail(
                f"the conserved energy changed by {change:.4g} eV in steps {first + 1} to {self.simulation.step}, more "
                f"than {allowed:.3g} eV (a fifth of n_dof kT): the time step of {self.timestep_fs:g} fs is probably "
                "too large"
            )

    def _fail(self, text: str, error: Exception | None = None) -> None:
        """Write the last good state and raise."""
        self._failed = True
        self.simulation.rewind()
        # energies and virials are those of the step that was given up
        self._backend.evaluate(self.simulation)
        self._sync()
        good = self.atoms.copy()
        good.set_constraint()
        stem = self.checkpoint_path or next((o.path for o in self.outputs if getattr(o, "path", None)), "md")
        path = f"{stem}.step{self.nsteps}.xyz"
        from ase.io.extxyz import write_xyz

        stream = io.StringIO()
        write_xyz(stream, good, write_results=False)
        try:
            write_atomically(path, stream.getvalue().encode())
            place = f"in the atoms and in {path}"
        except OSError as refused:
            place = f"in the atoms ({path} cannot be written: {refused.strerror})"
        raise MDFailed(
            f"{text}. The state after step {self.nsteps} is {place}; a shorter time step or another start may help"
        ) from error

    def _call(self, functions=True) -> None:
        """Outputs and functions that are due and have not been called at this step."""
        due = [caller for caller in self._callers if caller.due(self.nsteps) and (functions or caller.output)]
        if due:
            self._sync()
        for caller in due:
            # a function before it may have written a checkpoint, and with that all files
            if not caller.due(self.nsteps):
                continue
            with uninterrupted() if caller.output else contextlib.nullcontext():
                caller.called = self.nsteps
                try:
                    caller()
                except OutputError:
                    if caller.output:
                        # the file is as it was before: still due
                        caller.called = -1
                    raise
            self._adopt()

    # --- atoms ----------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Positions, momenta, cell and results of the run into the atoms."""
        s, atoms = self.simulation.state, self.atoms
        atoms.arrays["positions"][:] = s.x
        self._momenta = s.m[:, None] * s.v
        if atoms.has("momenta"):
            atoms.arrays["momenta"][:] = self._momenta
        else:
            atoms.set_array("momenta", self._momenta, float, (3,))
        if not np.array_equal(atoms.cell.array, s.cell[0]):
            atoms.cell[:] = s.cell[0]
        if self._ready:
            self.calc.adopt(atoms, s.energies.copy(), float(s.energy[0]), s.f.copy(), s.virial[0].copy())

    def _adopt(self) -> None:
        """Take over what somebody else has done to the atoms since the last :meth:`_sync`."""
        s, atoms = self.simulation.state, self.atoms
        if len(atoms) != len(s.x):
            raise MDError(f"the run has {len(s.x)} atoms, now there are {len(atoms)}: make a new MD")
        moved = not np.array_equal(atoms.positions, s.x) or not np.array_equal(atoms.cell.array, s.cell[0])
        pushed = not np.array_equal(_momenta(atoms), self._momenta)
        if moved or pushed:
            check_finite(atoms)
        if self.ensemble.changes_cell and not np.array_equal(atoms.cell.array, s.cell[0]):
            raise MDError(f"the cell was changed, which {type(self.ensemble).__name__} is in charge of: make a new MD")
        if moved:
            self._ready = False
            s.x[:], s.cell[0] = atoms.positions, atoms.cell.array
            for g in range(len(s.start) - 1):
                members = slice(s.start[g], s.start[g + 1])
                s.held[g] = s.share[members] @ s.x[s.members[members]]
        if pushed:
            s.v[:] = _momenta(atoms) / s.m[:, None]
            settle_velocities(s, self.ensemble, self.setup)
        if moved or pushed:
            self._start()
            self._sync()
            self.simulation.limits[:] = limits_of(s, self.ensemble, self.dt)
            self._reference = self.conserved_energy()

    # --- progress -------------------------------------------------------------------------------------------------

    def _bar(self, steps):
        # disable=None: silent where stderr is no terminal
        bar = tqdm(total=steps, unit="step", unit_scale=True, disable=None if self.progress else True)
        self._told = self._started = time.monotonic(), self.nsteps
        return bar

    def _report(self, bar) -> None:
        now = time.monotonic()
        if bar.disable or now - self._told[0] < _REPORT_SECONDS:
            return
        self._told = now, self.nsteps
        speed = (self.nsteps - self._started[1]) * self.timestep_fs * 1e-6 / (now - self._started[0]) * 86400
        bar.set_postfix_str(f"{self.temperature_K():.0f} K, {speed:.3g} ns/day", refresh=False)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def checkpoint(self, path) -> None:
        """Write everything that :meth:`restart` needs to ``path``: one file, replaced in one go."""
        self._adopt()
        self._start()
        if self._called:
            # the files belong to it
            self._call(functions=False)
        _checkpoint.write(path, self)

    def _save(self) -> None:
        # after a failure the older checkpoint, of a better time, is kept
        if self.checkpoint_path is not None and self._ready and not self._failed:
            self._sync()
            self.checkpoint(self.checkpoint_path)
        self._written = time.monotonic()

    @classmethod
    def restart(cls, path, calc=None, *, progress=True) -> MD:
        """The run that a checkpoint was written of: the same trajectory, files cut back to where they were then.

        ``calc``: calculator to use (of the same model); None: a new one of the model in the checkpoint. Outputs and
        observers of the compiled loop are restored (:attr:`outputs`, :attr:`handles`); functions attached by
        :meth:`attach` must be attached again. Raises CheckpointError for damaged files and those of another version,
        model or kind.
        """
        return _checkpoint.read(cls, path, calc, progress)

    @staticmethod
    def batch(runs, devices=None):
        """Several runs advanced together, also on several CUDA devices, see :class:`~ase_nepcg.md.batch.Batch`."""
        from .batch import Batch

        return Batch(runs, devices)

    def close(self) -> None:
        """Close all outputs."""
        for output in self.outputs:
            output.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _make_backend(calc, device, precision):
    own = calc.parameters
    chosen = choose(own.device if device is None else device, own.precision if precision is None else precision)
    return make_backend(calc.model, *chosen, threads=own.threads, temperature_K=own.temperature_K)


def _momenta(atoms) -> np.ndarray:
    momenta = atoms.arrays.get("momenta")
    return np.zeros((len(atoms), 3)) if momenta is None else momenta
