"""JSON on its way in: nothing is accepted that two parsers would read differently."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic_core import from_json

from server.api.errors import InvalidRequest

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_SHOWN = 80  # characters of a name or number in a message


def json_object(body: bytes) -> dict[str, Any]:
    """The object in `body`, UTF-8.  Raises InvalidRequest saying what is wrong with it.

    Refused beside what is no JSON: a byte order mark, lone surrogates, NaN and numbers beyond a float, integers
    of thousands of digits, names that come twice in an object, and more than about 200 levels.
    """
    if body.startswith(_BYTE_ORDER_MARK):
        raise InvalidRequest("The body is not valid JSON: it begins with a byte order mark.")
    try:
        # The first parser is strict about text and depth, the second one sees every pair.
        from_json(body, allow_inf_nan=False)
        value = json.loads(body, object_pairs_hook=_unique, parse_float=_finite)
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidRequest(f"The body has {twice[:MAX_SHOWN]!r} twice in one object.")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidRequest(f"The body has a number that is out of range: {text[:MAX_SHOWN]}.")
    return number
