"""The three ways to lower the loss, with one face: a stage takes steps, knows its best parameters and can be stored.

``stage.advance()`` takes one step and returns whether more make sense; ``z`` (n,) are the parameters to be reported,
``frames`` those the report is about (None: all), ``state()`` is (header, arrays) for a checkpoint.
"""

from __future__ import annotations

import numpy as np

from ..errors import ModelError, NepCGError
from ..hyper import check_number
from .files import batches
from .gradient import LBFGS, Adam
from .objective import Objective
from .snes import Snes

__all__ = ["STAGES", "AdamStage", "LBFGSStage", "SnesStage", "StageError", "initial_parameters"]

# |z| of L1 is rounded within this distance of 0, far below the size of parameters that matter
SMOOTHING = 1e-3
# L-BFGS has converged when the loss fell by less than this fraction in so many steps
_TOLERANCE, _WINDOW = 2e-4, 100
# sites in a minibatch by default
_SITES_PER_BATCH = 4000


class StageError(NepCGError, ValueError):
    """Settings with which an optimiser cannot work."""


def initial_parameters(model, seed: int) -> np.ndarray:
    """Random start (n,) for the gradient: weights of variance 1/(number of inputs), moderate coefficients."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    spread = {"w0": model.n_descriptor**-0.5, "b0": 0.5, "w1": model.neurons**-0.5, "c_radial": 0.3, "c_angular": 0.3}
    z = np.zeros(model.n_parameters)
    for name, part in model.parameter_blocks()[0].items():
        scale = spread.get(name.partition("[")[0], 0.0)
        z[part] = scale * rng.normal(size=part.stop - part.start)
    return z


class LBFGSStage:
    """Full-batch L-BFGS on the loss; ``frozen`` (n,) truth values: parameters that keep their start."""

    name = "lbfgs"
    mu = sigma = frames = None

    def __init__(self, objective: Objective, z, *, seed: int, steps: int, frozen=None, state=None, **_):
        self.step = 0
        self._values = []
        if state is not None:
            header, _ = state
            self.step, self._values = header["step"], list(header["values"])

        def function(z):
            value, gradient = objective.loss_and_gradient(z, SMOOTHING)
            return value, _without(gradient, frozen)

        self._search = LBFGS(function, z, state=None if state is None else state[1])
        self.others = {}

    @property
    def z(self) -> np.ndarray:
        return self._search.z

    def advance(self) -> bool:
        moved = self._search.step()
        self.step += 1
        self._values = [*self._values[-_WINDOW:], self._search.value]
        self.others = {"evaluations": self._search.evaluations}
        slow = len(self._values) > _WINDOW and self._values[0] - self._values[-1] < _TOLERANCE * self._values[-1]
        return moved and not slow

    def state(self):
        return {"step": self.step, "values": self._values}, self._search.state()


class AdamStage:
    """Adam on minibatches of mean squares.

    ``sum_x lambda_x sqrt(<squares_x>)`` has the gradient of ``sum_x lambda_x/(2 R_x) <squares_x>`` with R_x the root
    mean square over all frames; a running average stands in for it, so that the mean over minibatches has no bias.
    """

    name = "adam"
    mu = sigma = frames = None
    KEEP = 0.9

    def __init__(
        self, objective: Objective, z, *, seed: int, steps: int, batch=None, learning_rate=1e-2, frozen=None,
        state=None, **_,
    ):  # fmt: skip
        self._objective, self._seed, self._frozen = objective, seed, frozen
        try:
            learning_rate = check_number("learning_rate", learning_rate)
        except ModelError as error:
            raise StageError(str(error)) from None
        if learning_rate <= 0:
            raise StageError(f"learning_rate: expected a number above 0, got {learning_rate:g}")
        n = len(objective)
        sites = objective.targets.n_sites.mean()
        self._batch = min(n, batch or max(2, round(_SITES_PER_BATCH / sites)))
        if self._batch == 1 < np.count_nonzero(objective.targets.energy_weights) and objective.settings.lambda_e > 0:
            raise StageError(
                "batch: expected at least 2 frames for Adam, got 1: the mean energy error of a batch is taken off, so "
                "that single frames say nothing about energies. Give a larger batch, or lambda_e=0"
            )
        self._per_epoch = -(-n // self._batch)
        settings = {"steps": steps, "warmup": min(self._per_epoch, max(1, steps // 10)), "high": learning_rate}
        self._average = None
        if state is None:
            self._adam = Adam(z, **settings)
        else:
            _, arrays = state
            self._adam = Adam(None, **settings, state=arrays)
            self._average = arrays["average"].copy() if len(arrays["average"]) else None
        self.others = {}

    @property
    def z(self) -> np.ndarray:
        return self._adam.z

    @property
    def step(self) -> int:
        return self._adam.count

    def _frames(self) -> np.ndarray:
        """Batch of this step: every epoch has another order, which depends on seed and epoch only."""
        epoch, number = divmod(self.step, self._per_epoch)
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(3, epoch)))
        return np.sort(np.array_split(rng.permutation(len(self._objective)), self._per_epoch)[number])

    def advance(self) -> bool:
        objective, z = self._objective, self.z
        frames = self._frames()
        if self._average is None:
            energies, _, _ = objective.evaluate(z)
            weights = objective.terms.weights
            self._average = np.square(energies[:3] / np.where(weights > 0, weights, 1.0))
        root = np.sqrt(self._average)
        factors = np.where(root > 0, objective.terms.weights / (2 * np.where(root > 0, root, 1.0)), 0.0)
        squares, gradient = objective.data_gradient(z, frames, factors)
        keep = self.KEEP ** (1 / self._per_epoch)
        self._average = keep * self._average + (1 - keep) * squares
        self.others = {"learning_rate": self._adam.learning_rate}
        self._adam.step(_without(gradient + objective.penalty(z, SMOOTHING)[1], self._frozen))
        return True

    def state(self):
        average = np.zeros(0) if self._average is None else self._average
        return {}, self._adam.state() | {"average": average}


class SnesStage:
    """The published evolution strategy; what is reported is the elite of a generation on its batch."""

    name = "snes"

    def __init__(
        self, objective: Objective, z, *, seed: int, steps: int, batch=None, full_batch=False, population=50,
        sigma0=0.1, mu=None, sigma=None, frozen=None, blind_start=True, state=None, **_,
    ):  # fmt: skip
        self._objective, self._full, self._blind_start = objective, full_batch, blind_start
        targets = objective.given
        energies = np.where(np.isnan(targets.energies), 0.0, targets.energies)
        self._batches = batches(energies, min(batch or len(targets), len(targets)))
        self._n_types = len(targets.species)
        if state is None:
            self._snes = Snes(
                objective.owners, self._n_types, population=population, sigma0=sigma0, seed=seed,
                mu=z if mu is None else mu, sigma=sigma, frozen=frozen,
            )  # fmt: skip
            self.z = self._snes.mu
        else:
            header, arrays = state
            self._snes = Snes.from_state(header, arrays)
            self.z = arrays["elite"]
        self.others = {}

    @property
    def order(self) -> np.ndarray:
        """Frames in the order of the batches."""
        return np.concatenate(self._batches)

    @property
    def step(self) -> int:
        return self._snes.generation

    @property
    def mu(self):
        return self._snes.mu

    @property
    def sigma(self):
        return self._snes.sigma

    @property
    def frames(self):
        """The batch of the last generation, None for all frames."""
        if self._full or len(self._batches) == 1:
            return None
        return self._batches[(self.step - 1) % len(self._batches)]

    def _losses(self, Z: np.ndarray) -> np.ndarray:
        """(P, T + 1): sums of all terms."""
        objective = self._objective
        if self.step == 0 and self._blind_start:
            # the first generation ranks by regularisation only, as the published trainer does
            return objective.regularisation(Z).sum(axis=2)
        if not self._full:
            return objective.losses(Z, self._batches[self.step % len(self._batches)])[0].sum(axis=2)
        # every term is the root of the plain mean of its squares over the batches
        terms = [objective.losses(Z, frames)[0] for frames in self._batches]
        data = np.sqrt(np.mean([t[:, :, :3] ** 2 for t in terms], axis=0))
        return data.sum(axis=2) + terms[0][:, :, 3:].sum(axis=2)

    def advance(self) -> bool:
        Z = self._snes.ask()
        self.z = Z[self._snes.tell(self._losses(Z))].copy()
        self.others = {"sigma": float(np.median(self.sigma))}
        return True

    def state(self):
        header, arrays = self._snes.state()
        return header, arrays | {"elite": self.z}


def _without(gradient: np.ndarray, frozen) -> np.ndarray:
    return gradient if frozen is None else np.where(frozen, 0.0, gradient)


STAGES = {stage.name: stage for stage in (LBFGSStage, AdamStage, SnesStage)}
