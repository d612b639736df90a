"""Registrations that ASE loads on every ``import ase.io``; imports nothing but parts of ASE that are loaded anyway."""

from ase.utils.plugins import ExternalIOFormat

from . import constraints  # noqa: F401 - makes ASE know FixBeads, so that it can read files that contain it

__all__ = ["train_format"]

#: entry point ``nepcg-train`` of the group ``ase.ioformats``; ``ase_nepcg.io`` is imported on first use
train_format = ExternalIOFormat(
    desc="NEP-CG training frames (extended XYZ with bead names)",
    code="+F",
    module="ase_nepcg.io",
    glob="*.nepcg.xyz",
)
