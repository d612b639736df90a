"""Mean forces by replica exchange: for what surrounds held beads like a glass.

Molecules that cannot move can hardly turn either. In water at 300 K with every centre of mass held, hydrogen bonds keep
the network they had at the start for much longer than tens of picoseconds: an average over such a run belongs to that
network, and its error bar cannot know of the others. Copies of the configuration at higher temperatures do change
networks and hand them down: copies i and j at temperatures T_i and T_j exchange what they have with probability

    min(1, exp((1/kT_i - 1/kT_j) (U_i - U_j)))

and velocities are scaled by the square root of the ratio of the temperatures, which leaves every copy in its canonical
ensemble (Sugita and Okamoto, Chem. Phys. Lett. 314, 141 (1999)).

This is no magic either: with 64 water molecules held at 0.5 GPa and 7 copies from 300 to 500 K, forces after 40 ps from
the configuration of a free run and after 15 + 20 ps from one that was heated to 700 K still differed by 0.077 eV/Å
(rms), ten times their error bars. Compare runs from different starts before trusting any of them.
"""

from __future__ import annotations

import math
import secrets
import warnings
from dataclasses import replace

import numpy as np

from ..errors import is_integer
from .sampler import Sampler, SamplingError, Settings, _number, _StepError

__all__ = ["sample_tempered"]


def sample_tempered(
    atoms, mapping, *, temperature_K, highest_K, replicas, time_ps, exchange_ps=0.1, equilibration_ps=5.0,
    timestep_fs=0.5, friction_per_fs=0.01, interval=1, seed=None, progress=True,
):  # fmt: skip
    """Average the forces on the beads of ``atoms`` over what replica exchange finds.

    ``replicas`` copies run at temperatures from ``temperature_K`` to ``highest_K`` in equal ratios (ratios of 1.08 suit
    64 water molecules: the energies of neighbours must overlap), for ``time_ps`` each after ``equilibration_ps``, and
    neighbours try to exchange every ``exchange_ps``. The other arguments are those of
    :func:`~ase_nepcg.sample_mean_force`, and so are the errors raised and the warnings. Returns its
    :class:`~ase_nepcg.MeanForce`, of the coldest copy, and the fraction of accepted exchanges (replicas - 1,).

    Error bars come from the sequence of samples of the coldest copy, exchanges included. Costs ``replicas`` times as
    much as a plain run of the same length. No checkpoints.
    """
    from tqdm import tqdm

    from .core import collect

    if not is_integer(replicas) or replicas < 2:
        raise SamplingError(f"replicas: expected an integer from 2, got {replicas!r}")
    if not _number(exchange_ps) or not exchange_ps > 0:
        raise SamplingError(f"exchange_ps: expected a positive number, got {exchange_ps!r}")
    settings = Settings(
        temperature_K=temperature_K, timestep_fs=timestep_fs, friction_per_fs=friction_per_fs,
        equilibration_ps=equilibration_ps, interval=interval, seed=seed,
    )  # fmt: skip
    if not _number(highest_K) or not highest_K > temperature_K:
        raise SamplingError(f"expected highest_K > temperature_K, got {highest_K!r} and {temperature_K!r}")
    samples = settings.samples(time_ps, None)
    if seed is None:
        seed = secrets.randbits(31)
    # every copy has noise of its own
    seeds = np.random.SeedSequence(seed, spawn_key=(5,)).generate_state(replicas, np.uint64) >> np.uint64(1)
    seeds[0] = seed
    samplers = [
        Sampler(atoms, mapping, replace(settings, temperature_K=float(kelvin), seed=int(own)))
        for kelvin, own in zip(np.geomspace(temperature_K, highest_K, replicas), seeds, strict=True)
    ]
    coldest = samplers[0]
    equilibration = settings.steps(equilibration_ps)
    last = equilibration + samples * settings.interval
    every = max(1, settings.steps(exchange_ps))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))
    tried, accepted = np.zeros(replicas - 1), np.zeros(replicas - 1)
    silent = tqdm(disable=True)
    turn = 0
    with tqdm(total=last, unit="step", desc="replica exchange", disable=None if progress else True) as bar:
        if not equilibration:
            _start_production(samplers)
        while coldest.held.step < last:
            here = coldest.held.step
            target = min(here + every, equilibration if here < equilibration else last)
            for sampler in samplers:
                try:
                    sampler._advance(target, silent)
                except _StepError as error:
                    sampler._fail(error.__cause__)
                if settings.interval > 1:
                    # the energy of the last sample may be one of the past
                    sampler.held.y[-2] = sampler._begin() - sampler.held.reference
            bar.update(target - here)
            for i in range(turn % 2, replicas - 1, 2):
                tried[i] += 1
                accepted[i] += _exchange(samplers[i], samplers[i + 1], rng)
            turn += 1
            if target == equilibration:
                _start_production(samplers)
    result = collect(coldest)
    for text in result.warnings:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return result, accepted / np.maximum(tried, 1)


def _start_production(samplers) -> None:
    for sampler in samplers:
        sampler._start_production()


def _exchange(cold: Sampler, warm: Sampler, rng) -> bool:
    """Try to exchange the states of two copies."""
    a, b = cold.held, warm.held
    energies = [run.y[-2] + run.reference for run in (a, b)]
    if rng.random() >= math.exp(min(0.0, (1 / a.kT - 1 / b.kT) * (energies[0] - energies[1]))):
        return False
    factor = math.sqrt(a.kT / b.kT)
    a.v[:], b.v[:] = b.v * factor, a.v / factor
    for name in ("x", "f", "virial"):
        one, other = getattr(a, name), getattr(b, name)
        one[:], other[:] = other.copy(), one.copy()
    for run, own, foreign in ((a, 0, 1), (b, 1, 0)):
        run.y[-2] += energies[foreign] - energies[own]
    return True
