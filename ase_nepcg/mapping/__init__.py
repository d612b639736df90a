"""Mapping: which atoms make which bead, and what follows from it for centres, forces and virials."""

from .core import BoundMapping, Mapping, MappingError

__all__ = ["BoundMapping", "Mapping", "MappingError"]
