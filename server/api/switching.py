"""What is said to those who ask for a model that is configured but not loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.access.principal import Role
from server.api.errors import SWITCH_RETRY_S, NotLoaded

SWITCH_PATH = "/admin/models/switch"


@dataclass(frozen=True)
class Switching:
    """How the loaded model can be changed here.

    supervised: a launcher holds this process and can load another model.  automatic: it does so by itself when
    a request names one; not for whoever has less than `role`, nor before a model was there for `stay` seconds,
    so that two users who want two models do not have them loaded in turns.
    """

    supervised: bool = False
    automatic: bool = False
    role: Role = Role.USER
    stay: float = 0.0

    def not_loaded(self, asked: str, loaded: str, role: Role, age: float) -> NotLoaded:
        """The error for a request that asks for the model `asked` while `loaded` is served.

        role: of who asks.  age: seconds since that model was loaded.
        """
        state = f"The model {asked!r} is configured but not loaded; {loaded!r} is."
        if not self.supervised:
            return NotLoaded(f"{state} Restart the server with --model {asked} to serve it.", asked)
        if self.automatic and role >= self.role:
            if age < self.stay:
                message = (
                    f"{state} A model stays for at least {self.stay:g} seconds; try again later."
                )
                return NotLoaded(message, asked, retry_s=math.ceil(self.stay - age))
            message = f"{state} It is being loaded in place of the other one; try again later."
            return NotLoaded(message, asked, retry_s=SWITCH_RETRY_S, switch=True)
        advice = f'POST {SWITCH_PATH} with {{"model": "{asked}"}} loads it instead (role operator).'
        return NotLoaded(f"{state} {advice}", asked)
