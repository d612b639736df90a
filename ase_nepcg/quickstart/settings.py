"""What a quickstart does, how long, and how exactly."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

from ..errors import ModelError, NepCGError, closest, is_integer, is_number
from ..model import NEPModel

__all__ = ["PRESETS", "QuickstartError", "Settings", "settings_of"]


class QuickstartError(NepCGError, ValueError):
    """Settings or atoms of which no coarse-grained model can be made."""


@dataclass(frozen=True)
class Settings:
    """Settings of :func:`~ase_nepcg.quickstart.quickstart`; all lengths are those of each box or configuration."""

    #: at 300 K the hydrogen bonds of the embedded model rearrange too slowly for runs of minutes
    temperature_K: float = 330.0
    #: g/cm^3, of the boxes; the training frames lie between the lowest and the highest
    densities: tuple = (1.0, 1.05, 1.1, 1.2)
    #: molecules along an edge of the embedded water boxes
    edge: int = 4
    seed: int = 1
    # atoms
    timestep_fs: float = 0.5
    friction_per_fs: float = 0.01
    #: before equilibration, at a temperature that lets a lattice melt; 0: none
    melt_ps: float = 4.0
    melt_K: float = 450.0
    equilibration_ps: float = 8.0
    time_ps: float = 40.0
    record_fs: float = 50.0
    # mean forces
    #: configurations per density, to train with and to test with. They come from a run in equilibrium, so that the
    #: atoms need no time to get used to held beads, and short averages are right on average: many are better than long
    frames: int = 40
    test_frames: int = 4
    frame_ps: float = 0.3
    frame_equilibration_ps: float = 0.0
    # model
    #: with an angular cutoff of 4 Å the pressure of the beads is 0.05 to 0.1 GPa above that of the atoms
    cutoff: tuple = (6.0, 5.0)
    neurons: int = 10
    n_max: tuple = (4, 4)
    #: more do not lower the errors; with 2000 and a regularisation of 1e-6 beads fell into holes of the fit within
    #: hundreds of ps
    steps: int = 800
    lambda_v: float = 1.0
    #: of both norms of the parameters
    regularisation: float = 1e-5
    # beads
    bead_timestep_fs: float = 4.0
    bead_friction_per_fs: float = 0.005
    bead_equilibration_ps: float = 10.0
    bead_time_ps: float = 200.0
    #: seconds for each timing
    timing_s: float = 3.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "densities":
                object.__setattr__(self, "densities", _densities(value))
            elif field.name in ("cutoff", "n_max"):
                try:
                    value = tuple(value)
                except TypeError:
                    raise QuickstartError(f"{field.name}: expected two numbers, got {value!r}") from None
                if len(value) != 2 or not all(is_number(number) for number in value):
                    raise QuickstartError(f"{field.name}: expected two numbers, got {value!r}")
                object.__setattr__(self, field.name, value)
            elif field.name in _COUNTS:
                least = _COUNTS[field.name]
                if not is_integer(value) or not least <= value < 2**31:
                    raise QuickstartError(f"{field.name}: expected an integer of at least {least}, got {value!r}")
            else:
                least = 0.0 if field.name in _FROM_ZERO else math.nextafter(0.0, 1.0)
                if not is_number(value) or not least <= value < math.inf:
                    kind = "a positive number" if least else "a number from 0"
                    raise QuickstartError(f"{field.name}: expected {kind}, got {value!r}")
        if self.cutoff[1] > self.cutoff[0]:
            raise QuickstartError(f"cutoff: expected the angular one at most the radial one, got {self.cutoff}")
        try:
            NEPModel.zeros(["Ar"], cutoff=self.cutoff, neurons=self.neurons, n_max=self.n_max)
        except ModelError as error:
            raise QuickstartError(f"no model can be made of cutoff, neurons and n_max: {error}") from None
        for name in ("time_ps", "frame_ps", "bead_time_ps"):
            step = self.bead_timestep_fs if name.startswith("bead") else self.timestep_fs
            if 1000.0 * getattr(self, name) < 64 * step:
                raise QuickstartError(f"{name}: {getattr(self, name):g} ps are fewer than 64 steps of {step:g} fs")
        records = int(1000.0 * self.time_ps / self.timestep_fs + 0.5) // self.record_steps
        if records < 16:
            raise QuickstartError(
                f"record_fs: {self.record_fs:g} fs give {records} records in {self.time_ps:g} ps, expected 16 or more"
            )
        if records < self.frames + self.test_frames:
            raise QuickstartError(
                f"frames: {self.frames} + {self.test_frames} configurations are to be taken from {records} records "
                f"(one every {self.record_fs:g} fs of {self.time_ps:g} ps)"
            )

    @property
    def record_steps(self) -> int:
        """Steps between records of the all-atom runs."""
        return max(1, round(self.record_fs / self.timestep_fs))

    def as_dict(self) -> dict:
        return asdict(self)


_COUNTS = {"edge": 2, "seed": 0, "frames": 1, "test_frames": 1, "neurons": 1, "steps": 1}
_FROM_ZERO = (
    "melt_ps",
    "equilibration_ps",
    "frame_equilibration_ps",
    "bead_equilibration_ps",
    "lambda_v",
    "regularisation",
)

#: name -> what differs from the defaults of :class:`Settings`
PRESETS = {
    "full": {},
    "quick": {
        "densities": (1.0, 1.15),
        "edge": 3,
        "melt_ps": 1.0,
        "equilibration_ps": 1.0,
        "time_ps": 4.0,
        "record_fs": 25.0,
        "frames": 8,
        "test_frames": 2,
        "frame_ps": 0.1,
        "steps": 60,
        "bead_equilibration_ps": 2.0,
        "bead_time_ps": 20.0,
        "timing_s": 0.3,
    },
    "long": {
        "densities": (0.98, 1.05, 1.12, 1.19, 1.26),
        "equilibration_ps": 15.0,
        "time_ps": 80.0,
        "frames": 60,
        # as good as 1e-5; the embedded water_cg.txt is the model that this gave
        "regularisation": 1e-4,
        "bead_time_ps": 500.0,
    },
}


def _densities(value) -> tuple:
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        raise QuickstartError(f"densities: expected numbers in g/cm^3, got {value!r}") from None
    if not numbers or not all(0 < number < math.inf for number in numbers) or len(set(numbers)) < len(numbers):
        raise QuickstartError(f"densities: expected different positive numbers in g/cm^3, got {value!r}")
    return tuple(sorted(numbers))


def settings_of(preset: str = "full", **given) -> Settings:
    """The settings of a preset ("full", "quick", "long") with those ``given`` instead of its own."""
    if preset not in PRESETS:
        raise QuickstartError(f"preset: unknown name {preset!r}; {closest(str(preset), PRESETS)}")
    names = [field.name for field in fields(Settings)]
    for name in given:
        if name not in names:
            raise TypeError(f"quickstart has no setting {name!r}; {closest(name, names)}")
    return replace(Settings(), **(PRESETS[preset] | given))
