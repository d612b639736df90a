"""One run with held sites: settings, engine, stopping rule, checkpoints. ``meanforce`` makes the averages of it."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import time
from dataclasses import dataclass, fields

import numpy as np
from ase import units
from ase.calculators.calculator import CalculationFailed
from ase.constraints import FixAtoms, FixBondLengths, FixLinearTriatomic
from ase.io.jsonio import encode
from tqdm import tqdm

from ..calculator import NEP
from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..constraints import FixBeads
from ..errors import NepCGError, is_integer, is_number
from ..labels import get_types
from ..mapping import MappingError
from ..md.held import HeldRun
from ..nepfile import write_atomically
from .statistics import MIN_BLOCKS, block_errors, drift_of
from .thermal import response, response_blocks

__all__ = ["Sampler", "SamplingError", "Settings", "UnreliableError"]

_KIND = "mean-force"
_ENSEMBLES = ("nvt", "nve")
# seconds between two checkpoints: at least, and in units of the time it takes to write one
_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE = 2.0, 50.0
# seconds between two looks at the error, for the progress bar and others who want to know
_REPORT_SECONDS = 1.0
# samples before the stopping rule is asked for the first time, and how much later each further time
_FIRST_CHECK, _NEXT_CHECK = 512, 1.05


class SamplingError(NepCGError, RuntimeError):
    """A run that cannot go on."""


class UnreliableError(NepCGError, ValueError):
    """A run with too few samples for any error bar."""


@dataclass(frozen=True)
class Settings:
    """What a run depends on, apart from atoms, mapping and calculator. Raises ValueError for what makes no sense."""

    temperature_K: float
    timestep_fs: float = 0.5
    ensemble: str = "nvt"
    friction_per_fs: float = 0.01
    equilibration_ps: float = 1.0
    interval: int = 1
    thermal_response: bool = False
    seed: int | None = None

    def __post_init__(self):
        if self.ensemble not in _ENSEMBLES:
            hint = (
                ": pressure and held beads exclude each other, choose the volume first (see ase_nepcg.configurations)"
                if str(self.ensemble).lower() in ("npt", "nph")
                else ""
            )
            raise ValueError(f"ensemble: expected 'nvt' or 'nve', got {self.ensemble!r}{hint}")
        for name, low, allowed in (
            ("temperature_K", 0.0, "a positive number of kelvins"),
            ("timestep_fs", 0.0, "a positive number of femtoseconds"),
            ("friction_per_fs", 0.0, "a positive number per femtosecond"),
        ):
            if not _number(getattr(self, name)) or not getattr(self, name) > low:
                raise ValueError(f"{name}: expected {allowed}, got {getattr(self, name)!r}")
        if not _number(self.equilibration_ps) or self.equilibration_ps < 0:
            raise ValueError(f"equilibration_ps: expected 0 or more picoseconds, got {self.equilibration_ps!r}")
        if not is_integer(self.interval) or self.interval < 1:
            raise ValueError(f"interval: expected a positive number of steps, got {self.interval!r}")
        if self.seed is not None and (not is_integer(self.seed) or not 0 <= self.seed < 2**63):
            raise ValueError(f"seed: expected an integer from 0 to 2^63 - 1, or None, got {self.seed!r}")
        if self.thermal_response and self.ensemble == "nve":
            raise ValueError(
                "thermal_response needs ensemble='nvt': at constant energy the fluctuations of the energy, and with "
                "them all covariances, are too small by C_kin/C_V (about one half)"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())

    def steps(self, picoseconds: float) -> int:
        return round(picoseconds * 1000.0 / self.timestep_fs)

    def samples(self, time_ps, force_error) -> int | None:
        """Samples in ``time_ps``, None without it; ValueError for goals that make no sense."""
        if time_ps is None and force_error is None:
            raise ValueError("when to stop? Give time_ps=, force_error=, or both")
        for name, value in (("time_ps", time_ps), ("force_error", force_error)):
            if value is not None and not (_number(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        if time_ps is None:
            return None
        samples = self.steps(time_ps) // self.interval
        if samples < MIN_BLOCKS:
            raise ValueError(
                f"time_ps={time_ps!r} holds {samples} samples; expected at least {MIN_BLOCKS} (timestep_fs="
                f"{self.timestep_fs:g}, interval={self.interval})"
            )
        return samples


class Sampler:
    """A run with held sites: made, or taken up from a checkpoint; :meth:`run` advances it.

    ``held`` (:class:`~ase_nepcg.md.held.HeldRun`) is the state. See :func:`~ase_nepcg.sample_mean_force` for the
    arguments.
    """

    def __init__(self, atoms, mapping, settings: Settings, *, checkpoint=None):
        if atoms.calc is None:
            raise ValueError("atoms have no calculator: set atoms.calc = ... first")
        self.settings = settings
        self.bound = bound = mapping.bind(atoms)
        self.atoms = atoms.copy()
        self.checkpoint = None if checkpoint is None else os.fspath(checkpoint)
        self.interrupted = False
        self._goal = self._report = None
        others = _allowed_constraints(atoms, bound)
        self.rigid = bool(others)
        self.atoms.set_constraint()
        self.calculator_name = _name(atoms.calc)
        self._start = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
        self._identity = self._identify(atoms.calc, others)
        stored = None
        if self.checkpoint is not None and os.path.exists(self.checkpoint):
            stored = read_checkpoint(self.checkpoint, _KIND)
            self._refuse_other(stored[0])
        seed = settings.seed
        if seed is None:
            seed = stored[0]["seed"] if stored else secrets.randbits(31)
        nvt = settings.ensemble == "nvt"
        timestep = settings.timestep_fs * units.fs
        self._damping = math.exp(-settings.friction_per_fs * settings.timestep_fs)
        self.held = HeldRun(
            bound,
            self._start,
            timestep=timestep,
            kT=units.kB * settings.temperature_K,
            damping=self._damping,
            interval=settings.interval,
            moments=settings.thermal_response,
            seed=seed,
        )
        self._equilibration = settings.steps(settings.equilibration_ps)
        self._producing = False
        self._engine = self._make_engine(atoms, others)
        self.n_dof = bound.n_dof
        if self.rigid:
            self.n_dof -= sum(constraint.get_removed_dof(self.atoms) for constraint in others)
        if stored:
            self._restore(*stored)
        else:
            self.held.reference = float(self._begin())
        self.has_virial = self._engine.has_virial
        if not nvt and self._producing:
            self.held.c = 1.0

    def _make_engine(self, atoms, others):
        if isinstance(atoms.calc, NEP) and not others:
            from ..md.held import NepEngine

            parameters = atoms.calc.parameters
            engine = NepEngine(
                atoms.calc.model,
                get_types(atoms, atoms.calc.model.species),
                atoms.cell.array,
                atoms.pbc,
                threads=parameters.threads,
                temperature_K=parameters.temperature_K,
                device=atoms.calc.device,
                precision=atoms.calc.precision,
            )
            engine.has_virial = _has_volume(atoms)
            return engine
        from ..md.external import CalculatorEngine

        work = self.atoms.copy()
        work.calc = atoms.calc
        work.set_constraint(others)
        return CalculatorEngine(work, self.bound.groups)

    def _begin(self) -> float:
        try:
            return self._engine.begin(self.held)
        except (CalculationFailed, FloatingPointError, RuntimeError) as error:
            raise SamplingError(f"the given configuration cannot be evaluated: {error}") from error

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, *, time_ps=None, force_error=None, progress=True, report=None) -> None:
        """Equilibrate, then sample for ``time_ps`` or until the rms force error is ``force_error``.

        ``report(error)`` is called about once a second with the present rms force error, None before there is one.
        """
        samples = self.settings.samples(time_ps, force_error)
        last = None if samples is None else self._equilibration + samples * self.settings.interval
        self._goal, self._report = force_error, report
        self._written = self._told = time.monotonic()
        self._write_seconds = 0.0
        # disable=None: silent where stderr is no terminal
        with tqdm(total=last, initial=self.held.step, unit="step", disable=None if progress else True) as bar:
            try:
                if not self._producing:
                    self._advance(self._equilibration, bar, "equilibration")
                    self._start_production()
                self._produce(last, force_error, bar)
            except KeyboardInterrupt:
                self.held.rewind()
                self.interrupted = True
                self._save()
                if not self._producing or self.held.table.full < MIN_BLOCKS:
                    raise
                bar.set_description("interrupted")
            except _StepError as error:
                self._fail(error.__cause__)
        self._save()

    def _advance(self, last_step: int, bar, title: str = "") -> None:
        """To ``last_step``, with checkpoints on the way."""
        run = self.held
        if title:
            bar.set_description(title)
        sample_from = self._equilibration if self._producing else 0
        while run.step < last_step:
            before = run.step
            try:
                self._engine.advance(run, last_step, sample_from)
            except KeyboardInterrupt:
                raise
            except Exception as error:
                raise _StepError from error
            bar.update(run.step - before)
            if (self._report or not bar.disable) and time.monotonic() - self._told > _REPORT_SECONDS:
                self._tell(bar)
            if self.checkpoint is not None and time.monotonic() - self._written > max(
                _CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * self._write_seconds
            ):
                self._save()

    def _tell(self, bar) -> None:
        error = None
        if self._producing and self.held.table.full >= MIN_BLOCKS:
            error = self.force_error(self.estimate())
            wanted = "" if self._goal is None else f", wanted {self._goal:g}"
            bar.set_postfix_str(f"force error {error:.4f} eV/Å{wanted}", refresh=False)
        if self._report:
            self._report(error)
        self._told = time.monotonic()

    def _start_production(self) -> None:
        """Forget the samples of the equilibration; at constant energy, set the total energy to its average."""
        run = self.held
        if self.settings.ensemble == "nve":
            if run.table.full >= MIN_BLOCKS and run.y[-1] > 0:
                half = run.table.blocks[run.table.full // 2 :]
                wanted = (half[:, -2] + half[:, -1]).mean() - run.y[-2]
                if wanted > 0:
                    run.v[:] *= math.sqrt(wanted / run.y[-1])
            run.c = 1.0
        run.table.clear()
        self._producing = True

    def _produce(self, last, force_error, bar) -> None:
        run, interval = self.held, self.settings.interval
        if force_error is None:
            self._advance(last, bar, "sampling")
            return
        bar.set_description("sampling")
        check = _FIRST_CHECK
        while True:
            # the samples at which the rule is asked are fixed, so that a resumed run stops where the first would have
            while check < run.table.samples:
                check = _after(check)
            target = self._equilibration + check * interval
            if run.table.samples == check:
                if self.converged(self.estimate()):
                    return
                check = _after(check)
                target = self._equilibration + check * interval
            if last is not None and run.step >= last:
                return
            self._advance(target if last is None else min(target, last), bar)

    def _fail(self, error: Exception) -> None:
        """Write the last good state and raise."""
        self.held.rewind()
        self._save()
        good = self.atoms.copy()
        good.positions[:] = self.held.x
        good.set_velocities(self.held.v)
        stem = self.checkpoint or f"mean-force-seed{self.held.seed}"
        path = f"{stem}.step{self.held.step}.xyz"
        self._write_state(path, good)
        raise SamplingError(
            f"step {self.held.step + 1} cannot be completed: {_text(error)}. The state after step {self.held.step} was "
            f"written to {path}; a shorter time step or another starting configuration may help"
        ) from error

    @staticmethod
    def _write_state(path, atoms) -> None:
        import io

        from ase.io.extxyz import write_xyz

        stream = io.StringIO()
        write_xyz(stream, atoms, write_results=False)
        write_atomically(path, stream.getvalue().encode())

    # --- averages -------------------------------------------------------------------------------------------------

    def _pools(self) -> list[np.ndarray]:
        """Components that are alike: forces per species, diagonal and off-diagonal virials, energies."""
        k = 3 * self.bound.n_sites
        labels = np.repeat(self.bound.labels, 3)
        pools = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        for begin in (k, k + 6) if self.has_virial else ():
            pools += [np.arange(begin, begin + 3), np.arange(begin + 3, begin + 6)]
        return [*pools, np.array([k + 12]), np.array([k + 13])]

    def estimate(self):
        """Errors of all averages (:class:`~ase_nepcg.meanforce.statistics.BlockErrors`)."""
        table = self.held.table
        if table.full < MIN_BLOCKS:
            raise UnreliableError(f"only {table.samples} samples: at least {MIN_BLOCKS} are needed for an error")
        return block_errors(table.blocks, self._pools())

    def force_error(self, estimate) -> float:
        return float(np.sqrt((estimate.error[: 3 * self.bound.n_sites] ** 2).mean()))

    def converged(self, estimate) -> bool:
        return self._goal is None or (self.reliable(estimate) and self.force_error(estimate) <= self._goal)

    def reliable(self, estimate) -> bool:
        """Whether the errors of the forces are; the energy, which knows all slow motions, must agree."""
        k = 3 * self.bound.n_sites
        return bool(estimate.reliable[:k].all() and estimate.reliable[k + 12])

    def drift(self, estimate) -> tuple[float, bool]:
        """Of the forces, see :func:`~ase_nepcg.meanforce.statistics.drift_of`; whether they or the energy drift."""
        k = 3 * self.bound.n_sites
        forces, drifts = drift_of(self.held.table.blocks, estimate, np.arange(k))
        return forces, drifts or drift_of(self.held.table.blocks, estimate, np.array([k + 12]))[1]

    def virial_pull(self, difference) -> float:
        """Rms of the diagonal of ``difference``, molecular less atomic estimator, in units of its error."""
        k = 3 * self.bound.n_sites
        blocks = self.held.table.blocks
        series = blocks[:, k : k + 3] - blocks[:, k + 6 : k + 9]
        error = block_errors(series, [np.arange(3)]).error
        moves = error > 0
        if not moves.any():
            return 0.0
        return float(np.sqrt(((np.diag(difference)[moves] / error[moves]) ** 2).mean()))

    def response(self, kT: float) -> dict:
        """Thermal response with errors, under the names of :class:`~ase_nepcg.MeanForce`."""
        bound, table = self.bound, self.held.table
        n, k = bound.n_sites, 3 * bound.n_sites
        first, second = response(table, kT)
        series1, series2 = response_blocks(table, kT)
        pools = self._pools()
        error1, error2 = block_errors(series1, pools).error, block_errors(series2, pools).error
        values = {
            "forces_dT": first[:k].reshape(n, 3),
            "forces_dT_errors": error1[:k].reshape(n, 3),
            "forces_dT2": second[:k].reshape(n, 3),
            "forces_dT2_errors": error2[:k].reshape(n, 3),
        }
        if self.has_virial:
            from .core import _tensor

            values["virial_dT"] = _tensor(first[k : k + 6]) + bound.n_implicit * units.kB * np.eye(3)
            values["virial_dT_error"] = _tensor(error1[k : k + 6])
        return values

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _identify(self, calculator, others) -> dict:
        settings = {f.name: getattr(self.settings, f.name) for f in fields(self.settings) if f.name != "seed"}
        geometry = hashlib.sha256()
        for array in (self._start, self.atoms.cell.array, self.atoms.pbc):
            geometry.update(np.ascontiguousarray(array).tobytes())
        return {
            "settings": settings,
            "mapping": self.bound.fingerprint(),
            "configuration": geometry.hexdigest(),
            "calculator": fingerprint(calculator),
            "constraints": hashlib.sha256(encode([c.todict() for c in others]).encode()).hexdigest(),
        }

    def _refuse_other(self, header: dict) -> None:
        old, new = header["identity"], self._identity
        for name, value in new["settings"].items():
            if old["settings"].get(name) != value:
                raise CheckpointError(
                    f"{self.checkpoint}: made with {name}={old['settings'].get(name)!r}, now {name}={value!r}; use "
                    "another checkpoint file, or the settings of the first run"
                )
        for name in ("mapping", "configuration", "calculator", "constraints"):
            if old[name] != new[name]:
                raise CheckpointError(
                    f"{self.checkpoint}: made with another {name}; use another checkpoint file for this run"
                )
        if self.settings.seed is not None and header["seed"] != self.settings.seed:
            raise CheckpointError(
                f"{self.checkpoint}: made with seed={header['seed']}, now seed={self.settings.seed}; use another "
                "checkpoint file, or the seed of the first run"
            )

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        begin = time.monotonic()
        run = self.held
        run.rewind()
        names = ("count", "weights", "squares", "sums", "sums_u", "sums_uu")
        arrays = dict(zip(names, run.table.arrays, strict=True))
        arrays |= {"x": run.x, "v": run.v, "f": run.f, "y": run.y, "virial": run.virial, "progress": run.progress}
        header = {
            "identity": self._identity,
            "seed": run.seed,
            "reference": run.reference,
            "producing": self._producing,
            "has_virial": self._engine.has_virial,
        }
        write_checkpoint(self.checkpoint, _KIND, header, arrays)
        self._written = time.monotonic()
        self._write_seconds = self._written - begin

    def _restore(self, header: dict, arrays: dict) -> None:
        run = self.held
        targets = dict(zip(("count", "weights", "squares", "sums", "sums_u", "sums_uu"), run.table.arrays, strict=True))
        targets |= {"x": run.x, "v": run.v, "f": run.f, "y": run.y, "virial": run.virial, "progress": run.progress}
        for name, target in targets.items():
            if name not in arrays or arrays[name].shape != target.shape:
                raise CheckpointError(f"{self.checkpoint}: {name} is missing or has another shape; remove the file")
            target[...] = arrays[name]
        run.reference = header["reference"]
        self._producing = header["producing"]
        self._engine.has_virial = header["has_virial"]


class _StepError(Exception):
    """Carries the exception of an engine out of the loop."""


def _allowed_constraints(atoms, bound) -> list:
    """The rigid bonds among the constraints of ``atoms``; raises for constraints that a mean force excludes."""
    rigid = []
    for constraint in atoms.constraints:
        if isinstance(constraint, FixBeads):
            continue  # what the run does anyway
        if isinstance(constraint, FixBondLengths):
            pairs = np.asarray(constraint.pairs)
        elif isinstance(constraint, FixLinearTriatomic):
            triples = np.asarray(constraint.triples)
            pairs = np.concatenate([triples[:, [0, 1]], triples[:, [1, 2]]])
        else:
            if isinstance(constraint, FixAtoms) and bound.is_site[constraint.get_indices()].all():
                continue  # atoms that are sites are held
            raise MappingError(
                f"constraint {type(constraint).__name__}: a mean force allows rigid molecules (FixBondLengths, "
                "FixLinearTriatomic) and atoms that are sites themselves; remove it from atoms.constraints"
            )
        crossing = np.flatnonzero(bound.anchor_of[pairs[:, 0]] != bound.anchor_of[pairs[:, 1]])
        if len(crossing):
            i, j = pairs[crossing[0]]
            raise MappingError(
                f"the rigid bond between atoms {i} and {j} joins two beads: the sum of forces is not the mean force "
                "then; put both atoms into one bead"
            )
        rigid.append(constraint)
    return rigid


def fingerprint(calculator) -> str:
    if isinstance(calculator, NEP):
        text = calculator.model.to_text() + f"\n{calculator.parameters.temperature_K!r}"
    else:
        try:
            parameters = encode(calculator.todict())
        except (AttributeError, TypeError, ValueError, NotImplementedError):
            parameters = ""
        text = f"{type(calculator).__module__}.{type(calculator).__qualname__} {parameters}"
    return hashlib.sha256(text.encode()).hexdigest()


def _name(calculator) -> str:
    """A word for files: letters, digits, dots, dashes."""
    word = getattr(calculator, "name", None) or type(calculator).__name__
    if isinstance(calculator, NEP):
        word = f"{calculator.model.name}-{fingerprint(calculator)[:8]}"
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in str(word)) or "calculator"


def _after(check: int) -> int:
    return math.ceil(check * _NEXT_CHECK)


def _has_volume(atoms) -> bool:
    return bool(atoms.cell.rank == 3 and atoms.cell.volume > 1e-10 * atoms.cell.lengths().prod())


def _number(value) -> bool:
    return is_number(value) and math.isfinite(value)


def _text(error) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, NepCGError | RuntimeError) else f"{type(error).__name__}: {text}"
