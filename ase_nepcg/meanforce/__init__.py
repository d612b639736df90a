"""Mean forces on beads that are held still, with error bars: one configuration, or many."""

from .campaign import sample_many
from .core import MeanForce, sample_mean_force
from .sampler import SamplingError, UnreliableError

__all__ = ["MeanForce", "SamplingError", "UnreliableError", "sample_many", "sample_mean_force"]
