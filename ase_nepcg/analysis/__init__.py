"""Properties of trajectories and models, each with error bars.

>>> from ase_nepcg import analysis
>>> result = analysis.rdf("run.traj", r_max=10.0)
>>> result.r, result.g, result.g_error

Functions take trajectories of any kind (:func:`~ase_nepcg.analysis.frames.read_frames`); what the observers of
:mod:`ase_nepcg.md` accumulated during a run has the same results. All names are loaded on first use.
"""

from importlib import import_module

# public name -> module that owns it; no module is called like a function, which its import would replace
_OWNERS = {
    "AnalysisError": "frames",
    "adf": "angles",
    "coordination": "angles",
    "diffusion": "displacement",
    "elastic_constants": "elasticity",
    "elastic_fluctuations": "fluctuations",
    "eos": "state_equation",
    "finite_size_correction": "displacement",
    "green_kubo": "heat",
    "hnemd": "heat",
    "observe": "frames",
    "rdf": "radial",
    "read_frames": "frames",
    "spectral_conductivity": "spectrum",
    "speed_up": "displacement",
    "stress_strain": "deformation",
    "thermal_expansion": "expansion",
    "vacf": "displacement",
    "vdos": "vibrations",
}

__all__ = sorted(_OWNERS)


def __getattr__(name):
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_OWNERS[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
