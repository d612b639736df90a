"""Training frames: extended XYZ files with error bars, and where frames come from other than from mean forces."""

from .core import DatasetError, FrameCalculator, read_dataset, split, summary, validate, write_dataset
from .sources import force_matching_frames, read_dump_cg, replace_temperature

__all__ = [
    "DatasetError",
    "FrameCalculator",
    "force_matching_frames",
    "read_dataset",
    "read_dump_cg",
    "replace_temperature",
    "split",
    "summary",
    "validate",
    "write_dataset",
]
