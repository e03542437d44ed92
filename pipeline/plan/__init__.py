"""Which node holds which layers."""

from pipeline.errors import PlanError
from pipeline.plan.records import (
    LayerRange,
    ModelCosts,
    NodeResources,
    Plan,
    SharedParameters,
    StagePlan,
)
from pipeline.plan.solver import RESERVE_TOKENS, plan

__all__ = [
    "RESERVE_TOKENS",
    "LayerRange",
    "ModelCosts",
    "NodeResources",
    "Plan",
    "PlanError",
    "SharedParameters",
    "StagePlan",
    "plan",
]
