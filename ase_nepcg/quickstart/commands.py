"""Shell commands for the stages of a quickstart one by one, on the files in its folder."""

from __future__ import annotations

from .settings import Settings
from .stages import DATA, MODELS

__all__ = ["commands"]


def commands(settings: Settings, numbers: dict, calculator: str | None) -> dict[str, list[str]]:
    """{stage: commands}, to be given inside the folder: of the all-atom runs and those of the beads the main part, with
    other random numbers and without what comes before it; of mean forces and training what the stages do.

    ``calculator``: options of ``nepcg sample`` that name the all-atom calculator; None: a calculator that no option
    names, of which there are commands for what follows the mean forces only.
    """
    s, found = settings, {}
    if calculator == "--model atomistic.txt":
        found["atomistic"] = [
            _join(
                "nepcg md", f"boxes.traj@{k}", "atomistic.txt", "--ensemble langevin",
                f"--temperature-K {s.temperature_K!r} --timestep-fs {s.timestep_fs!r}",
                f"--friction-per-fs {s.friction_per_fs!r} --time-ps {s.equilibration_ps + s.time_ps!r}",
                f"--output my_atomistic_{k}",
            )
            for k in range(len(s.densities))
        ]  # fmt: skip
    if calculator is not None:
        found["frames"] = [
            _join(
                "nepcg sample snapshots.traj --index :", calculator, "--mapping mapping.json",
                f"--temperature-K {s.temperature_K!r} --timestep-fs {s.timestep_fs!r}",
                f"--friction-per-fs {s.friction_per_fs!r} --equilibration-ps {s.frame_equilibration_ps!r}",
                f"--time-ps {s.frame_ps!r} --seed {s.seed}",
                "--output my_frames.xyz",
            )
        ]  # fmt: skip
    found["models"] = [
        _join(
            f"nepcg train {train} --cutoff {s.cutoff[0]!r} {s.cutoff[1]!r} --neurons {s.neurons}",
            f"--n-max {s.n_max[0]} {s.n_max[1]} --lambda-v {s.lambda_v!r}",
            f"--lambda-1 {s.regularisation!r} --lambda-2 {s.regularisation!r} --zbl repulsive --steps {s.steps}",
            f"--seed {s.seed} --output my_{name}",
        )
        for name, (train, _) in DATA.items()
    ]
    found["beads"] = [
        _join(
            f"nepcg md beads.traj@{k} {MODELS['corrected']} --ensemble langevin --temperature-K {s.temperature_K!r}",
            f"--timestep-fs {s.bead_timestep_fs!r} --friction-per-fs {s.bead_friction_per_fs!r}",
            f"--time-ps {s.bead_time_ps!r} --rdf {numbers['beads']['r_max']:g} --output my_beads_{k}",
        )
        for k in range(len(s.densities))
    ]
    return found


def _join(*parts: str) -> str:
    return " ".join(parts)
