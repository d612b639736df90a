"""The loss of parameter vectors on a data set, and its gradient, from compiled kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import ModelError
from ..potential.simd import aligned_empty
from ..potential.threads import default_threads, run_chunks
from .geometry import Geometry
from .kernels.evaluate import build_descriptors, build_evaluate
from .kernels.gradient import build_gradient
from .kernels.layout import Packing
from .loss import LossSettings, Predictions, Terms, regularisation, regularised
from .predict import predict
from .targets import TargetError, Targets

__all__ = ["Objective", "ScalerError", "descriptor_scaler"]

# the network input of the temperature is T / 1000 K
TEMPERATURE_SCALE = 0.001
# parameter vectors that are applied to the basis of a few sites while it is in the cache
_GROUP = 10


class ScalerError(TargetError):
    """A descriptor component that is the same for all sites of the data set cannot be scaled."""


class Objective:
    """Loss of a model with given hyper-parameters on given frames.

    ``model`` (:class:`~ase_nepcg.NEPModel`) gives hyper-parameters, descriptor scaler and ZBL; its own parameters do
    not matter. ``threads`` None: all cores this process may use; results do not depend on it. ``cache_GB``: see
    :class:`~ase_nepcg.training.geometry.Geometry`. ``geometry``: that of another objective with the same frames and
    cutoffs, to be shared. ``device``: "cuda" computes losses, predictions and gradients there, in mixed precision.
    """

    def __init__(
        self,
        model,
        targets: Targets,
        settings: LossSettings | None = None,
        *,
        threads: int | None = None,
        cache_GB: float = 3.0,
        geometry: Geometry | None = None,
        device: str = "cpu",
    ):
        if model.neurons2:
            raise ModelError("neurons: models with two hidden layers can be used, not trained")
        if model.temperature and targets.temperatures is None:
            raise TargetError("the model has a temperature input, but the frames were taken without temperatures")
        self.model = model
        self.given = targets
        self.threads = threads or default_threads()
        self.settings = (settings or LossSettings()).completed(model)
        self.packing = Packing(model)
        layout = self.packing.layout
        if geometry is not None and geometry.layout != layout:
            raise ValueError("geometry: expected that of a model of this shape")
        self.geometry = geometry or Geometry(model, targets, layout, threads=self.threads, cache_GB=cache_GB)
        self.owners = model.parameter_blocks()[1]
        self.regularised = regularised(self.owners, model.n_types)
        self.fixed = zbl_predictions(model, targets)
        # what is left for the network to explain
        self.targets = targets if self.fixed is None else _without(targets, self.fixed)
        self.terms = Terms(self.targets, self.settings)
        # weights of small forces are by the true forces
        if self.fixed is not None and self.settings.force_delta > 0:
            self.terms.force_weights = Terms(targets, self.settings).force_weights
        self._evaluate, self._gradient = build_evaluate(layout), build_gradient(layout)
        self._temperatures = np.zeros(len(targets)) if targets.temperatures is None else targets.temperatures
        self._work, self._room = {}, -1
        self._no_forces = np.zeros((0, 3))
        self._population = None
        if device == "cuda":
            from ase_nepcg_cuda import Population

            self._population = Population(model, targets, self.terms.force_weights)

    def __len__(self) -> int:
        return len(self.targets)

    def _chosen(self, frames) -> np.ndarray:
        """Numbers of the frames ``frames`` (integers, or a mask; None: all)."""
        return np.arange(len(self)) if frames is None else np.arange(len(self))[frames]

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def _run(self, Z: np.ndarray, frames, with_forces: bool):
        """Energies (P, S) and virials (P, S, 6) per atom, sums of weighted squared force errors (P, S), forces or
        None; of frames that were not asked for nothing is known."""
        p, s = len(Z), len(self.targets)
        n = self.targets.n_sites
        if self._population is not None:
            energies, errors, virials, forces = self._population(Z, frames, with_forces)
            return energies / n, errors, virials / n[:, None], forces
        g = self.geometry
        weights = self._packed(Z)
        group = 1 if p == 1 else _GROUP
        largest = int(self.targets.n_sites[frames].max())
        # large frames first: the last item then is a short one
        order = np.asarray(frames)[np.argsort(-self.targets.n_sites[frames], kind="stable")]
        items = np.array([(f, z, min(z + group, p)) for f in order for z in range(0, p, group)], np.int64)
        work, place = self._workspace(group * largest)
        energies, virials, errors = np.zeros((p, s)), np.zeros((p, s, 6)), np.zeros((p, s))
        forces = np.zeros_like(self.targets.forces) if with_forces else self._no_forces
        run_chunks(
            self._evaluate,
            (
                *(items, g.n_types, g.first, *g.arrays, self._temperatures, weights, self.packing.stride),
                *(self.packing.at, self.targets.forces, self.terms.force_weights, with_forces, work, place),
                *(energies, virials, errors, forces),
            ),
            min(self.threads, len(items)),
        )
        return energies / n, errors, virials / n[:, None], forces if with_forces else None

    def _packed(self, Z: np.ndarray) -> np.ndarray:
        weights = self._work.get(("weights", len(Z)))
        if weights is None:
            weights = aligned_empty((len(Z), self.packing.size))
            weights[:] = 0.0
            self._work["weights", len(Z)] = weights
        self.packing.pack(Z, weights)
        return weights

    def _workspace(self, sites: int):
        """Memory for the threads, with room for forces on at least ``sites`` sites."""
        if sites > self._room:
            self._work["threads"], self._room = self.geometry.workspace(self.threads, sites), sites
        return self._work["threads"]

    def predict(self, z: np.ndarray, frames=None) -> Predictions:
        """What the model with parameters ``z`` (n,) says about the frames (None: all), ZBL included."""
        frames = self._chosen(frames)
        energies, _, virials, forces = self._run(z[None], frames, True)
        return self._complete(Predictions(energies[0], forces, virials[0]))

    def evaluate(self, z: np.ndarray, frames=None):
        """Terms (5,) of the loss of all ``frames`` (None: all) as in :meth:`losses`, the shift (eV/atom), and the
        predictions."""
        frames = self._chosen(frames)
        energies, errors, virials, forces = self._run(z[None], frames, True)
        squares = self.terms.squares(energies, errors, virials, frames)[0, -1]
        terms = np.concatenate([np.sqrt(squares) * self.terms.weights, self.regularisation(z[None])[0, -1]])
        shift = float(self.terms.shifts(energies, frames)[0])
        return terms, shift, self._complete(Predictions(energies[0], forces, virials[0]))

    def _complete(self, result: Predictions) -> Predictions:
        if self.fixed is None:
            return result
        return Predictions(*(a + b for a, b in zip(result, self.fixed, strict=True)))

    def losses(self, Z: np.ndarray, frames=None) -> tuple[np.ndarray, np.ndarray]:
        """Terms (P, T + 1, 5) of the loss of parameter vectors ``Z`` (P, n) in every channel: lambda_e R_E,
        lambda_f R_F, lambda_v R_V, L1, L2; their sum is the loss. Also the shifts (P,) in eV/atom."""
        frames = self._chosen(frames)
        energies, errors, virials, _ = self._run(Z, frames, False)
        squares = self.terms.squares(energies, errors, virials, frames)
        data = np.sqrt(squares) * self.terms.weights
        return np.concatenate([data, self.regularisation(Z)], axis=2), self.terms.shifts(energies, frames)

    def regularisation(self, Z: np.ndarray) -> np.ndarray:
        """L1 and L2 (P, T + 1, 2)."""
        s = self.settings
        return regularisation(Z, self.owners, len(self.targets.species), s.lambda_1, s.lambda_2)

    # ---- gradient -------------------------------------------------------------------------------------------------

    def data_gradient(self, z: np.ndarray, frames=None, factors=None):
        """Mean squares (3,) of energy, force and virial errors (channel of all frames) and the gradient (n,) of the
        data part of the loss.

        ``factors`` None: of ``sum_x lambda_x sqrt(squares_x)``; else of ``sum_x factors[x] squares_x`` (for
        minibatches, whose root mean squares would be biased). A term that is zero has derivative zero.
        """
        frames = self._chosen(frames)
        energies, errors, virials, forces = self._run(z[None], frames, True)
        squares = self.terms.squares(energies, errors, virials, frames)[0, -1]
        if factors is None:
            root = np.sqrt(squares)
            factors = np.where(root > 0, self.terms.weights / (2 * np.where(root > 0, root, 1.0)), 0.0)
        a, move, eta = self.terms.residuals(energies[0], forces, virials[0], factors, frames)
        if self._population is not None:
            return squares, self._population.gradient(z, frames, a, move, eta)
        g = self.geometry
        rows = np.zeros((len(move), 4))
        rows[:, :3] = move
        chunks, sites = g.partition(g.sites_of(frames))
        work, place = self._workspace(int(self.targets.n_sites[frames].max()))
        gradients = self._gradients(len(chunks) - 1)
        run_chunks(
            self._gradient,
            (
                *(
                    chunks,
                    sites,
                    g.n_types,
                    g.frame_of,
                    g.first,
                    *g.arrays,
                    self._temperatures,
                    self._packed(z[None])[0],
                ),
                *(self.packing.stride, self.packing.at, a, rows.ravel(), eta.ravel(), work, place, gradients),
            ),
            min(self.threads, len(chunks) - 1),
        )
        return squares, self.packing.unpack_gradient(gradients.sum(axis=0))

    def _gradients(self, n: int) -> np.ndarray:
        """Memory for the gradients of ``n`` chunks."""
        if len(self._work.get("gradients", ())) < n:
            self._work["gradients"] = aligned_empty((n, self.packing.size))
        return self._work["gradients"][:n]

    def loss_and_gradient(self, z: np.ndarray, smoothing: float = 0.0):
        """Loss of all frames (channel T) and its gradient (n,).

        ``smoothing``: |z| of L1 becomes ``sqrt(z^2 + smoothing^2) - smoothing``, which has no kink at 0.
        """
        squares, gradient = self.data_gradient(z)
        value = float(self.terms.weights @ np.sqrt(squares))
        penalty, slope = self.penalty(z, smoothing)
        return value + penalty, gradient + slope

    def penalty(self, z: np.ndarray, smoothing: float = 0.0):
        """L1 + L2 of channel T and its gradient (n,)."""
        s, n = self.settings, len(z)
        mine = self.regularised
        size = np.sqrt(z**2 + smoothing**2)
        l1 = s.lambda_1 * (size - smoothing)[mine].sum() / n
        l2 = s.lambda_2 * np.sqrt((z[mine] ** 2).sum() / n)
        slope = np.zeros(n)
        slope[mine] = s.lambda_1 / n * np.where(size > 0, z / np.where(size > 0, size, 1.0), 0.0)[mine]
        if l2 > 0:
            slope[mine] += s.lambda_2**2 * z[mine] / (n * l2)
        return l1 + l2, slope


def _without(targets: Targets, fixed: Predictions) -> Targets:
    return replace(
        targets,
        energies=targets.energies - fixed.energies,
        forces=targets.forces - fixed.forces,
        virials=targets.virials - fixed.virials,
    )


def zbl_predictions(model, targets: Targets) -> Predictions | None:
    """What the ZBL repulsion of the model alone says; None for models without."""
    if model.zbl is None:
        return None
    empty = model.with_parameters(np.zeros(model.n_parameters))
    return predict(empty, targets, temperature_K=0.0 if model.temperature else None)


def descriptor_scaler(
    model, targets: Targets, *, initial=1.0, threads: int | None = None, geometry: Geometry | None = None
) -> np.ndarray:
    """``1 / (max - min)`` (D,) of the raw descriptor over all sites, with every coefficient equal to ``initial``.

    Depends on data and hyper-parameters only. The input of the temperature gets 0.001. Raises :class:`ScalerError` for
    components that do not vary.
    """
    packing = Packing(replace(model, q_scaler=np.ones(model.n_descriptor)))
    threads = threads or default_threads()
    if geometry is not None and geometry.layout != packing.layout:
        raise ValueError("geometry: expected that of a model of this shape")
    g = geometry or Geometry(model, targets, packing.layout, threads=threads, cache_GB=0.0)
    weights = aligned_empty(packing.size)
    weights[:] = 0.0
    packing.pack(np.full(model.n_parameters, float(initial)), weights)
    chunks = g.partition(np.arange(len(g.types)))[0]
    work, place = g.workspace(threads, 0)
    low = np.full((len(chunks) - 1, model.n_descriptor), np.inf)
    high = -low
    run_chunks(
        build_descriptors(packing.layout),
        (
            *(chunks, g.n_types, g.types, g.local, g.present, g.cutoffs, g.radial_x, g.radial_begin, g.radial_end),
            *(g.angular_x, g.angular_begin, g.angular_end, g.basis_at, g.basis, weights, packing.stride, packing.at),
            *(work, place, low, high),
        ),
        threads,
    )
    low, high = low.min(axis=0), high.max(axis=0)
    width = high - low
    if model.temperature:
        width[-1] = 1 / TEMPERATURE_SCALE
        high[-1] = low[-1] = 0.0
    flat = ~(width > np.maximum(1e-10 * np.maximum(np.abs(high), np.abs(low)), _rounding_errors(model, high)))
    if flat.any():
        names = descriptor_names(model)
        which = ", ".join(names[i] for i in np.flatnonzero(flat)[:6]) + (" …" if flat.sum() > 6 else "")
        raise ScalerError(
            f"{flat.sum()} of {len(flat)} descriptor components are the same for all sites of the training set "
            f"({which}), so that they cannot be scaled: frames are needed in which surroundings differ (not perfect "
            "crystals only), or a cutoff that reaches neighbours"
        )
    return 1 / width


def _rounding_errors(model, high) -> np.ndarray:
    """How large (D,) a component that vanishes by symmetry may be, from the largest values of all components.

    A component of order p in the sums over neighbours has errors of about 1e-16 times the p-th power of their size.
    """
    radial, angular = model.n_components
    order = np.arange(1, model.l_max + 1)
    squares = 4 * np.pi / (2 * order[:, None] + 1) * high[radial:][: model.l_max * angular].reshape(-1, angular)
    # in a cubic crystal all of these may vanish
    size = max(np.sqrt(squares.max()), 1e-3 * high[:radial].max())
    powers = np.repeat([2] * model.l_max + [len(name) - 1 for name in model.many_body], angular)
    return np.concatenate([np.zeros(radial), 1e-14 * size**powers, [0.0] * model.temperature])


def descriptor_names(model) -> list[str]:
    """Names of the descriptor components in their order."""
    radial, angular = model.n_components
    blocks = [f"l={order}" for order in range(1, model.l_max + 1)] + list(model.many_body)
    names = [f"radial n={n}" for n in range(radial)] + [f"{block} n={n}" for block in blocks for n in range(angular)]
    return names + ["temperature"] * model.temperature
