"""JSON on its way out."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from starlette.responses import Response

_encoder = msgspec.json.Encoder()

# JSON has no infinities.  OpenAI's own API writes this for a token that can't be chosen.
NO_CHANCE = -9999.0


def to_json(value: Any) -> bytes:
    """UTF-8 JSON without line breaks."""
    return _encoder.encode(value)


def finite(logprob: float) -> float:
    """A log probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else NO_CHANCE


def json_response(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
