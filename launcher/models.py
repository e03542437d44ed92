"""Which model is served, which one is wanted, and how far the change has come."""

from __future__ import annotations

from enum import Enum


class SwitchState(Enum):
    """In this order; FAILED leads back to the model that was served before."""

    SERVING = "serving"
    WANTED = "wanted"
    DRAINING = "draining"
    LOADING = "loading"
    FAILED = "failed"


class ModelSwitch:
    """A state machine without clock or process; the supervisor moves it on."""

    def __init__(self, served: str) -> None:
        """`served`: the model that the command line or the configuration names."""
        self.served = self.first = served
        self.wanted = served
        self.state = SwitchState.SERVING
        self.reason = ""
        self.is_configured_anew = False

    @property
    def due(self) -> bool:
        """Whether a change has been asked for and not been begun."""
        return self.state is SwitchState.WANTED

    @property
    def is_loading(self) -> bool:
        return self.state is SwitchState.LOADING

    @property
    def arguments(self) -> tuple[str, ...]:
        """More arguments of the server; later ones win.  None for the model that is configured."""
        model = self.wanted if self.is_loading else self.served
        return () if model == self.first else ("--model", model)

    def configured(self, model: str) -> None:
        """The configuration names another one now: what is served stays until somebody asks for it."""
        if model != self.first:
            self.first, self.is_configured_anew = model, model != self.served

    def want_configured(self) -> None:
        """Ask for the model of a configuration that has changed.  Raises SwitchInProgress."""
        if self.is_configured_anew:
            self.want(self.first)
            self.is_configured_anew = False

    def want(self, model: str) -> None:
        """Ask for another model; asked for what is served, nothing is to be done."""
        if self.state in (SwitchState.DRAINING, SwitchState.LOADING):
            raise SwitchInProgress(self.wanted)
        self.wanted, self.reason = model, ""
        self.state = SwitchState.SERVING if model == self.served else SwitchState.WANTED

    def draining(self) -> None:
        self.state = SwitchState.DRAINING

    def loading(self) -> None:
        self.state = SwitchState.LOADING

    def loaded(self) -> None:
        """An epoch is ready."""
        if self.is_loading:
            self.served, self.state = self.wanted, SwitchState.SERVING

    def failed(self, reason: str) -> None:
        """The wanted model can't be served; the one before is."""
        self.state, self.reason = SwitchState.FAILED, reason

    def document(self) -> dict[str, object]:
        """As GET /admin/models/switch answers."""
        return {
            "object": "model_switch",
            "state": self.state.value,
            "model": self.served,
            "wanted": self.wanted,
            "reason": self.reason or None,
        }


class SwitchInProgress(Exception):
    """Another change has not ended; the text is the model that is being loaded."""
