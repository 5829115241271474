"""How a measured value is told in JSON: with its interval, and None for what is not defined, never 0 or NaN."""

from typing import Any

import numpy as np

from repgls_jax.results import bootstrap


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if np.isfinite(value) else None


def entry_of(value: Any, found: bootstrap.Interval | None, *at: int) -> dict[str, Any]:
    """A metric with its interval; ``at`` picks the finding."""
    entry: dict[str, Any] = {"value": number(value), "low": None, "high": None, "replicates": 0}
    if found is not None and entry["value"] is not None:
        low, high, kept = (v[at] for v in found)
        entry |= {"low": number(low), "high": number(high), "replicates": int(kept)}
    return entry


def macro(values: np.ndarray) -> float:
    """Mean of the finite values; NaN if there are none."""
    finite = np.isfinite(values)
    return float(values[finite].mean()) if finite.any() else float("nan")
