"""ROC, precision-recall and reliability curves of one finding, in numpy, thinned for drawing.

The points are those that the metrics integrate: one per distinct score. Thinning only drops points from the
drawing; no metric is computed from a thinned curve.
"""

import numpy as np

from repgls_jax.results import metrics

MOST_POINTS = 80
DIGITS = 4

Points = dict[str, list[float]]


def sums(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each distinct score from the highest down [k], and positives and images at or above it: int64 [k], [k]."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(order) else order
    return scores[order][ends], np.cumsum(labels[order], dtype=np.int64)[ends], ends + 1


def thin(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of at most MOST_POINTS points, about evenly spaced along the curve, both ends kept."""
    if len(x) <= MOST_POINTS:
        return np.arange(len(x))
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    return np.unique(np.searchsorted(length, np.linspace(0, length[-1], MOST_POINTS)).clip(0, len(x) - 1))


def points(**axes: np.ndarray) -> Points:
    """Rounded for drawing."""
    return {name: [round(float(v), DIGITS) for v in values] for name, values in axes.items()}


def roc(scores: np.ndarray, labels: np.ndarray) -> Points | None:
    """Points of the ROC curve from (0, 0) to (1, 1); None with fewer than two classes.

    Args:
      scores: float [n], labelled images only.
      labels: [n] of 0 and 1.
    """
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        return None
    _, tp, everything = sums(scores, labels)
    fpr = np.append(0, everything - tp) / (len(labels) - positives)
    tpr = np.append(0, tp) / positives
    kept = thin(fpr, tpr)
    return points(fpr=fpr[kept], tpr=tpr[kept])


def precision_recall(scores: np.ndarray, labels: np.ndarray) -> Points | None:
    """Recall, precision and the precision of chance (the prevalence); None with fewer than two classes.

    The curve starts at the first positive: before it recall is 0 and nothing is integrated.
    """
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        return None
    _, tp, everything = sums(scores, labels)
    tp, everything = tp[tp > 0], everything[tp > 0]
    recall, precision = tp / positives, tp / everything
    kept = thin(recall, precision)
    return points(recall=recall[kept], precision=precision[kept], prevalence=np.array([positives / len(labels)]))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> Points | None:
    """Mean probability, share of positives and count of each filled bin of ``metrics.ece``; None if n=0.

    sum(count * |mean - share|) / sum(count) is the ECE.
    """
    n = len(labels)
    if n == 0:
        return None
    order = np.argsort(-probabilities, kind="stable")
    p, y = probabilities[order].astype(np.float64), labels[order].astype(np.float64)
    start = np.append(True, np.diff(p) != 0)
    before = np.maximum.accumulate(np.where(start, np.arange(n), 0))
    bins = before * metrics.BINS // n
    count = np.bincount(bins, minlength=metrics.BINS)
    filled = count > 0
    means = [np.bincount(bins, v, metrics.BINS)[filled] / count[filled] for v in (p, y)]
    return points(mean=means[0][::-1], share=means[1][::-1], count=count[filled][::-1])
