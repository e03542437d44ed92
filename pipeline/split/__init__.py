"""Split any model of mlx-lm into stages that hold only their own parameters."""

from __future__ import annotations

from pipeline.split.batching import can_pad
from pipeline.split.blueprint import Blueprint, LayerCall, Placement
from pipeline.split.encoding import ActivationFormat, pack, unpack
from pipeline.split.forking import cut_limit
from pipeline.split.message import Message, TensorSpec, flatten, unflatten
from pipeline.split.probe import probe
from pipeline.split.stage import Stage

__all__ = [
    "ActivationFormat",
    "Blueprint",
    "LayerCall",
    "Message",
    "Placement",
    "Stage",
    "TensorSpec",
    "can_pad",
    "cut_limit",
    "flatten",
    "pack",
    "probe",
    "unflatten",
    "unpack",
]
