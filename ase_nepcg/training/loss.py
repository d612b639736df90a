"""The loss: what SNES ranks by and the gradient descends, and the errors that are reported.

For channel t (frames with a site of type t; t = T: all frames), z the parameters, d the errors per atom::

    L_t = lambda_e R_E + lambda_f R_F + lambda_v R_V + L1_t + L2_t
    R_E^2 = sum_s w^2 we (E/N - E_ref/N - shift)^2 / n_t           shift = sum_s we (E/N - E_ref/N) / sum_s we
    R_F^2 = sum_s w^2 sum_i tw^2 rho_i |dF_i|^2 / (3 sum_s N_s)    rho = 1 or delta/(delta + |F_ref|)
    R_V^2 = sum_s w^2 (sum_diag d^2 + lambda_shear^2 sum_off d^2) / (6 n_t^V)
    L1_t = lambda_1 sum |z| / M_t,  L2_t = lambda_2 sqrt(sum z^2 / M_t),  M_t = N_par/T, M_T = N_par

L1 and L2 of channel t < T are over the parameters of type t, of channel T over all but the common bias. The shift is
that of all frames in every channel. With ``weighting="errorbars"`` the squared errors of forces and virials are
multiplied by ``<sigma^2> / sigma^2`` of the component, where ``<1/sigma^2>^-1 = <sigma^2>`` is the harmonic mean: the
best linear weights for independent errors, with a mean of 1.

Sources: Fan et al., PRB 104, 104309 (2021); Song et al., Nat. Commun. 15, 10208 (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import NepCGError
from .targets import Targets

__all__ = [
    "GPA",
    "LossError",
    "LossSettings",
    "Predictions",
    "Terms",
    "noise_report",
    "regularisation",
    "regularised",
    "rmse",
]

#: eV/Å^3 in GPa, the factor of the trainer's files
GPA = 160.2177
# an error bar is no better than this fraction of the typical one: a site that happened to stand still is no constraint
_LEAST_ERROR = 0.2


class LossError(NepCGError, ValueError):
    """Settings of the loss that make no sense, or do not fit the frames."""


class Predictions(NamedTuple):
    """energies (S,) eV/atom, forces (N, 3) eV/Å, virials (S, 6) eV/atom in the order ``targets.VOIGT``."""

    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray


@dataclass(frozen=True)
class LossSettings:
    """Weights of the terms of the loss. ``lambda_1``, ``lambda_2`` None: ``sqrt(1e-6 N_par / T)``."""

    lambda_e: float = 1.0
    lambda_f: float = 1.0
    lambda_v: float = 0.1
    lambda_1: float | None = None
    lambda_2: float | None = None
    lambda_shear: float = 1.0
    force_delta: float = 0.0  #: eV/Å
    type_weight: tuple[float, ...] | None = None  #: one per species
    weighting: str | None = None  #: None or "errorbars"

    def __post_init__(self):
        for name in ("lambda_e", "lambda_f", "lambda_v", "lambda_1", "lambda_2", "lambda_shear", "force_delta"):
            value = getattr(self, name)
            if value is None and name in ("lambda_1", "lambda_2"):
                continue
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not number or not np.isfinite(value) or value < 0:
                raise LossError(f"{name}: expected a number >= 0, got {value!r}")
        if self.weighting not in (None, "errorbars"):
            raise LossError(f"weighting: expected None or 'errorbars', got {self.weighting!r}")
        if self.type_weight is not None:
            try:
                weights = np.asarray(self.type_weight, float)
            except (TypeError, ValueError):
                weights = np.zeros(0)
            if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
                raise LossError(f"type_weight: expected numbers >= 0, one per species, got {self.type_weight!r}")

    def completed(self, model) -> LossSettings:
        """With numbers for ``lambda_1`` and ``lambda_2``, for a model of this size."""
        default = float(np.sqrt(1e-6 * model.n_parameters / (1 if model.version == 3 else model.n_types)))
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("lambda_1", "lambda_2"):
            values[name] = default if values[name] is None else values[name]
        if self.type_weight is not None and len(self.type_weight) != model.n_types:
            raise LossError(
                f"type_weight: expected {model.n_types} numbers, one per species, got {len(self.type_weight)}"
            )
        return LossSettings(**values)


def _from_errors(errors, what: str) -> np.ndarray:
    """Weights of squared deviations from error bars, with mean 1."""
    known = np.isfinite(errors) & (errors > 0)
    if not known.all():
        raise LossError(
            f"weighting='errorbars': expected positive {what} for every frame that has the quantity; "
            f"{int((~known).sum())} of {known.size} numbers are missing or zero"
        )
    floor = _LEAST_ERROR * np.sqrt(np.mean(errors**2))
    weights = 1 / np.maximum(errors, floor) ** 2
    return weights / weights.mean()


class Terms:
    """The data terms of the loss for one set of frames, with everything that does not depend on the model."""

    def __init__(self, targets: Targets, settings: LossSettings):
        self.targets, self.settings = targets, settings
        n_types = len(targets.species)
        self.n_frames = len(targets)
        # square weights of each force component
        weights = np.ones_like(targets.forces)
        if settings.type_weight is not None:
            weights *= np.asarray(settings.type_weight)[targets.types, None] ** 2
        if settings.force_delta > 0:
            size = np.linalg.norm(targets.forces, axis=1)[:, None]
            weights *= settings.force_delta / (settings.force_delta + size)
        virial_weights = np.tile([1.0] * 3 + [settings.lambda_shear**2] * 3, (self.n_frames, 1))
        virial_weights[~targets.has_virial] = 0.0
        if settings.weighting == "errorbars":
            if targets.force_errors is None:
                raise LossError("weighting='errorbars': the frames have no error bars (array force_errors)")
            weights *= _from_errors(targets.force_errors, "force_errors")
            has = targets.has_virial
            if has.any():
                errors = np.full((self.n_frames, 6), np.nan) if targets.virial_errors is None else targets.virial_errors
                virial_weights[has] *= _from_errors(errors[has], "virial_error")
        self.force_weights = np.ascontiguousarray(weights)
        self.virial_weights = virial_weights
        self.reference_virials = np.where(targets.has_virial[:, None], targets.virials, 0.0)
        self.reference_energies = np.where(np.isnan(targets.energies), 0.0, targets.energies)
        # channel t has the frames with a site of type t; the last one has all
        member = np.zeros((n_types + 1, self.n_frames), bool)
        member[-1] = True
        for frame in range(self.n_frames):
            member[np.unique(targets.types[targets.sites(frame)]), frame] = True
        self.member = member

    def shifts(self, energies: np.ndarray, frames) -> np.ndarray:
        """The mean energy error (P,) of ``energies`` (P, S) over ``frames``: what the common bias will take up."""
        weights = self.targets.energy_weights[frames]
        if not weights.sum():
            return np.zeros(len(energies))
        deviation = energies.take(frames, axis=1) - self.reference_energies[frames]
        return (deviation * weights).sum(axis=1) / weights.sum()

    def squares(self, energies, force_squares, virials, frames=None) -> np.ndarray:
        """Mean squares (P, T + 1, 3) of energy, force and virial errors of each channel.

        ``energies`` (P, S) and ``virials`` (P, S, 6) per atom, ``force_squares`` (P, S) sums with ``force_weights``.
        """
        targets = self.targets
        frames = np.arange(self.n_frames) if frames is None else np.asarray(frames)
        square_weights = targets.weights[frames] ** 2
        shifts = self.shifts(energies, frames)
        # Sums run along rows in memory, hence take and compress; in a matrix product, or along columns, their last bits
        # would depend on the number of rows
        energies, force_squares, virials = (x.take(frames, axis=1) for x in (energies, force_squares, virials))
        deviation = energies - self.reference_energies[frames] - shifts[:, None]
        energy = square_weights * targets.energy_weights[frames] * deviation**2
        force = square_weights * force_squares
        virial = square_weights * (self.virial_weights[frames] * (virials - self.reference_virials[frames]) ** 2).sum(
            axis=2
        )
        member = self.member[:, frames]
        counts = member.sum(axis=1), 3 * member @ targets.n_sites[frames], 6 * member @ targets.has_virial[frames]
        result = np.zeros((len(energies), len(member), 3))
        for term, (values, count) in enumerate(zip((energy, force, virial), counts, strict=True)):
            for channel, chosen in enumerate(member):
                result[:, channel, term] = values.compress(chosen, axis=1).sum(axis=1) / max(count[channel], 1)
        return result

    @property
    def weights(self) -> np.ndarray:
        """lambda_e, lambda_f, lambda_v."""
        return np.array([self.settings.lambda_e, self.settings.lambda_f, self.settings.lambda_v])

    def residuals(self, predictions_energy, forces, virials, factors, frames):
        """``dL/dE_s`` (S,), ``dL/dF`` (N, 3), ``dL/dW_s`` (S, 6) for ``L = sum_x factors[x] <squares of x>``.

        Energies and virials are per atom as in :meth:`squares`, the derivatives are with respect to totals; those of
        off-diagonal virials are halved, as they act on both halves of the tensor. Zero outside ``frames``.
        """
        targets = self.targets
        frames = np.asarray(frames)
        n, square_weights = targets.n_sites[frames], targets.weights[frames] ** 2
        a, eta = np.zeros(self.n_frames), np.zeros((self.n_frames, 6))
        deviation = predictions_energy[frames] - self.reference_energies[frames]
        energy_weights = targets.energy_weights[frames]
        if energy_weights.sum():
            deviation = deviation - (deviation @ energy_weights) / energy_weights.sum()
            slope = 2 * factors[0] / len(frames) * square_weights * energy_weights * deviation
            # the shift moves with every energy
            a[frames] = (slope - energy_weights * slope.sum() / energy_weights.sum()) / n
        n_virial = int(targets.has_virial[frames].sum())
        if n_virial:
            slope = self.virial_weights[frames] * (virials[frames] - self.reference_virials[frames])
            eta[frames] = 2 * factors[2] / (6 * n_virial) * (square_weights / n)[:, None] * slope
            eta[:, 3:] *= 0.5
        per_site = np.zeros(self.n_frames)
        per_site[frames] = 2 * factors[1] / (3 * n.sum()) * square_weights
        site_factor = np.repeat(per_site, targets.n_sites)
        return a, (site_factor[:, None] * self.force_weights) * (forces - targets.forces), eta


def regularised(owners: np.ndarray, n_types: int) -> np.ndarray:
    """Parameters (n,) bool in L1 and L2 of channel T: all but the common bias; ``owners`` as in
    ``NEPModel.parameter_blocks``."""
    chosen = np.ones(len(owners), bool)
    # last of what all types share: the network of version 3 stands before it
    chosen[np.flatnonzero(owners == n_types)[-1]] = False
    return chosen


def regularisation(z: np.ndarray, owners: np.ndarray, n_types: int, lambda_1: float, lambda_2: float) -> np.ndarray:
    """L1 and L2 (P, T + 1, 2) of parameter vectors ``z`` (P, n); ``owners`` as in ``NEPModel.parameter_blocks``.

    The network of a version 3 model, which is shared by all types, is regularised in channel T.
    """
    n = z.shape[1]
    owned = [owners == t for t in range(n_types)] + [regularised(owners, n_types)]
    counts = np.append(np.full(n_types, n / n_types), n)
    result = np.zeros((len(z), n_types + 1, 2))
    for t in range(n_types + 1):
        mine = z.compress(owned[t], axis=1)
        result[:, t, 0] = lambda_1 * np.abs(mine).sum(axis=1) / counts[t]
        result[:, t, 1] = lambda_2 * np.sqrt((mine**2).sum(axis=1) / counts[t])
    return result


def rmse(targets: Targets, predictions: Predictions, shift: float | None = None) -> dict:
    """Unweighted root mean square errors: energy and virial (eV/atom), force (eV/Å, per component), stress (GPa).

    ``shift`` (eV/atom) is taken from the energies first, None: nothing. Energy weights count, as in ``loss.out``.
    Terms without data are 0.
    """
    has = targets.has_virial
    energy = 0.0
    if targets.energy_weights.any():
        deviation = np.where(targets.energy_weights > 0, predictions.energies - targets.energies, 0.0) - (shift or 0.0)
        energy = np.sqrt(np.mean(targets.energy_weights * deviation**2))
    virial = stress = 0.0
    if has.any():
        error = (predictions.virials - targets.virials)[has]
        virial = np.sqrt(np.mean(error**2))
        stress = np.sqrt(np.mean((error * (targets.n_sites / targets.volumes)[has, None]) ** 2)) * GPA
    force = np.sqrt(np.mean((predictions.forces - targets.forces) ** 2))
    return {"energy": float(energy), "force": float(force), "virial": float(virial), "stress": float(stress)}


def noise_report(targets: Targets, predictions: Predictions) -> dict:
    """What of the errors is noise of the data: rms error bars and reduced chi^2, for forces and virials.

    ``force_noise`` (eV/Å), ``force_chi2``, ``virial_noise`` (eV/atom), ``stress_noise`` (GPa), ``virial_chi2``; only
    those for which there are error bars. chi^2 = mean((prediction - data)^2 / sigma^2): 1 if the model is as good as
    the data can tell.
    """
    report = {}
    sigma = targets.force_errors
    if sigma is not None:
        known = np.isfinite(sigma) & (sigma > 0)
        if known.any():
            error = (predictions.forces - targets.forces)[known]
            report["force_noise"] = float(np.sqrt(np.mean(sigma[known] ** 2)))
            report["force_chi2"] = float(np.mean((error / sigma[known]) ** 2))
    sigma = targets.virial_errors
    if sigma is not None:
        known = np.isfinite(sigma) & (sigma > 0) & targets.has_virial[:, None]
        if known.any():
            error = (predictions.virials - targets.virials)[known]
            density = np.broadcast_to((targets.n_sites / targets.volumes)[:, None], sigma.shape)[known]
            report["virial_noise"] = float(np.sqrt(np.mean(sigma[known] ** 2)))
            report["stress_noise"] = float(np.sqrt(np.mean((sigma[known] * density) ** 2)) * GPA)
            report["virial_chi2"] = float(np.mean((error / sigma[known]) ** 2))
    return report
