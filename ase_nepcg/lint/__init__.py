"""Linter: what is wrong with a mapping, a starting configuration, or a dynamics object."""

from .rules import Finding, check_dynamics, lint

__all__ = ["Finding", "check_dynamics", "lint"]
