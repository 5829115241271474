"""Scores of many films as figures: means for each finding and over findings, with intervals over patients.

Every row (a method or a control) is scored on the same films, so that its difference from the prior is paired. The
share of the film that :data:`scores.METRICS`' "iou" takes is each row's own for each finding, the one with the highest
mean on the choosing films; a row has no finding's share to choose from there takes the one that is best over all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repgls_jax.results import bootstrap
from repgls_jax.saliency.scores import METRICS, SHARES

TITLES = {
    "pointing": "Pointing game",
    "iou": "IoU, best fixed share of the film",
    "iou_area": "IoU, as many pixels as the lesion has",
    "energy": "Energy inside",
}
BASELINE = "prior"
Values = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scored:
    """m pairs of a film and a finding that it shows.

    Attributes:
      finding: int [m], index into the vocabulary.
      patient: int [m], any numbers.
      rows: method or control -> what :func:`scores.score` gives, [m, ...] each.
    """

    finding: np.ndarray
    patient: np.ndarray
    rows: dict[str, Values]


def join(parts: Sequence[Scored]) -> Scored:
    """Pairs of several batches as one; there must be one or more."""
    rows = {
        row: {name: np.concatenate([part.rows[row][name] for part in parts]) for name in values}
        for row, values in parts[0].rows.items()
    }
    return Scored(np.concatenate([p.finding for p in parts]), np.concatenate([p.patient for p in parts]), rows)


def choose_shares(scored: Scored, c: int) -> dict[str, list[int]]:
    """For each row and finding the number of the best of :data:`SHARES`."""
    chosen = {}
    for row, values in scored.rows.items():
        overall = int(values["iou"].mean(axis=0).argmax())
        chosen[row] = [
            int(values["iou"][at].mean(axis=0).argmax()) if (at := scored.finding == k).any() else overall
            for k in range(c)
        ]
    return chosen


def summarise(
    scored: Scored,
    shares: Mapping[str, Sequence[int]],
    findings: Sequence[str],
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures.

    Args:
      scored: pairs, one or more.
      shares: of :func:`choose_shares`.
      findings: of the vocabulary.
      replicates: bootstraps over patients; 0 for no intervals.
      seed: of the bootstrap.

    Returns:
      {"findings": {finding: {"n", "patients", "rows": {row: {metric: {"value", "low", "high", "less_prior":
      {"value", "low", "high"}}, "share", "empty"}}}}, "mean": the same over findings, without share}; findings that no
      film shows are missing. JSON.
    """
    patients, at = np.unique(scored.patient, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(patients), (replicates, len(patients)))
    weights = np.stack([np.bincount(draw, minlength=len(patients)) for draw in draws]) if replicates else None
    shown = [k for k in range(len(findings)) if (scored.finding == k).any()]
    # row -> metric -> [findings shown, 1 + replicates]: the value, then the replicates.
    spread: dict[str, dict[str, np.ndarray]] = {}
    for row, values in scored.rows.items():
        spread[row] = {}
        for metric in METRICS:
            columns = []
            for k in shown:
                pairs = scored.finding == k
                x = values[metric][pairs].astype(np.float64)
                columns.append(_replicated(x[:, shares[row][k]] if metric == "iou" else x, at[pairs], weights))
            spread[row][metric] = np.stack(columns)

    def told(row: str, number: int | None) -> dict[str, Any]:
        def pick(name: str, metric: str) -> np.ndarray:
            values = spread[name][metric]
            return values.mean(axis=0) if number is None else values[number]

        said: dict[str, Any] = {}
        for metric in METRICS:
            mine = pick(row, metric)
            said[metric] = _interval(mine)
            if BASELINE in spread and row != BASELINE:
                said[metric]["less_prior"] = _interval(mine - pick(BASELINE, metric))
        return said

    made: dict[str, Any] = {}
    for number, k in enumerate(shown):
        pairs = scored.finding == k
        rows = {}
        for row, values in scored.rows.items():
            empty = int(values["empty"][pairs].sum())
            rows[row] = told(row, number) | {"share": SHARES[shares[row][k]], "empty": empty}
        made[findings[k]] = {"n": int(pairs.sum()), "patients": len(np.unique(at[pairs])), "rows": rows}
    mean = {row: told(row, None) | {"empty": int(v["empty"].sum())} for row, v in scored.rows.items()}
    whole = {"n": len(at), "patients": len(patients), "findings": len(shown), "rows": mean}
    return {"replicates": replicates, "level": bootstrap.LEVEL, "findings": made, "mean": whole}


def _replicated(x: np.ndarray, patient: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The mean of ``x`` [m], and of every replicate that has any of it (else NaN): [1 + replicates]."""
    if weights is None:
        return x.mean(keepdims=True)
    drawn = weights[:, patient].astype(np.float64)
    count = drawn.sum(axis=1)
    means = np.where(count > 0, drawn @ x / np.maximum(count, 1), np.nan)
    return np.concatenate([x.mean(keepdims=True), means])


def _interval(values: np.ndarray) -> dict[str, float | None]:
    """The first of the values, and the percentiles of the others."""
    low: float | None = None
    high: float | None = None
    if len(values) > 1:
        ends = bootstrap.interval(values[1:])
        low, high = (None if np.isnan(end) else float(end) for end in (ends.low, ends.high))
    return {"value": float(values[0]), "low": low, "high": high}


def tables(results: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """Metric -> head, a row for each finding, and the mean, as text; ``titles`` names the rows."""
    made = {}
    for metric in METRICS:
        table = [["Finding", "films", *titles.values()]]
        for finding, entry in [*results["findings"].items(), ("", results["mean"])]:
            name = finding or f"Mean of {entry['findings']}"
            cells = [_cell(entry["rows"][row], metric) for row in titles]
            table.append([name, f"{entry['n']:,}", *cells])
        made[metric] = table
    return made


def _cell(row: Mapping[str, Any], metric: str) -> str:
    entry = row[metric]
    text = f"{entry['value']:.3f}"
    if entry["low"] is not None and entry["high"] is not None:
        text += f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    return text + (f" at {row['share']:.0%}" if metric == "iou" and "share" in row else "")


def markdown(results: Mapping[str, Any], titles: Mapping[str, str], notes: Sequence[str]) -> str:
    """All tables as Markdown, ``notes`` first."""
    parts = list(notes)
    for metric, table in tables(results, titles).items():
        body = [*table[1:-1], [f"**{cell}**" for cell in table[-1]]]
        rule = ["---", *["---:"] * (len(table[0]) - 1)]
        parts.append(
            f"## {TITLES[metric]}\n\n" + "\n".join("| " + " | ".join(r) + " |" for r in (table[0], rule, *body))
        )
    return "\n\n".join(parts) + "\n"
