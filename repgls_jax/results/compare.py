"""Compares sets of predictions for the same images, by the paired bootstrap over patients.

All sets are scored on the same draws of patients, so what makes an image hard for all cancels in the
difference: the interval of a difference is far narrower than two separate intervals suggest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.results import bootstrap, metrics
from repgls_jax.results.score import check, entry_of


def _difference(value: float, drawn: np.ndarray) -> dict[str, Any]:
    """Entry of one difference, with the share of replicates where it is above zero (ties count half)."""
    entry = entry_of(value, bootstrap.interval(drawn))
    kept = drawn[np.isfinite(drawn)]
    above = None if entry["value"] is None or not len(kept) else float(np.mean((kept > 0) + 0.5 * (kept == 0)))
    return entry | {"above_zero": above}


def compare(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    patient_ids: Sequence[str],
    vocabulary: findings_lib.Vocabulary,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences ``second - first`` of every metric, with 95 % intervals.

    Args:
      first, second: float [n, c] in [0, 1], two models' probabilities for the same images.
      labels, mask, patient_ids, vocabulary, replicates, seed: as in ``score.score``.

    Returns:
      {"findings": {finding: {metric: entry}}, "mean": {metric: entry}}; an entry holds value, low, high,
      replicates, and above_zero, the share of replicates in which the second set's metric is higher.

    Raises:
      ValueError: as ``score.score`` does, for either set, or replicates is below 1.
    """
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}; a paired comparison needs at least 1")
    labels, mask = np.asarray(labels), np.asarray(mask)
    _, patient = np.unique(np.asarray(patient_ids), return_inverse=True)
    patients, patient = int(patient.max(initial=-1)) + 1, patient.astype(np.int32)
    values, drawn = [], []
    for probabilities in (np.asarray(first), np.asarray(second)):
        check(probabilities, labels, mask, patient_ids, vocabulary)
        scores = np.where(mask, probabilities, 0).astype(np.float32)
        targets = np.where(mask, labels, 0).astype(np.int8)
        key = jax.random.key(seed)
        found = bootstrap.replicates(key, scores, targets, mask, patient, patients=patients, count=replicates)
        drawn.append({k: np.asarray(v, np.float64) for k, v in found.items()})
        values.append({k: np.asarray(v, np.float64) for k, v in metrics.measure(scores, targets, mask).items()})
    rows: dict[str, dict[str, Any]] = {finding: {} for finding in vocabulary.findings}
    mean = {}
    for name in metrics.METRICS:
        value, draws = values[1][name] - values[0][name], drawn[1][name] - drawn[0][name]
        for j, finding in enumerate(vocabulary.findings):
            rows[finding][name] = _difference(value[j], draws[:, j])
        defined = np.isfinite(value)
        average = value[defined].mean() if defined.any() else np.nan
        mean[name] = _difference(average, bootstrap.mean(draws, defined)) | {"findings": int(defined.sum())}
    return {"findings": rows, "mean": mean}


def arms(
    predictions: Mapping[str, Sequence[np.ndarray]],
    baseline: str,
    labels: np.ndarray,
    mask: np.ndarray,
    patient_ids: Sequence[str],
    vocabulary: findings_lib.Vocabulary,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Mean metrics of several arms, each trained with several seeds, and their differences from one of them.

    A metric of an arm is the mean over its seeds of the macro mean over findings. Intervals are over patients, with the
    seeds held fixed: they say how much the test patients matter, and the spread over seeds stands beside them.

    Args:
      predictions: arm -> one [n, c] float array in [0, 1] per seed.
      baseline: the arm that differences are taken from.
      labels, mask, patient_ids, vocabulary, replicates, seed: as in ``score.score``.

    Returns:
      arm -> {metric: {"value", "low", "high", "replicates", "seeds": [value of each], "difference": entry}}.

    Raises:
      ValueError: as ``score.score`` does; or the baseline is not among the arms; or replicates is below 1.
    """
    if baseline not in predictions:
        raise ValueError(f"baseline {baseline!r} is not an arm; expected one of {', '.join(predictions)}")
    if replicates < 1:
        raise ValueError(f"replicates is {replicates}; a paired comparison needs at least 1")
    labels, mask = np.asarray(labels), np.asarray(mask)
    _, patient = np.unique(np.asarray(patient_ids), return_inverse=True)
    patients, patient = int(patient.max(initial=-1)) + 1, patient.astype(np.int32)
    targets = np.where(mask, labels, 0).astype(np.int8)
    values: dict[str, dict[str, np.ndarray]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for arm, runs in predictions.items():
        per_run, per_draw = [], []
        for probabilities in runs:
            check(probabilities, labels, mask, patient_ids, vocabulary)
            scores = np.where(mask, probabilities, 0).astype(np.float32)
            value = {k: np.asarray(v, np.float64) for k, v in metrics.measure(scores, targets, mask).items()}
            key = jax.random.key(seed)
            found = bootstrap.replicates(key, scores, targets, mask, patient, patients=patients, count=replicates)
            defined = {k: np.isfinite(v) for k, v in value.items()}
            per_run.append({k: v[defined[k]].mean() if defined[k].any() else np.nan for k, v in value.items()})
            per_draw.append({k: bootstrap.mean(np.asarray(v, np.float64), defined[k]) for k, v in found.items()})
        values[arm] = {k: np.array([run[k] for run in per_run]) for k in metrics.METRICS}
        drawn[arm] = {k: np.mean([draws[k] for draws in per_draw], axis=0) for k in metrics.METRICS}
    rows: dict[str, dict[str, Any]] = {}
    for arm in predictions:
        rows[arm] = {}
        for name in metrics.METRICS:
            entry = entry_of(values[arm][name].mean(), bootstrap.interval(drawn[arm][name]))
            gap = values[arm][name].mean() - values[baseline][name].mean()
            entry["seeds"] = [float(v) if np.isfinite(v) else None for v in values[arm][name]]
            entry["difference"] = _difference(gap, drawn[arm][name] - drawn[baseline][name])
            rows[arm][name] = entry
    return rows
