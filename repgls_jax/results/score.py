"""Scores predictions: the dictionary that ``metrics.json`` holds, from which table and page are made.

  {"vocabulary": {"name", "version", "findings": [c names]},
   "images": n, "patients": p,
   "bootstrap": {"unit": "patient", "replicates", "seed", "level"},
   "ece": {"bins", "kind"},
   "findings": {finding: {"n", "positives", metric: {"value", "low", "high", "replicates"}, ...}},
   "mean": {metric: {"value", "low", "high", "replicates", "findings": how many have a value}},
   "curves": {finding: {"roc", "precision_recall", "reliability"}}}

``n`` and ``positives`` count labelled images. A metric that is not defined is None (null in JSON), never 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.results import bootstrap, curves, metrics
from repgls_jax.results.entries import entry_of, macro

Results = dict[str, Any]


def check(
    probabilities: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    patient_ids: Sequence[str],
    vocabulary: findings_lib.Vocabulary,
) -> None:
    """Raises one ValueError with everything that is wrong with the arguments of :func:`score`."""
    shape = (len(patient_ids), len(vocabulary))
    wrong = [
        f"{name} has the shape {array.shape}; expected {shape} (patient_ids x findings)"
        for name, array in (("probabilities", probabilities), ("labels", labels), ("mask", mask))
        if array.shape != shape
    ]
    if not len(patient_ids):
        wrong.append("there are no images; check the split and its filters")
    if mask.dtype != np.bool_:
        wrong.append(f"mask has the dtype {mask.dtype}; expected bool, True where a label counts")
    if not wrong:
        p, y = probabilities[mask], labels[mask]
        outside = ~((p >= 0) & (p <= 1))  # NaN is outside as well
        if outside.any():
            wrong.append(
                f"{outside.sum()} probabilities that count are outside [0, 1], the first {p[outside][0]}; "
                "pass sigmoid(logits)"
            )
        other = ~np.isin(y, (0, 1))
        if other.any():
            wrong.append(
                f"{other.sum()} labels that count are neither 0 nor 1, the first {y[other][0]}; "
                "switch them off in the mask or resolve them first"
            )
    if wrong:
        raise ValueError("cannot score these predictions: " + "; ".join(wrong))


def _curves(p: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    return {
        "roc": curves.roc(p, y),
        "precision_recall": curves.precision_recall(p, y),
        "reliability": curves.reliability(p, y),
    }


def measured(
    scores: np.ndarray,
    targets: np.ndarray,
    mask: np.ndarray,
    patient: np.ndarray,
    vocabulary: findings_lib.Vocabulary,
    *,
    replicates: int,
    seed: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The "findings" and the "mean" of :func:`score`, of checked arguments.

    Args:
      scores: float32 [n, c]; 0 where the mask is off.
      targets: int8 [n, c]; 0 where the mask is off.
      mask: bool [n, c].
      patient: int [n], numbers of patients from 0 on.
      vocabulary: the c findings.
      replicates: bootstrap replicates.
      seed: of the bootstrap.
    """
    values = bootstrap.exact(scores, targets, mask)
    drawn: dict[str, np.ndarray] = {}
    if replicates:
        patients = int(patient.max()) + 1
        drawn = bootstrap.replicates(seed, scores, targets, mask, patient, patients=patients, count=replicates)
    intervals = {k: bootstrap.interval(v) for k, v in drawn.items()}
    rows: dict[str, dict[str, Any]] = {}
    for j, finding in enumerate(vocabulary.findings):
        counted = mask[:, j]
        rows[finding] = {"n": int(counted.sum()), "positives": int(targets[counted, j].sum())}
        rows[finding] |= {k: entry_of(v[j], intervals.get(k), j) for k, v in values.items()}
    mean = {}
    for name, value in values.items():
        defined = np.isfinite(value)
        found = bootstrap.interval(bootstrap.mean(drawn[name], defined)) if drawn else None
        mean[name] = entry_of(macro(value), found) | {"findings": int(defined.sum())}
    return rows, mean


def score(
    probabilities: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    patient_ids: Sequence[str],
    vocabulary: findings_lib.Vocabulary,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> Results:
    """Scores predictions, with 95 % intervals from a bootstrap over patients.

    Args:
      probabilities: float [n, c] in [0, 1].
      labels: [n, c] of 0 and 1; anything where the mask is off.
      mask: bool [n, c], True where the label counts.
      patient_ids: n ids.
      vocabulary: the c findings.
      replicates: bootstrap replicates; 0 leaves the intervals out.
      seed: of the bootstrap. The same arguments give the same results.

    Returns:
      the dictionary described above, ready for ``json.dump(..., allow_nan=False)``.

    Raises:
      ValueError: shapes disagree, there is no image, a counted probability is not in [0, 1], or a counted
        label is neither 0 nor 1. The message lists everything found.
    """
    probabilities, labels, mask = (np.asarray(a) for a in (probabilities, labels, mask))
    check(probabilities, labels, mask, patient_ids, vocabulary)
    scores, targets = (
        np.where(mask, probabilities, 0).astype(np.float32),
        np.where(mask, labels, 0).astype(np.int8),
    )
    _, patient = np.unique(np.asarray(patient_ids), return_inverse=True)
    rows, mean = measured(scores, targets, mask, patient, vocabulary, replicates=replicates, seed=seed)
    columns = enumerate(vocabulary.findings)
    return {
        "vocabulary": {
            "name": vocabulary.name,
            "version": vocabulary.version,
            "findings": list(vocabulary.findings),
        },
        "images": len(patient_ids),
        "patients": int(patient.max()) + 1,
        "bootstrap": {"unit": "patient", "replicates": replicates, "seed": seed, "level": bootstrap.LEVEL},
        "ece": {"bins": metrics.BINS, "kind": "equal mass"},
        "findings": rows,
        "mean": mean,
        "curves": {f: _curves(scores[mask[:, j], j], targets[mask[:, j], j]) for j, f in columns},
    }
