"""Starting a training from the parameters of another model, which may know more species.

A species brings its network and, together with each other species, its descriptor coefficients. Liang et al.,
"NEP89: universal neuroevolution potential for inorganic and organic materials across 89 elements", arXiv:2504.21286.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import ModelError, NepCGError, validate_array
from ..model import NEPModel

__all__ = ["FineTuneError", "foundation_start", "restrict", "start_from_model"]

_SETTINGS = (
    "version",
    "n_max",
    "basis_size",
    "l_max",
    "many_body",
    "neurons",
    "neurons2",
    "temperature",
)
_DIGITS = 1e-6  # cutoffs in files have few digits


class FineTuneError(NepCGError, ValueError):
    """Models between which parameters cannot be handed over."""


def restrict(model: NEPModel, species) -> NEPModel:
    """``model`` for some of its species, in the order given: the same potential for systems of these alone.

    Raises :class:`FineTuneError` naming the labels that the model lacks.
    """
    species = tuple(species)
    missing = [label for label in species if label not in model.species]
    if missing:
        raise FineTuneError(
            f"expected species of the model to start from ({', '.join(model.species)}), got {', '.join(missing)} too"
        )
    types = [model.species.index(label) for label in species]
    changed = {name: getattr(model, name)[types] for name in ("cutoff_radial", "cutoff_angular")}
    for name in ("c_radial", "c_angular"):
        changed[name] = getattr(model, name)[:, :, types][:, :, :, types]
    if model.version != 3:  # one network for all species
        for name in ("w0", "b0", "w1", "type_bias", "w_hidden2", "b_hidden2"):
            array = getattr(model, name)
            changed[name] = None if array is None else array[types]
    if model.zbl is not None and model.zbl.flexible is not None:
        row = np.empty((model.n_types, model.n_types), int)
        first, second = np.triu_indices(model.n_types)
        row[first, second] = row[second, first] = np.arange(len(first))
        first, second = np.triu_indices(len(types))
        rows = row[np.array(types)[first], np.array(types)[second]]
        changed["zbl"] = replace(model.zbl, flexible=model.zbl.flexible[rows])
    return replace(model, species=species, **changed)


def foundation_start(
    foundation: NEPModel, mu, sigma, model: NEPModel, freeze_descriptor: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations, each (n_parameters,) of ``model``, from those of ``foundation``.

    ``mu``, ``sigma``: of the foundation, as in its ``nep.restart``. The common bias starts at 0 with sigma 0, so does
    the sigma of the descriptor coefficients with ``freeze_descriptor``. The scaler must be the foundation's:
    ``dataclasses.replace(model, q_scaler=foundation.q_scaler)``. Raises :class:`FineTuneError`, naming what differs,
    if the foundation lacks a species of ``model`` or has other hyper-parameters.
    """
    size = (foundation.n_parameters,)
    try:
        mu, sigma = validate_array("mu", mu, size), validate_array("sigma", sigma, size)
    except ModelError as error:
        raise FineTuneError(f"restart of the foundation model: {error}") from None
    if (sigma < 0).any():
        raise FineTuneError(f"restart of the foundation model: sigma is {sigma.min():g}, expected at least 0")
    _check_same(restrict(foundation, model.species), model)
    if not np.allclose(model.q_scaler, foundation.q_scaler, rtol=_DIGITS, atol=0):
        raise FineTuneError(
            "expected the scaler of the foundation model: give dataclasses.replace(model, q_scaler=foundation.q_scaler)"
        )
    mu, sigma = (restrict(foundation.with_parameters(z), model.species).parameters() for z in (mu, sigma))
    blocks, _ = model.parameter_blocks()
    for name in ["bias"] + ["c_radial", "c_angular"] * freeze_descriptor:
        sigma[blocks[name]] = 0.0
    mu[blocks["bias"]] = 0.0
    return mu, sigma


def start_from_model(model_from: NEPModel, model_to: NEPModel) -> np.ndarray:
    """Parameters (n_parameters,) with which ``model_to`` is the same potential as ``model_from``.

    ``model_to`` may have fewer species, in any order, and another scaler: the first layer makes up for it. Raises
    :class:`FineTuneError`, naming what differs.
    """
    source = restrict(model_from, model_to.species)
    _check_same(source, model_to)
    return replace(source, w0=source.w0 * (source.q_scaler / model_to.q_scaler)).parameters()


def _check_same(source: NEPModel, model: NEPModel) -> None:
    """Refuse models of the same species whose parameters mean different things."""
    differences = [
        f"{name} {getattr(source, name)!r} and {getattr(model, name)!r}"
        for name in _SETTINGS
        if getattr(source, name) != getattr(model, name)
    ]
    for name, here, there in zip(
        ("radial cutoff", "angular cutoff"), source.pair_cutoffs(), model.pair_cutoffs(), strict=True
    ):
        wrong = np.argwhere(~np.isclose(here, there, rtol=_DIGITS, atol=0))
        if len(wrong):
            a, b = wrong[0]
            pair = f"{model.species[a]}-{model.species[b]}"
            differences.append(f"{name} of {pair} {here[a, b]:g} and {there[a, b]:g} Å")
    if not _same_repulsion(source.zbl_pairs(), model.zbl_pairs()):
        differences.append(f"zbl {source.zbl!r} and {model.zbl!r}")
    if differences:
        raise FineTuneError(
            "expected the hyper-parameters of the model to start from, got different ones: " + "; ".join(differences)
        )


def _same_repulsion(here, there) -> bool:
    if here is None or there is None:
        return here is there
    return np.allclose(here, there, rtol=_DIGITS, atol=0)
