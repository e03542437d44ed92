"""Percentiles and medians of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

PERCENTILES = (50, 95, 99)


def percentiles(values: Sequence[float], name: str) -> dict[str, float | None]:
    """`{name}_p50` and so on, interpolated linearly between neighbours; None without any value."""
    if not values:
        return {f"{name}_p{p}": None for p in PERCENTILES}
    found = np.percentile(np.asarray(values, np.float64), PERCENTILES)
    return {f"{name}_p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are there; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def medians_by(rows: Sequence[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """One row for all rows that agree in `keys`: these, and the medians of all other numbers but `round`."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        {**dict(zip(keys, key, strict=True)), **_medians(own, {*keys, "round"})}
        for key, own in groups.items()
    ]


def _medians(rows: Sequence[dict[str, Any]], without: set[str]) -> dict[str, float | None]:
    names = [name for name in rows[0] if name not in without]
    columns = {name: [row[name] for row in rows] for name in names}
    return {name: median(values) for name, values in columns.items() if _are_numbers(values)}


def _are_numbers(values: Iterable[Any]) -> bool:
    """Or None, where something could not be measured."""
    return all(value is None or isinstance(value, (int, float)) for value in values)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """None where either is missing or there is nothing to divide by."""
    if numerator is None or not denominator:
        return None
    return numerator / denominator
