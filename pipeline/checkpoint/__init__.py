"""Models as files: found, checked, measured, and loaded one stage at a time."""

from pipeline.checkpoint.checkpoint import Checkpoint
from pipeline.checkpoint.progress import Progress

__all__ = ["Checkpoint", "Progress"]
