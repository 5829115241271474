"""Rates beside a reader's codes: how sure the rates are, and how often the code is on the rate's side.

A rate r for the label y sets the target t = (1 - r) y + r / 2; its confidence in y is 1 - |r| / 2 for r > 0. Codes say
present or absent, so both can be counted. Numbers and names only; no text.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import reliability
from repgls_jax.results import charts

# Of |r|; the first is plain wording.
EDGES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def described(names: Sequence[str], rates: np.ndarray) -> list[dict[str, Any]]:
    """How rates are spread for each name (a finding, a cue): n, mean, quantiles; the most frequent first."""
    at: dict[str, list[float]] = {}
    for name, rate in zip(names, rates.tolist(), strict=True):
        at.setdefault(name, []).append(rate)
    most = sorted(at.items(), key=lambda item: -len(item[1]))
    return [
        {"name": name, "n": len(v), "mean": float(np.mean(v)), "quantiles": np.quantile(v, _QUANTILES).tolist()}
        for name, v in most
    ]


def by_confidence(rate: np.ndarray, agrees: np.ndarray) -> list[dict[str, float]]:
    """Mentions by the size of their rate: n, mean confidence 1 - |r| / 2, share that agrees and its 95 % interval.

    Args:
      rate: [m] in (-1, 1).
      agrees: [m] bool, the code is on the label's side.
    """
    rows = []
    for low, high in itertools.pairwise(EDGES):
        at = (np.abs(rate) >= low) & (np.abs(rate) < high)
        n, k = int(at.sum()), int(agrees[at].sum())
        if not n:
            continue
        below, above = (float(v) for v in reliability.jeffreys(np.array(k), np.array(n)))
        mean = float((1 - np.abs(rate[at]) / 2).mean())
        rows.append({"low": low, "high": high, "n": n, "confidence": mean, "agree": k / n, "from": below, "to": above})
    return rows


def joined(rates: pa.Table, evidence: pa.Table) -> dict[str, np.ndarray]:
    """Columns study_id, finding, cue, p, rate of the mentions that have both; "No Finding" is left out."""
    told = {(r["study_id"], r["finding"]): (r["cue"], r["p"]) for r in evidence.to_pylist()}
    rows = [
        (r["study_id"], r["finding"], *told[r["study_id"], r["finding"]], r["rate"])
        for r in rates.to_pylist()
        if (r["study_id"], r["finding"]) in told and r["finding"] != findings_lib.NO_FINDING
    ]
    names = ("study_id", "finding", "cue", "p", "rate")
    return {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def figure(sets: Sequence[tuple[str, list[dict[str, float]]]]) -> str:
    """Agreement against confidence as an SVG of its own: one colour a set, with counts and intervals."""
    colours = ("#1f5fa8", "#b5482a")
    frame = charts.Frame(520, 340, (56, 16, 16, 44), (0.5, 1.02), (0.0, 1.02))
    parts = ['<rect width="520" height="340" fill="white"/>']
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        x, y = frame.at(tick, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = frame.at(0.5, tick)
        right, _ = frame.at(1.0, tick)
        parts.append(f'<line x1="{x}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    (x0, y0), (x1, y1) = frame.at(0.5, 0.5), frame.at(1, 1)
    parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="#888" stroke-dasharray="4 3"/>')
    for k, (name, rows) in enumerate(sets):
        colour = colours[k % len(colours)]
        for row in rows:
            x, y = frame.at(row["confidence"] + 0.004 * k, row["agree"])
            low, high = frame.at(0.5, row["from"])[1], frame.at(0.5, row["to"])[1]
            parts.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
            radius = 2 + math.log10(max(row["n"], 1))
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}"/>')
        parts.append(f'<text x="70" y="{30 + 16 * k}" fill="{colour}">{name}</text>')
    parts.append('<text x="290" y="334" text-anchor="middle">confidence in the label, 1 - |r| / 2</text>')
    parts.append('<text x="14" y="170" text-anchor="middle" transform="rotate(-90 14 170)">codes that agree</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 520 340" font-family="sans-serif" font-size="12">'
    return head + "".join(parts) + "</svg>\n"
