"""Models and objectives shared by the tests of the training.

Every shape of model costs about a minute of compilation where it is not on disk yet, so there are four; cutoffs, the
version and the number of species may change without another one.
"""

from pathlib import Path

import numpy as np
import training_twin as twin
from ase import Atoms

from ase_nepcg import NEPModel
from ase_nepcg.dataset import FrameCalculator
from ase_nepcg.potential.simd import LANES, padded
from ase_nepcg.training.kernels.layout import HEAD
from ase_nepcg.training.loss import LossSettings
from ase_nepcg.training.objective import Objective
from ase_nepcg.training.targets import Targets

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

SHAPES = {
    # next to nothing
    "small": {"species": ("O",), "n_max": (2, 1), "basis_size": (3, 2), "l_max": (3, 1, 0), "neurons": 3},
    # all many-body terms, cutoffs per type
    "full": {
        "species": ("O", "H", "C"),
        "cutoff": {"O": (5.0, 4.0), "H": (4.5, 3.5), "C": (4.0, 3.8)},
        "n_max": (1, 2),
        "basis_size": (4, 3),
        "l_max": (4, 1, 1, 1, 1, 1, 1),
        "neurons": 5,
    },
    # temperature, four sums to the fourth power
    "thermal": {
        "species": ("O", "H"),
        "cutoff": (4.5, 3.5),
        "n_max": (2, 1),
        "basis_size": (2, 3),
        "l_max": (2, 0, 1),
        "neurons": 4,
        "temperature": True,
    },
    # more of everything than a vector holds, and no multiple of it
    "wide": {
        "species": ("O", "H"),
        "cutoff": (4.5, 3.5),
        "n_max": (9, 8),
        "basis_size": (10, 9),
        "l_max": (2, 0),
        "neurons": 11,
    },
}
# the outer radius is beyond the nearest neighbours of the random frames
ZBL = (1.2, 2.6)
# none of the weights and factors is one
WEIGHTED = {
    "lambda_e": 0.7,
    "lambda_f": 1.3,
    "lambda_v": 2.5,
    "lambda_1": 0.03,
    "lambda_2": 0.05,
    "lambda_shear": 0.6,
    "force_delta": 0.4,
}


def make_model(name, *, seed=1, **changes) -> NEPModel:
    """Random parameters of a shape."""
    settings = SHAPES[name] | changes
    return NEPModel.random(settings.pop("species"), seed=seed, **settings)


def make_targets(model, frames) -> Targets:
    return Targets.from_frames(frames, model.species, temperature=model.temperature)


def make_objective(model, frames, settings=None, **keywords) -> Objective:
    return Objective(model, make_targets(model, frames), LossSettings(**settings or {}), **{"threads": 1} | keywords)


def make_frames(model, n=7, *, seed=3, **keywords) -> list[Atoms]:
    """Random frames of all kinds for a model: one or all types, with and without energy, virial, weights."""
    return twin.random_frames(seed, n, model.species, temperatures=model.temperature, **keywords)


def bare_frame(symbols, positions, *, cell=(30.0, 30.0, 30.0), pbc=False, seed=0, **info) -> Atoms:
    """Sites with random forces and nothing else."""
    atoms = Atoms(symbols, positions, cell=cell, pbc=pbc, info=info)
    atoms.calc = FrameCalculator(atoms, forces=np.random.default_rng(seed).normal(size=(len(atoms), 3)))
    return atoms


def odd_frames(species) -> list[Atoms]:
    """Frames whose neighbourhoods are out of the ordinary: thin cells, open directions, lonely sites."""
    first, last = species[0], species[-1]
    rng = np.random.default_rng(5)
    cluster = np.array([[0, 0, 0], [1.7, 0.2, 0], [0.1, 1.9, 0.3], [0.4, -0.2, 2.1], [12.0, 0, 0]])
    slab = rng.uniform(0, 1, (5, 3)) * [5, 5, 0.5] + [[0, 0, 3 * i] for i in range(5)]
    frames = [
        # the last site sees nobody
        bare_frame([first, last, last, first, last], cluster),
        bare_frame([first], [[1.0, 2.0, 3.0]]),
        # periodic images only, dozens of them
        bare_frame([last], [[0.3, 0.2, 0.1]], cell=[2.1, 2.2, 2.3], pbc=True),
        bare_frame(
            [first, last], [[0, 0, 0], [1.3, 0.9, 1.1]], cell=[[2.4, 0, 0], [1.9, 2.2, 0], [0.3, 0.8, 2.6]], pbc=True
        ),
        bare_frame([first, first, last, last, first], slab, cell=[5, 5, 40], pbc=[True, True, False]),
    ]
    for frame in frames:
        frame.info["temperature"] = 310.0
        frame.info["virial"] = np.diag([1.0, 2.0, 3.0])
    return frames


def basis_of(g, i):
    """Sums of radial functions (T, KR), of angular ones (T, KA, LM), and the records of the angular neighbours: r_ij
    (m, 3), f_k and f_k'/r (m, KA), b_lm (m, LM) and its derivatives (m, 3, LM), for the types present."""
    layout, (_, n_local, ends) = g.layout, g.local[i]
    shape = layout.shape
    last = ends + n_local - 1
    blocks = g.radial_end[last] - g.radial_begin[i]
    pairs = g.angular_end[last] - g.angular_begin[i]
    at = g.basis_at[i]
    radial = g.basis[at:][: n_local * shape.k_radial].reshape(n_local, -1)
    at += padded(n_local * shape.k_radial)
    size = n_local * shape.k_angular * layout.lm
    angular = g.basis[at:][:size].reshape(n_local, -1, layout.lm)
    at += size + blocks * shape.k_radial * LANES
    records = g.basis[at:][: pairs * layout.record].reshape(pairs, layout.record)
    f, df = (records[:, HEAD + s * shape.k_angular :][:, : shape.k_angular] for s in (0, 1))
    b = records[:, layout.head :].reshape(pairs, 4, layout.lm)
    assert (angular[..., shape.n_sums :] == 0).all()
    assert (b[..., shape.n_sums :] == 0).all()
    b = b[..., : shape.n_sums]
    return radial, angular[..., : shape.n_sums], (records[:, :3], f, df, b[:, 0], b[:, 1:])
