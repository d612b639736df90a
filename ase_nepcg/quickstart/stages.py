"""The stages of a quickstart, each of which leaves its numbers and files in the folder and is done once."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict

import numpy as np
from ase import units

from ..analysis import read_frames
from ..analysis.runs import hot_copy
from ..calculator import NEP
from ..configurations import strained
from ..data import water_box
from ..dataset import FrameCalculator, read_dataset, write_dataset
from ..dataset.results import stress_from_virial
from ..md import RDF, MDFailed, Thermo
from ..meanforce.campaign import sample_many
from ..potential.threads import default_threads
from ..training import train
from .dynamics import Phase, advance, with_threads, write_trajectory
from .folder import FolderError, RunFolder
from .measure import bins_up_to, compare_rdf, molecular_pressure, ns_per_day
from .results import summary
from .settings import QuickstartError, Settings
from .system import System

__all__ = ["STAGES", "Journey"]

#: in this order
STAGES = {
    "boxes": "boxes at several densities",
    "atomistic": "all-atom runs",
    "frames": "mean forces",
    "models": "training",
    "beads": "runs of the beads",
    "speed": "speed",
}
#: with the correction of the virial, and without
MODELS = {"corrected": "nep.txt", "uncorrected": "nep_uncorrected.txt"}
DATA = {"corrected": ("train.xyz", "test.xyz"), "uncorrected": ("train_uncorrected.xyz", "test_uncorrected.xyz")}
_SAMPLE = 10
# the speed is that of a box of this many atoms or a little more
_TIMED_ATOMS = 1500


class Journey:
    """One quickstart in a locked folder."""

    def __init__(self, folder: RunFolder, settings: Settings, system: System, threads, workers, progress, tell):
        self.folder, self.settings, self.system = folder, settings, system
        self.threads, self.workers, self.progress, self.tell = threads, workers, progress, tell
        self.numbers = {}

    def run(self) -> dict:
        """All stages: {stage: numbers}."""
        for count, (stage, title) in enumerate(STAGES.items(), 1):
            found, began = self.folder.finished(stage), time.perf_counter()
            if found is not None and stage == "boxes" and self.folder.finished("frames") is None:
                self._check_calculator(found)
            self.tell(f"[{count}/{len(STAGES)}] {title}" + (" (finished before)" if found is not None else ""))
            if found is None:
                numbers = getattr(self, stage)()
                numbers["seconds"] = time.perf_counter() - began
                found = self.folder.finish(stage, numbers)
            self.numbers[stage] = found
            for line in summary(stage, self.numbers, self.settings):
                self.tell(f"      {line}")
        return self.numbers

    # --- the stages -----------------------------------------------------------------------------------------------

    def boxes(self) -> dict:
        boxes, forces, system, s = [], [], self.system, self.settings
        for k, density in enumerate(s.densities):
            if system.atoms is None:
                box = water_box(s.edge, density, s.seed + k)
            else:
                own = system.density
                change = (own / density) ** (1 / 3) - 1
                box = system.atoms.copy()
                if abs(change) > 1e-9:
                    [box] = strained(system.atoms, system.mapping, isotropic=change)
            forces.append(self._try(box, density))
            boxes.append(box)
        write_trajectory(self.folder.file("boxes.traj"), boxes)
        system.mapping.write(self.folder.file("mapping.json"))
        if isinstance(system.calculator, NEP):
            system.calculator.model.write(self.folder.file("atomistic.txt"))
        return {
            "atoms": len(boxes[0]),
            "sites": len(system.mapping),
            "labels": sorted(set(system.mapping.labels)),
            "volumes_A3": [box.cell.volume for box in boxes],
            # tells whether a calculator is still the same
            "rms_force": float(np.sqrt((forces[0] ** 2).mean())),
        }

    def atomistic(self) -> dict:
        s, boxes = self.settings, [self.system.dressed(box) for box in self._frames("boxes.traj")]
        if s.melt_ps and self.system.melts:
            boxes = self._advance("melt", boxes, s.melt_K, s.melt_ps)
        if s.equilibration_ps:
            boxes = self._advance("equilibration", boxes, s.temperature_K, s.equilibration_ps)
        self._advance("atomistic", boxes, s.temperature_K, s.time_ps, s.record_steps)
        return _columns(
            molecular_pressure(self._records(k), self.system.mapping, s.temperature_K) for k in range(len(boxes))
        )

    def frames(self) -> dict:
        s, system = self.settings, self.system
        chosen = {"train": [], "test": []}
        for k in range(len(s.densities)):
            records = self._records(k)
            count = s.frames + s.test_frames
            # evenly, without the first; the last ones are for tests
            picked = np.round(np.linspace(1, len(records) - 1, count)).astype(int).tolist()
            chosen["train"] += [records[i] for i in picked[: s.frames]]
            chosen["test"] += [records[i] for i in picked[s.frames :]]
        snapshots = chosen["train"] + chosen["test"]
        write_trajectory(self.folder.file("snapshots.traj"), snapshots)
        with warnings.catch_warnings():
            # of short runs: counted in the report
            warnings.filterwarnings("ignore", r"configuration \d+: ", RuntimeWarning)
            results = sample_many(
                snapshots,
                system.mapping,
                calculator=system.calculator,
                workers=self.workers,
                threads=self.threads,
                folder=self.folder.file("frames"),
                temperature_K=s.temperature_K,
                timestep_fs=s.timestep_fs,
                friction_per_fs=s.friction_per_fs,
                equilibration_ps=s.frame_equilibration_ps,
                time_ps=s.frame_ps,
                seed=s.seed,
                progress=self.progress,
            )
        frames = [result.frame for result in results]
        divided = {"train": frames[: len(chosen["train"])], "test": frames[len(chosen["train"]) :]}
        for (name, part), index in zip(divided.items(), (0, 1), strict=True):
            write_dataset(self.folder.file(f"{name}.xyz"), part)
            plain = [without_correction(frame, s.temperature_K) for frame in part]
            write_dataset(self.folder.file(DATA["uncorrected"][index]), plain)
        forces = np.concatenate([result.forces.ravel() for result in results])
        errors = np.concatenate([result.force_errors.ravel() for result in results])
        pulls = [result.virial_pull for result in results if result.virial_pull is not None]
        return {
            "train": len(divided["train"]),
            "test": len(divided["test"]),
            "rms_force": float(np.sqrt((forces**2).mean())),
            "force_error": float(np.sqrt((errors**2).mean())),
            "unreliable": sum(not result.reliable for result in results),
            "virial_pull": float(np.median(pulls)) if pulls else None,
        }

    def models(self) -> dict:
        s, found = self.settings, {}
        for name, file in MODELS.items():
            frames, test = (read_dataset(self.folder.file(part)) for part in DATA[name])
            training = train(
                frames,
                cutoff=s.cutoff,
                neurons=s.neurons,
                n_max=s.n_max,
                lambda_v=s.lambda_v,
                lambda_1=s.regularisation,
                lambda_2=s.regularisation,
                steps=s.steps,
                zbl="repulsive",
                seed=s.seed,
                threads=self.threads,
                checkpoint=self.folder.file(f"training_{name}.npz"),
                progress=self.progress,
            )
            if training.reason == "interrupted":
                # the checkpoint has it
                raise KeyboardInterrupt
            training.model.write(self.folder.file(file))
            found[name] = {"train": training.report(), "test": training.report(test), "reason": training.reason}
            found[name]["steps"] = int(training.history.step[-1])
        return found

    def beads(self) -> dict:
        s, mapping, found = self.settings, self.system.mapping, {}
        starts = []
        for k in range(len(s.densities)):
            last = self._records(k)[-1]
            beads = mapping.beads(last)
            beads.set_positions(beads.get_positions(wrap=True))
            starts.append(beads)
        write_trajectory(self.folder.file("beads.traj"), starts)
        # up to half of the smallest height of a box
        r_max, bins = bins_up_to(min(1.0 / np.linalg.norm(start.cell.reciprocal(), axis=1).max() for start in starts))
        found["r_max"] = r_max
        for name, file in MODELS.items():
            calc = NEP(self.folder.file(file))
            boxes = [hot_copy(start, s.temperature_K, [s.seed, k], calc) for k, start in enumerate(starts)]
            observers = ((Thermo(), _SAMPLE), (RDF(r_max, bins), _SAMPLE))
            try:
                if s.bead_equilibration_ps:
                    boxes = self._advance_beads(f"{name}_equilibration", boxes, s.bead_equilibration_ps)
                    boxes = [box for box, _ in boxes]
                ends = self._advance_beads(name, boxes, s.bead_time_ps, observers)
            except MDFailed as error:
                if name == "corrected":
                    raise
                # a model that is there to be worse may be so bad that it cannot run
                self.tell(f"      the model without the correction of the virial fails: {error}")
                found[name] = _columns((math.nan, math.nan, False) for _ in starts)
                continue
            found[name] = _columns(
                (*thermo["pressure_GPa"], bool(thermo.reliable[thermo.columns.index("pressure_GPa")]))
                for _, (thermo, _) in ends
            )
            if name == "corrected":
                compared = [
                    compare_rdf([mapping.beads(frame) for frame in self._records(k)], rdf)
                    for k, (_, (_, rdf)) in enumerate(ends)
                ]
                found["rdf"] = [asdict(one) for one in compared]
        return found

    def speed(self) -> dict:
        s, system = self.settings, self.system
        atoms = self._records(0)[-1]
        atoms.calc = system.calculator
        fast = isinstance(system.calculator, NEP)
        repeat = max(1, round((_TIMED_ATOMS / len(atoms)) ** (1 / 3))) if fast else 1
        beads = system.mapping.beads(atoms)
        beads.calc = NEP(self.folder.file(MODELS["corrected"]))
        found = {"threads": self.threads or default_threads(), "compiled": fast}
        for name, one, step, friction in (
            ("atoms", atoms, s.timestep_fs, s.friction_per_fs),
            ("beads", beads, s.bead_timestep_fs, s.bead_friction_per_fs),
        ):
            large = one.repeat(repeat)
            large.calc = with_threads(one.calc, self.threads) if isinstance(one.calc, NEP) else one.calc
            found[name] = ns_per_day(large, step, s.temperature_K, friction, s.timing_s)
        return found

    # --- helpers --------------------------------------------------------------------------------------------------

    def _check_calculator(self, numbers: dict) -> None:
        """Refuse a calculator that gives other forces than when the boxes were made, whatever it is called."""
        box = self.system.dressed(self._frames("boxes.traj")[0])
        forces = self._try(box, self.settings.densities[0])
        now, before = float(np.sqrt((forces**2).mean())), numbers["rms_force"]
        if abs(now - before) > 1e-6 * max(before, 1e-3):
            raise FolderError(
                f"{self.folder.path}: was begun with a calculator of other forces (rms {before:.8g} eV/Å for the first "
                f"box, now {now:.8g}); give the same one to go on, or another folder"
            )

    def _try(self, box, density: float) -> np.ndarray:
        """Refuse now what the calculator cannot do, and not after hours at another density."""
        box.calc = self.system.calculator
        try:
            forces, stress = box.get_forces(), box.get_stress()
        except Exception as error:
            raise QuickstartError(
                f"the calculator fails for the box at {density:g} g/cm³: {' '.join(str(error).split())}"
            ) from error
        if not (np.isfinite(forces).all() and np.isfinite(stress).all()):
            raise QuickstartError(f"forces or stress of the box at {density:g} g/cm³ are not finite: do atoms overlap?")
        box.calc = None
        return forces

    def _advance(self, name, boxes, temperature_K, time_ps, record=0) -> list:
        s, starts = self.settings, []
        for k, box in enumerate(boxes):
            box.calc = self.system.calculator
            fresh = not box.has("momenta") or name == "melt"
            starts.append(hot_copy(box, temperature_K, [s.seed, k]) if fresh else box)
        phase = Phase(
            self.folder.path, name, s.timestep_fs, temperature_K, s.friction_per_fs,
            steps=round(1000.0 * time_ps / s.timestep_fs), seed=s.seed, record=record, threads=self.threads,
            progress=self.progress,
        )  # fmt: skip
        return [atoms for atoms, _ in advance(phase, starts)]

    def _advance_beads(self, name, boxes, time_ps, observers=()) -> list:
        s = self.settings
        step = s.bead_timestep_fs
        record = max(1, round(1000.0 / step)) if observers else 0
        phase = Phase(
            self.folder.path, f"beads_{name}", step, s.temperature_K, s.bead_friction_per_fs,
            steps=round(1000.0 * time_ps / step), seed=s.seed + 1, record=record,
            observers=observers, threads=self.threads, progress=self.progress,
        )  # fmt: skip
        return advance(phase, boxes)

    def _records(self, k: int) -> list:
        """The frames of the all-atom run at density ``k``."""
        return [self.system.dressed(frame) for frame in self._frames(f"atomistic_{k}.traj")]

    def _frames(self, name: str) -> list:
        return list(read_frames(self.folder.file(name)))


def without_correction(frame, temperature_K: float):
    """A copy of a mean-force frame whose virial is ``W_CG - (N_atoms - N_sites) kT 1``: the atoms' own, as if nothing
    had been averaged away (arXiv:2603.01234, Eq. 17, without its last term)."""
    removed = frame.info["n_atoms"] - len(frame)
    virial = np.asarray(frame.info["virial"]) - removed * units.kB * temperature_K * np.eye(3)
    results = {"forces": frame.get_forces(), "stress": stress_from_virial(virial, frame.cell.volume)}
    plain = frame.copy()
    for key in [key for key in plain.info if key.startswith("virial")]:
        del plain.info[key]
    plain.info |= {"virial": virial, "virial_error": frame.info["virial_error"]}
    plain.calc = FrameCalculator(plain, **results)
    return plain


def _columns(pressures) -> dict:
    """Triples (pressure, standard error, whether the error is more than a lower bound) by their names."""
    names = ("pressure_GPa", "pressure_error", "pressure_reliable")
    return dict(zip(names, map(list, zip(*pressures, strict=True)), strict=True))
