"""Where clients connect: their connections and their requests outlive every rank."""

from launcher.frontdoor.door import FrontDoor

__all__ = ["FrontDoor"]
