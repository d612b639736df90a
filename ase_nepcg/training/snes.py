"""Separable natural evolution strategy with one ranking per type, as the published trainer of NEP4 models uses it.

Schaul, Glasmachers, Schmidhuber, GECCO 2011 (the strategy); Song et al., Nat. Commun. 15, 10208 (2024) (the type-wise
ranking). Nothing is evaluated here:

>>> search = Snes(owners, n_types=2, seed=1)
>>> z = search.ask()  # (population, n) parameter vectors
>>> elite = search.tell(losses)  # (population, n_types + 1)

n variables, each with a mean μ and a standard deviation σ, and T types. The owner of a variable, 0 … T, says which
column of the losses ranks it: column t < T is the loss of the structures that contain type t, column T that of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import ModelError, NepCGError, validate_array
from ..hyper import check_integer

__all__ = ["Snes", "SnesError"]

_MAX_SIGMA = 1.0
# streams of random numbers that one seed gives
_START, _GENERATION = 0, 1


class SnesError(NepCGError, ValueError):
    """Arrays of a wrong shape, settings out of range, or losses that rank nothing."""


class Snes:
    """State of the search: ``mu`` and ``sigma``, (n,), and ``generation``, the number of updates made so far.

    ``owners``: (n,) integers 0 … ``n_types``, see :meth:`NEPModel.parameter_blocks`. ``mu``: start values, default
    uniform in (-1, 1). ``sigma``: (n,), default ``sigma0`` for every variable. ``frozen``: (n,) truth values, True for
    variables that keep their ``mu``; their sigma is 0. ``seed``: not negative; None takes one from the system.

    The random numbers of a generation depend on ``seed`` and on the number of the generation only (on numpy's stream
    of normal numbers, too, which may change between versions of numpy). Raises :class:`SnesError`.
    """

    def __init__(
        self,
        owners,
        n_types: int,
        *,
        population: int = 50,
        sigma0: float = 0.1,
        seed: int | None = None,
        mu=None,
        sigma=None,
        frozen=None,
    ):
        self.n_types = _integer("n_types", n_types, 1)
        self.population = _integer("population", population, 2)
        self.seed = np.random.SeedSequence().entropy if seed is None else _integer("seed", seed, 0)
        self.generation = 0
        self.owners = np.array(_array("owners", owners, (None,), dtype=None), dtype=np.int64)
        n = len(self.owners)
        if n < self.n_types:
            raise SnesError(f"owners: expected at least one variable per type ({self.n_types}), got {n}")
        if not np.array_equal(self.owners, owners) or not 0 <= self.owners.min() <= self.owners.max() <= self.n_types:
            raise SnesError(
                f"owners: expected integers from 0 to {self.n_types} (shared), got {np.unique(owners)[:10]}"
            )
        if mu is None:
            self.mu = self._generator(_START).uniform(-1.0, 1.0, n)
        else:
            self.mu = np.array(_array("mu", mu, (n,)))
        if sigma is None:
            if not 0 < sigma0 <= _MAX_SIGMA:
                raise SnesError(f"sigma0: expected a number above 0 and up to {_MAX_SIGMA:g}, got {sigma0!r}")
            self.sigma = np.full(n, float(sigma0))
        else:
            self.sigma = np.array(_array("sigma", sigma, (n,)))
            if (self.sigma < 0).any():
                raise SnesError(f"sigma: expected numbers of at least 0, got {self.sigma.min():g}")
        if frozen is not None:
            if np.shape(frozen) != (n,) or np.asarray(frozen).dtype != bool:
                raise SnesError(f"frozen: expected {n} truth values, got {np.asarray(frozen)!r}")
            self.sigma[frozen] = 0.0
        self._steps = np.empty((self.population, n))
        self._drawn = -1

    def __repr__(self):
        return (
            f"Snes({len(self)} variables, {self.n_types} types, population {self.population}, generation "
            f"{self.generation})"
        )

    def __len__(self) -> int:
        """n."""
        return len(self.owners)

    @property
    def utilities(self) -> np.ndarray:
        """(population,) weight of each rank, best first; their sum is 0."""
        ranks = np.arange(1, self.population + 1)
        raw = np.maximum(0.0, math.log(0.5 * self.population + 1) - np.log(ranks))
        return raw / raw.sum() - 1 / self.population

    @property
    def learning_rate(self) -> float:
        """Step size η_σ of log σ, from the number of variables per type; the one of μ is 1."""
        per_type = len(self) // self.n_types
        return (3 + math.log(per_type)) / (5 * math.sqrt(per_type)) / 2

    def ask(self) -> np.ndarray:
        """The individuals of this generation, a new array (population, n); the same ones until :meth:`tell`."""
        individuals = self._draw() * self.sigma
        individuals += self.mu
        return individuals

    def tell(self, losses) -> int:
        """Move μ and σ by the ``losses`` of the individuals, (population, T + 1), and go to the next generation.

        Individuals of equal loss rank in their order, those whose loss is not finite last. Returns the index of the
        best individual of the last column. Raises :class:`SnesError` if a column has no finite loss at all; then the
        state is as before.
        """
        try:
            losses = np.array(losses, dtype=float)
        except (TypeError, ValueError):
            raise SnesError(f"losses: expected numbers, got {losses!r}") from None
        if losses.shape != (self.population, self.n_types + 1):
            raise SnesError(
                f"losses: expected one row per individual and one column per type and one for all, shape "
                f"({self.population}, {self.n_types + 1}), got {losses.shape}"
            )
        losses[~np.isfinite(losses)] = np.nan  # sorted to the end
        useless = np.isnan(losses).all(axis=0)
        if useless.any():
            raise SnesError(
                f"losses: expected finite numbers, but column {int(np.argmax(useless))} (of 0 to {self.n_types}) has "
                f"none in generation {self.generation}"
            )
        order = np.argsort(losses, axis=0, kind="stable")
        weights = np.empty_like(losses)
        np.put_along_axis(weights, order, self.utilities[:, None], axis=0)

        steps = self._draw()
        towards, wider = np.zeros(len(self)), np.zeros(len(self))
        # one individual at a time: everything stays in the processor's cache
        for weight, step in zip(weights, steps, strict=True):
            weighted = weight[self.owners]
            wider += weighted * (step * step - 1.0)
            weighted *= step
            towards += weighted
        # new arrays: whoever holds the old ones keeps them
        self.mu = self.mu + self.sigma * towards
        self.sigma = np.minimum(_MAX_SIGMA, self.sigma * np.exp(self.learning_rate * wider))
        self.generation += 1
        return int(order[0, -1])

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))

    def _draw(self) -> np.ndarray:
        """Standard normal numbers of this generation, (population, n)."""
        if self._drawn != self.generation:
            self._generator(_GENERATION, self.generation).standard_normal(out=self._steps)
            self._drawn = self.generation
        return self._steps

    # ---- resume ---------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict, dict]:
        """All that :meth:`from_state` needs: a dict of JSON types and a dict of arrays, with names of their own."""
        names = ("n_types", "population", "seed", "generation")
        return {"snes": {name: getattr(self, name) for name in names}}, {
            "snes_owners": self.owners.copy(),
            "snes_mu": self.mu.copy(),
            "snes_sigma": self.sigma.copy(),
        }

    @classmethod
    def from_state(cls, header: Mapping, arrays: Mapping) -> Snes:
        """The search that :meth:`state` described; it goes on with the same bits. Other entries are ignored."""
        try:
            settings = dict(header["snes"])
            generation = settings.pop("generation")
            owners, mu, sigma = (arrays[f"snes_{name}"] for name in ("owners", "mu", "sigma"))
            search = cls(owners, settings.pop("n_types"), mu=mu, sigma=sigma, **settings)
        except (KeyError, TypeError) as error:
            raise SnesError(f"expected what Snes.state() returned, but {error}") from None
        search.generation = _integer("generation", generation, 0)
        return search


def _integer(name: str, value, low: int) -> int:
    try:
        return check_integer(name, value, low, 2**128)
    except ModelError as error:
        raise SnesError(str(error)) from None


def _array(name: str, value, shape: tuple, dtype=float) -> np.ndarray:
    try:
        return validate_array(name, value, shape, dtype)
    except ModelError as error:
        raise SnesError(str(error)) from None
