"""Selective risk: how often calls are wrong when the most unsure images are left to a person.

Images are accepted from the least uncertain on; risk(coverage) is the share of wrong calls among those accepted
(El-Yaniv and Wiener, JMLR 11, 2010), and AURC its mean over all coverages (Geifman et al., ICLR 2019, arXiv
1805.08206). Equally uncertain images are accepted together, so that no result depends on the order of the images.
Uncertainty is told by

  probability  -|logit p - logit t|, the distance from the threshold t of the call
  rate         the rate that the second head predicts a report would have, from the image alone

and beside them stand what is best, all wrong calls last, and what no order gives, the risk of all calls.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repgls_jax.results.curves import Points, points, thin
from repgls_jax.results.entries import macro, number

COVERAGES = (0.5, 0.8, 0.9)
ORDERS = ("probability", "rate")
_MARGIN = 1e-7  # keeps logits finite


def distance(probability: np.ndarray, threshold: float) -> np.ndarray:
    """|logit p - logit t|, float64 [m]; t in [0, 1]."""
    p, t = (np.clip(np.asarray(v, np.float64), _MARGIN, 1 - _MARGIN) for v in (probability, threshold))
    return np.abs(np.log(p / (1 - p)) - np.log(t / (1 - t)))


def risks(wrong: np.ndarray, uncertainty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk at each distinct uncertainty, the lowest first: float64 [k], [k].

    Args:
      wrong: bool [m].
      uncertainty: float [m], finite.
    """
    order = np.argsort(uncertainty, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(uncertainty[order]) != 0, True)) if len(order) else order
    return (ends + 1) / len(wrong), np.cumsum(wrong[order])[ends] / (ends + 1)


def area(coverage: np.ndarray, risk: np.ndarray) -> float:
    """Mean risk over the images, each at the coverage with which it is accepted."""
    return float(np.sum(risk * np.diff(coverage, prepend=0.0)))


def at(coverage: np.ndarray, risk: np.ndarray, wanted: float) -> float:
    """The risk at the smallest coverage of ``wanted`` at least."""
    return float(risk[np.searchsorted(coverage, wanted - 1e-12)])


def _order(wrong: np.ndarray, uncertainty: np.ndarray) -> dict[str, Any]:
    coverage, risk = risks(wrong, uncertainty)
    kept = thin(coverage, risk)
    curve: Points = points(coverage=coverage[kept], risk=risk[kept])
    return {
        "aurc": area(coverage, risk),
        "risk": {f"{wanted:g}": at(coverage, risk, wanted) for wanted in COVERAGES},
        "curve": curve,
    }


def measure(
    probability: np.ndarray,
    rate: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    thresholds: Mapping[str, float | None],
    findings: tuple[str, ...],
) -> dict[str, Any]:
    """Selective risk of every finding.

    Args:
      probability, rate: float [n, c].
      labels: [n, c] of 0 and 1; anything where the mask is off.
      mask: bool [n, c].
      thresholds: finding -> threshold of the call; None leaves the finding out.
      findings: c names.

    Returns:
      {"findings": {finding: None or {"n", "error": risk of all calls, "best": AURC of the best order, order: {"aurc",
      "risk": {coverage: risk}, "curve"}}}, "mean": {"error", "best", order: {"aurc", "risk"}}}.
    """
    rows: dict[str, Any] = {}
    for j, finding in enumerate(findings):
        kept, threshold = mask[:, j], thresholds[finding]
        rows[finding] = None
        if threshold is None or not kept.any():
            continue
        p = probability[kept, j]
        wrong = (p.astype(np.float32) >= np.float32(threshold)) != (labels[kept, j] == 1)
        unsure = {"probability": -distance(p, threshold), "rate": rate[kept, j]}
        row: dict[str, Any] = {"n": int(kept.sum()), "error": float(wrong.mean())}
        row["best"] = area(*_best(wrong))
        rows[finding] = row | {order: _order(wrong, unsure[order]) for order in ORDERS}
    told = [row for row in rows.values() if row is not None]

    def mean(pick: Any) -> float | None:
        return number(macro(np.array([pick(row) for row in told], np.float64)))

    means: dict[str, Any] = {name: mean(lambda row, name=name: row[name]) for name in ("error", "best")}
    for order in ORDERS:
        means[order] = {
            "aurc": mean(lambda row, order=order: row[order]["aurc"]),
            "risk": {f"{w:g}": mean(lambda row, o=order, w=w: row[o]["risk"][f"{w:g}"]) for w in COVERAGES},
        }
    return {"findings": rows, "mean": means}


def _best(wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk where every wrong call is accepted after every right one, one image at a time."""
    m = len(wrong)
    accepted = np.arange(1, m + 1)
    return accepted / m, np.maximum(accepted - (m - wrong.sum()), 0) / accepted
