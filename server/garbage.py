"""When Python looks for garbage: a full look waits until there are a quarter more objects than after the last.

A start leaves some hundred thousand objects for good, so garbage in cycles, such as every failed TLS handshake
is, would pile up to more than a hundred megabytes before anybody looks.
"""

from __future__ import annotations

import gc

MIDDLE_LOOKS = 2  # between two full ones, at least


def settle() -> None:
    """What is there now stays: later looks leave it out, are short, and come soon."""
    gc.collect()
    gc.freeze()
    gc.collect()  # counts what is left, which later looks are measured by
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, MIDDLE_LOOKS)
