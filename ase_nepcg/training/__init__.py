"""Training: frames in, ``nep.txt`` out. Loss, SNES as published, and a gradient that costs about three evaluations."""

from .core import Report, Training, TrainingError, cross_validate, train
from .folder import train_folder
from .loss import LossSettings

__all__ = ["LossSettings", "Report", "Training", "TrainingError", "cross_validate", "train", "train_folder"]
