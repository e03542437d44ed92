"""What the configuration says of decisions."""

from __future__ import annotations

from config import Config
from launcher.breaker import BreakerPolicy
from launcher.decide import Policy


def policy_of(config: Config) -> Policy:
    """The policy that the configuration asks for."""
    launcher, coordinator = config.launcher, config.coordinator
    breaker = BreakerPolicy(
        launcher.failures_allowed,
        launcher.hold_initial,
        launcher.hold_max,
        launcher.forgive_after,
    )
    return Policy(
        strategy=coordinator.election_strategy,
        breaker=breaker,
        backoff_initial=launcher.backoff_initial,
        backoff_max=launcher.backoff_max,
        idle_before_change=launcher.idle_before_change,
        rotation_interval=coordinator.rotation_interval,
    )


def configured_leader(config: Config) -> str | None:
    coordinator = config.coordinator
    return coordinator.leader if coordinator.election_strategy == "manual" else None
