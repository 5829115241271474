"""Compares sets of predictions for the same images, by the paired bootstrap over patients.

All sets are scored on the same draws of patients, so what makes an image hard for all cancels in the
difference: the interval of a difference is far narrower than two separate intervals suggest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.results import bootstrap, delong, metrics
from repgls_jax.results.entries import entry_of, macro, number
from repgls_jax.results.score import check

Metrics = dict[str, np.ndarray]


def _difference(value: float, drawn: np.ndarray) -> dict[str, Any]:
    """Entry of one difference, with the share of replicates where it is above zero (ties count half)."""
    entry = entry_of(value, bootstrap.interval(drawn))
    kept = drawn[np.isfinite(drawn)]
    above = None if entry["value"] is None or not len(kept) else float(np.mean((kept > 0) + 0.5 * (kept == 0)))
    return entry | {"above_zero": above}


class _Test:
    """The images that sets of predictions are scored on, and the draws of patients that they share."""

    def __init__(
        self,
        labels: np.ndarray,
        mask: np.ndarray,
        patient_ids: Sequence[str],
        vocabulary: findings_lib.Vocabulary,
        replicates: int,
        seed: int,
    ):
        if replicates < 1:
            raise ValueError(f"replicates is {replicates}; a paired comparison needs at least 1")
        self._mask, self._labels = np.asarray(mask), np.asarray(labels)
        self._patient_ids, self._vocabulary = patient_ids, vocabulary
        self._replicates, self._seed = replicates, seed

    def score(self, probabilities: np.ndarray) -> tuple[Metrics, Metrics]:
        """Metric -> value of each finding [c], and metric -> its replicates [count, c], float64."""
        probabilities = np.asarray(probabilities)
        check(probabilities, self._labels, self._mask, self._patient_ids, self._vocabulary)
        scores = np.where(self._mask, probabilities, 0).astype(np.float32)
        targets = np.where(self._mask, self._labels, 0).astype(np.int8)
        _, patient = np.unique(np.asarray(self._patient_ids), return_inverse=True)
        drawn = bootstrap.replicates(
            self._seed,
            scores,
            targets,
            self._mask,
            patient,
            patients=int(patient.max()) + 1,
            count=self._replicates,
        )
        return bootstrap.exact(scores, targets, self._mask), drawn


def _macro(values: Metrics, drawn: Metrics) -> tuple[dict[str, float], Metrics]:
    """Means over the findings that have a value: metric -> value, and metric -> replicates [count]."""
    defined = {k: np.isfinite(v) for k, v in values.items()}
    means = {k: macro(v) for k, v in values.items()}
    return means, {k: bootstrap.mean(v, defined[k]) for k, v in drawn.items()}


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
    test = _Test(labels, mask, patient_ids, vocabulary, replicates, seed)
    values, drawn = zip(*(test.score(probabilities) for probabilities in (first, second)), strict=True)
    rows: dict[str, dict[str, Any]] = {finding: {} for finding in vocabulary.findings}
    mean = {}
    for name in metrics.METRICS:
        value, draws = values[1][name] - values[0][name], drawn[1][name] - drawn[0][name]
        for j, finding in enumerate(vocabulary.findings):
            rows[finding][name] = _difference(value[j], draws[:, j])
        defined = np.isfinite(value)
        mean[name] = _difference(macro(value), bootstrap.mean(draws, defined)) | {"findings": int(defined.sum())}
    return {"findings": rows, "mean": mean}


def paired(
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
    """Differences ``first - second`` for a comparison of two models, with DeLong's test of every AUROC beside them.

    Args:
      first, second: float [n, c] in [0, 1], two models' probabilities for the same images.
      labels, mask, patient_ids, vocabulary, replicates, seed: as in ``score.score``.

    Returns:
      {"images", "patients", "bootstrap": {"unit", "replicates", "seed"}, "findings": {finding: {"n", "positives",
      metric: entry as of :func:`compare` with "first" and "second", "delong": {"difference", "low", "high", "error",
      "p"} or None}}, "mean": {metric: entry}}. DeLong's is None where there are too few of a class.

    Raises:
      ValueError: as :func:`compare` does.
    """
    first, second, labels, mask = (np.asarray(a) for a in (first, second, labels, mask))
    made = compare(second, first, labels, mask, patient_ids, vocabulary, replicates=replicates, seed=seed)
    values = [bootstrap.exact(p.astype(np.float32), labels, mask) for p in (first, second)]
    _, patient = np.unique(np.asarray(patient_ids), return_inverse=True)
    for j, finding in enumerate(vocabulary.findings):
        row, kept = made["findings"][finding], mask[:, j]
        for name in metrics.METRICS:
            row[name] |= {"first": number(values[0][name][j]), "second": number(values[1][name][j])}
        y = labels[kept, j]
        row |= {"n": int(kept.sum()), "positives": int(y.sum())}
        row["delong"] = _delong(first[kept, j], second[kept, j], y, patient[kept])
    for name in metrics.METRICS:
        made["mean"][name] |= {"first": number(macro(values[0][name])), "second": number(macro(values[1][name]))}
    drawn = {"unit": "patient", "replicates": replicates, "seed": seed}
    return {"images": len(patient), "patients": int(patient.max()) + 1, "bootstrap": drawn, **made}


def _delong(first: np.ndarray, second: np.ndarray, labels: np.ndarray, patient: np.ndarray) -> dict[str, float] | None:
    """Between patients; None where there is no variance to be had."""
    of_class = [len(np.unique(patient[labels == value])) for value in (0, 1)]
    if min(of_class) < 2:
        return None
    found = delong.test(first, second, labels, patient)
    return {name: getattr(found, name) for name in ("difference", "low", "high", "error", "p")}


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
    test = _Test(labels, mask, patient_ids, vocabulary, replicates, seed)
    values: dict[str, dict[str, np.ndarray]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for arm, runs in predictions.items():
        means = [_macro(*test.score(probabilities)) for probabilities in runs]
        values[arm] = {k: np.array([value[k] for value, _ in means]) for k in metrics.METRICS}
        drawn[arm] = {k: np.mean([draws[k] for _, draws in means], axis=0) for k in metrics.METRICS}
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
