"""MiniMax M3: attention over selected blocks of keys."""

from __future__ import annotations

from pipeline.split.adapters.base import Adapter


class MiniMaxM3(Adapter):
    """In a batch of unequal lengths the padding shifts the blocks, and other keys are selected."""

    batchable = False
