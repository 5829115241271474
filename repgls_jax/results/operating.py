"""Operating points: thresholds chosen on validation labels by a rule, and what they give on other images.

A finding is called present where p >= threshold. Thresholds are scores that occurred, so that the counts at one are
those of the ROC curve's point. Of thresholds that serve a rule equally well the highest is taken: the fewest calls.

  youden           sensitivity + specificity - 1 is largest (Youden, Cancer 3(1), 1950)
  f1               F1 = 2 tp / (2 tp + fp + fn) is largest
  sensitivity_0.9  the highest threshold with a sensitivity of .9 at least
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from repgls_jax.results import bootstrap
from repgls_jax.results.curves import sums
from repgls_jax.results.entries import entry_of, macro

Counts = dict[str, np.ndarray]
# rule -> finding -> threshold, None where the rule gives none; what thresholds.json holds.
Thresholds = Mapping[str, Mapping[str, float | None]]


def _youden(tp: np.ndarray, called: np.ndarray, positives: int, n: int) -> int:
    return int(np.argmax(tp / positives - (called - tp) / (n - positives)))


def _f1(tp: np.ndarray, called: np.ndarray, positives: int, n: int) -> int:
    del n
    return int(np.argmax(2 * tp / (called + positives)))


def _sensitive(tp: np.ndarray, called: np.ndarray, positives: int, n: int) -> int:
    del called, n
    return int(np.argmax(tp >= 0.9 * positives - 1e-9))


# name -> index of the threshold, from positives and images at or above each, of n with so many positives.
RULES: dict[str, Callable[[np.ndarray, np.ndarray, int, int], int]] = {
    "youden": _youden,
    "f1": _f1,
    "sensitivity_0.9": _sensitive,
}
NOTES = {
    "youden": "largest sensitivity + specificity - 1",
    "f1": "largest F1",
    "sensitivity_0.9": "sensitivity of 0.9 or more",
}
MAIN = "youden"  # the rule of confusion matrices, selective risk and strata


def choose(
    scores: np.ndarray, labels: np.ndarray, mask: np.ndarray, findings: tuple[str, ...]
) -> dict[str, dict[str, float | None]]:
    """Thresholds of every rule and finding; None for a finding with fewer than two classes.

    Args:
      scores: float32 [n, c], probabilities of validation images.
      labels: [n, c] of 0 and 1; anything where the mask is off.
      mask: bool [n, c].
      findings: c names.
    """
    made: dict[str, dict[str, float | None]] = {rule: {} for rule in RULES}
    for j, finding in enumerate(findings):
        kept = mask[:, j]
        values, tp, called = sums(scores[kept, j], labels[kept, j])
        positives, n = (int(tp[-1]), int(called[-1])) if len(tp) else (0, 0)
        for rule, pick in RULES.items():
            made[rule][finding] = float(values[pick(tp, called, positives, n)]) if 0 < positives < n else None
    return made


def require(thresholds: Any, findings: tuple[str, ...], where: str) -> Thresholds:
    """``thresholds`` as read from a file, for these findings.

    Raises:
      ValueError: not of the form rule -> finding -> number in [0, 1] or null, or a finding is missing.
    """
    if not isinstance(thresholds, Mapping) or not all(isinstance(each, Mapping) for each in thresholds.values()):
        raise ValueError(f"{where} is not of the form rule -> finding -> threshold; write it by launch/evaluate.py")
    for rule, each in thresholds.items():
        missing = [finding for finding in findings if finding not in each]
        if missing:
            raise ValueError(f"{where} has no {rule} threshold of {', '.join(missing)}; choose them on validation data")
        for finding in findings:
            value = each[finding]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= 1):
                raise ValueError(f"{where}: threshold {value!r} of {finding}; expected a probability in [0, 1] or null")
    return thresholds


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


# name -> share, from counts (or sums of weights) of any one shape; NaN where nothing is in the denominator.
RATES: dict[str, Callable[[Counts], np.ndarray]] = {
    "sensitivity": lambda n: _share(n["tp"], n["tp"] + n["fn"]),
    "specificity": lambda n: _share(n["tn"], n["tn"] + n["fp"]),
    "ppv": lambda n: _share(n["tp"], n["tp"] + n["fp"]),
    "npv": lambda n: _share(n["tn"], n["tn"] + n["fn"]),
    "f1": lambda n: _share(2 * n["tp"], 2 * n["tp"] + n["fp"] + n["fn"]),
}
CELLS = ("tp", "fp", "fn", "tn")


def _cells(scores: np.ndarray, labels: np.ndarray, mask: np.ndarray, threshold: np.ndarray) -> dict[str, np.ndarray]:
    """Which images are which: name -> bool [n, c]; none where there is no threshold (NaN)."""
    used = mask & np.isfinite(threshold)
    # As float32, for thresholds are scores that have been float32s.
    call, present = scores.astype(np.float32) >= threshold.astype(np.float32), np.asarray(labels) == 1
    return {
        "tp": used & call & present,
        "fp": used & call & ~present,
        "fn": used & ~call & present,
        "tn": used & ~call & ~present,
    }


def measure(
    scores: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    patient: np.ndarray,
    thresholds: Mapping[str, float | None],
    findings: tuple[str, ...],
    *,
    patients: int,
    replicates: int,
    seed: int = 0,
) -> dict[str, Any]:
    """What a rule's thresholds give.

    Args:
      scores, labels, mask: [n, c] as in :func:`choose`.
      patient: int [n] in [0, patients).
      thresholds: finding -> threshold, or None.
      findings: c names.
      patients: number of patients.
      replicates: of the bootstrap over patients; 0 for no intervals.
      seed: of the bootstrap.

    Returns:
      {"findings": {finding: {"threshold", "tp", "fp", "fn", "tn", rate: entry}}, "mean": {rate: entry}}; None where a
      rate is not defined.
    """
    threshold = np.array([np.nan if thresholds[f] is None else thresholds[f] for f in findings], np.float64)
    cells = _cells(scores, labels, mask, threshold)
    counts = {name: cell.sum(axis=0).astype(np.float64) for name, cell in cells.items()}
    values = {name: rate(counts) for name, rate in RATES.items()}
    drawn: dict[str, np.ndarray] = {}
    if replicates:
        of_patient = {name: _by_patient(cell, patient, patients) for name, cell in cells.items()}
        blocks = [
            {name: block.T.astype(np.float64) @ table for name, table in of_patient.items()}
            for block in bootstrap.draws(seed, patients, replicates)
        ]
        whole = {name: np.concatenate([block[name] for block in blocks]) for name in CELLS}
        drawn = {name: rate(whole) for name, rate in RATES.items()}
    intervals = {name: bootstrap.interval(v) for name, v in drawn.items()}
    rows: dict[str, Any] = {}
    for j, finding in enumerate(findings):
        rows[finding] = {"threshold": thresholds[finding], **{name: int(counts[name][j]) for name in CELLS}}
        rows[finding] |= {name: entry_of(value[j], intervals.get(name), j) for name, value in values.items()}
    mean = {}
    for name, value in values.items():
        defined = np.isfinite(value)
        found = bootstrap.interval(bootstrap.mean(drawn[name], defined)) if drawn else None
        mean[name] = entry_of(macro(value), found) | {"findings": int(defined.sum())}
    return {"findings": rows, "mean": mean}


def _by_patient(cell: np.ndarray, patient: np.ndarray, patients: int) -> np.ndarray:
    """Images of each patient in a cell of the confusion matrix: float64 [patients, c]."""
    return np.stack([np.bincount(patient[column], minlength=patients) for column in cell.T], 1).astype(np.float64)
