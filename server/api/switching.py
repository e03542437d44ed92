"""What is said to those who ask for a model that is configured but not loaded."""

from __future__ import annotations

from dataclasses import dataclass

from server.api.errors import NotLoaded

SWITCH_PATH = "/admin/models/switch"


@dataclass(frozen=True)
class Switching:
    """How the loaded model can be changed here.

    supervised: a launcher holds this process and can load another model.  automatic: it does so by itself when
    a request names one.
    """

    supervised: bool = False
    automatic: bool = False

    def not_loaded(self, asked: str, loaded: str) -> NotLoaded:
        """The error for a request that asks for the model `asked` while `loaded` is served."""
        state = f"The model {asked!r} is configured but not loaded; {loaded!r} is."
        if not self.supervised:
            return NotLoaded(f"{state} Restart the server with --model {asked} to serve it.", asked)
        if self.automatic:
            message = f"{state} It is being loaded in place of the other one; try again later."
            return NotLoaded(message, asked, switch=True)
        advice = f'POST {SWITCH_PATH} with {{"model": "{asked}"}} loads it instead (role operator).'
        return NotLoaded(f"{state} {advice}", asked)
