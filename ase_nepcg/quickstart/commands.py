"""The shell commands that do the stages of a quickstart one by one, on the files in its folder."""

from __future__ import annotations

from .settings import Settings
from .stages import DATA, MODELS

__all__ = ["commands"]


def commands(settings: Settings, numbers: dict, calculator: str | None) -> dict[str, list[str]]:
    """{stage: commands}, to be given inside the folder.

    ``calculator``: options of ``nepcg sample`` that name the all-atom calculator; None: a calculator that no option
    names, of which there are commands for what follows the mean forces only.
    """
    s, found = settings, {}
    if calculator == "--model atomistic.txt":
        found["atomistic"] = [
            _join(
                "nepcg md", f"boxes.traj@{k}", "atomistic.txt", "--ensemble langevin",
                f"--temperature-K {s.temperature_K:g} --timestep-fs {s.timestep_fs:g}",
                f"--friction-per-fs {s.friction_per_fs:g} --time-ps {s.equilibration_ps + s.time_ps:g}",
                f"--output my_atomistic_{k}",
            )
            for k in range(len(s.densities))
        ]  # fmt: skip
    if calculator is not None:
        found["frames"] = [
            _join(
                "nepcg sample snapshots.traj --index :", calculator, "--mapping mapping.json",
                f"--temperature-K {s.temperature_K:g} --timestep-fs {s.timestep_fs:g}",
                f"--equilibration-ps {s.frame_equilibration_ps:g} --time-ps {s.frame_ps:g} --seed {s.seed}",
                "--output my_frames.xyz",
            )
        ]  # fmt: skip
    found["models"] = [
        _join(
            f"nepcg train {train} --test {test} --cutoff {s.cutoff[0]:g} {s.cutoff[1]:g} --neurons {s.neurons}",
            f"--n-max {s.n_max[0]} {s.n_max[1]} --lambda-v {s.lambda_v:g}",
            f"--lambda-1 {s.regularisation:g} --lambda-2 {s.regularisation:g} --zbl repulsive --steps {s.steps}",
            f"--patience {s.steps}",
            f"--seed {s.seed} --output my_{name}",
        )
        for name, (train, test) in DATA.items()
    ]
    found["beads"] = [
        _join(
            f"nepcg md beads.traj@{k} {MODELS['corrected']} --ensemble langevin --temperature-K {s.temperature_K:g}",
            f"--timestep-fs {s.bead_timestep_fs:g} --friction-per-fs {s.bead_friction_per_fs:g}",
            f"--time-ps {s.bead_time_ps:g} --rdf {numbers['beads']['r_max']:g} --output my_beads_{k}",
        )
        for k in range(len(s.densities))
    ]
    return found


def _join(*parts: str) -> str:
    return " ".join(parts)
