"""The launcher: how soon it starts again, whom it keeps out, and when it changes a cluster that works."""

from __future__ import annotations

from pydantic import Field, model_validator

from config.errors import InvalidSetting
from config.section import Section
from config.values import Auto, Count, Flag, Name, Seconds, Text

LOGS_OFF = "none"  # a plain off is a boolean in YAML


class LauncherConfig(Section):
    supervised: Flag = Field(
        default=False,
        description="Set by the launcher for the ranks that it starts: it listens on api_gateway.port "
        "itself, and speaks to rank 0 on the inference port of that node.",
    )
    nodes: tuple[Name, ...] = Field(
        default=(), description="Set by the launcher: all nodes that it may start, running or not."
    )
    probe_interval: Seconds = Field(
        default=0.5, description="Seconds between two looks of the launcher at rank 0."
    )
    start_timeout: Seconds = Field(
        default=300.0,
        description="Seconds after which a start is given up in which no rank has come any further; one that "
        "fetches or loads a model gets on with every part of it.",
    )
    backoff_initial: Seconds = Field(
        default=0.5,
        description="Seconds before the second start in a row; doubles with each one that fails.",
    )
    backoff_max: Seconds = Field(default=30.0, description="Longest wait between two starts.")
    failures_allowed: Count = Field(
        default=1, description="Failures of a node in a row after which it is not kept out yet."
    )
    hold_initial: Seconds = Field(
        default=20.0,
        description="Seconds that a node is kept out when it fails once more; doubles with each failure.",
    )
    hold_max: Seconds = Field(default=600.0, description="Longest time that a node is kept out.")
    forgive_after: Seconds = Field(
        default=600.0, description="Seconds without a failure after which a node has a clean slate."
    )
    idle_before_change: Seconds = Field(
        default=5.0,
        description="Seconds without any request before a node is taken in again or the leader rotates.",
    )
    drain_timeout: Seconds = Field(
        default=60.0,
        description="Seconds that running requests get to end when the model is switched.",
    )
    standby: Flag = Field(
        default=True,
        description="Whether the next ranks are started beside those that serve, and wait until they are "
        "needed: it saves most of the time of a launch after a failure, and takes some 250 MB on each node. "
        "Only with the ring backend.",
    )
    standby_after: Seconds = Field(
        default=8.0,
        description="Seconds that a launch serves before the ranks of the next one are started.",
    )
    log_folder: Auto[Text] = Field(
        default=None,
        description="Folder for the log of all ranks, in files that are rotated; none: none; auto: where "
        "the platform keeps logs.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> LauncherConfig:
        for least, most in (("backoff_initial", "backoff_max"), ("hold_initial", "hold_max")):
            if getattr(self, most) < getattr(self, least):
                reason = f"should not be less than {least}, {getattr(self, least)}"
                raise InvalidSetting((most,), reason)
        return self
