"""Percentiles and medians of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Row = Mapping[str, float | None]

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


def medians(rows: Sequence[Row]) -> dict[str, float | None]:
    """The median over `rows`, key by key.  All rows have the keys of the first."""
    return {key: median(row[key] for row in rows) for key in rows[0]}


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """None where either is missing or there is nothing to divide by."""
    if numerator is None or not denominator:
        return None
    return numerator / denominator
