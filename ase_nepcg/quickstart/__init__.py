"""From atoms to a coarse-grained model and back to what it was to reproduce, in one call and one report.

>>> result = quickstart("water")  # or quickstart("mine", atoms=box, calculator=calc, mapping=mapping)
>>> result["beads"]["corrected"]["pressure_GPa"]

Boxes at several densities are run with atoms; the beads of some configurations are held and the forces on them
averaged; a NEP is trained on these averages, and another one on virials without their correction; the beads run at the
same densities, and structure, pressure and speed are compared. What a stage leaves is kept in the folder: a rerun, also
after a kill, goes on, with the numbers of a run that was not interrupted (timings excepted).
"""

from __future__ import annotations

from .journey import quickstart
from .settings import PRESETS, QuickstartError, Settings

__all__ = ["PRESETS", "QuickstartError", "Settings", "quickstart"]
