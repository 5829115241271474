"""DeLong's test: the variance of an AUROC and of the difference of two, without drawing anything.

The AUROC is the mean over pairs of a positive i and a negative j of psi(i, j) = 1, 1/2 or 0 as the positive's score
is higher, equal or lower. With the components V10_i, the mean of psi over the negatives, and V01_j, over the positives,
the covariance of two AUROCs on the same images is cov(V10) / m + cov(V01) / n (DeLong et al., Biometrics 44, 1988). The
components are differences of midranks (Sun and Xu, IEEE Signal Processing Letters 21, 2014).

Images are taken for independent there. Where patients have several, the components are summed by patient first, and the
covariance is that of Obuchowski (Biometrics 53, 1997), which is DeLong's where each patient has one image.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Test(NamedTuple):
    """Of the difference of two AUROCs, first less second.

    Attributes:
      first, second: the AUROCs.
      difference: first - second.
      error: standard error of the difference.
      low, high: 95 % interval of the difference.
      p: two-sided, of the hypothesis that they are equal; 1 where the difference is 0 with no error.
    """

    first: float
    second: float
    difference: float
    error: float
    low: float
    high: float
    p: float


def components(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V10 [m] of the positives and V01 [n] of the negatives, float64, in the order of the images.

    Args:
      scores: float [m + n].
      labels: [m + n] of 0 and 1, both present.
    """
    positive = labels == 1
    x, y = scores[positive], scores[~positive]
    ranks = stats.rankdata(scores)
    v10 = (ranks[positive] - stats.rankdata(x)) / len(y)
    v01 = 1 - (ranks[~positive] - stats.rankdata(y)) / len(x)
    return v10, v01


def covariance(
    scores: np.ndarray, labels: np.ndarray, patient: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs [k] of k models on the same images, and their covariance [k, k], float64.

    Args:
      scores: float [k, images].
      labels: [images] of 0 and 1.
      patient: int [images], for the covariance between patients; None takes images for independent.

    Raises:
      ValueError: fewer than two of a class, or patients with one; there is no variance then.
    """
    labels = np.asarray(labels)
    m, n = int((labels == 1).sum()), int((labels == 0).sum())
    if min(m, n) < 2:
        raise ValueError(f"{m} positives and {n} negatives; DeLong's variance needs two of each")
    parts = [components(np.asarray(s, np.float64), labels) for s in scores]
    v10, v01 = (np.stack(v) for v in zip(*parts, strict=True))
    areas = v10.mean(axis=1)
    if patient is None:
        return areas, np.cov(v10) / m + np.cov(v01) / n
    _, patient = np.unique(patient, return_inverse=True)
    of_positive, of_negative = patient[labels == 1], patient[labels == 0]
    with_positive, with_negative, count = (len(np.unique(v)) for v in (of_positive, of_negative, patient))
    if min(with_positive, with_negative) < 2:
        raise ValueError(
            f"{with_positive} patients with a positive and {with_negative} with a negative; the variance between "
            "patients needs two of each"
        )

    def summed(values: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(of, v - a, count) for v, a in zip(values, areas, strict=True)])

    x, y = summed(v10, of_positive) / m, summed(v01, of_negative) / n
    cross = x @ y.T * count / (count - 1)
    within = x @ x.T * with_positive / (with_positive - 1) + y @ y.T * with_negative / (with_negative - 1)
    return areas, within + cross + cross.T


def test(first: np.ndarray, second: np.ndarray, labels: np.ndarray, patient: np.ndarray | None = None) -> Test:
    """Compares two models' scores [images] of the same images; arguments and errors as of :func:`covariance`."""
    areas, cov = covariance(np.stack([first, second]), labels, patient)
    difference = float(areas[0] - areas[1])
    error = float(np.sqrt(max(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1], 0.0)))
    half = float(stats.norm.ppf(0.975)) * error
    equal = 1.0 if difference == 0 else 0.0
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error > 0 else equal
    return Test(float(areas[0]), float(areas[1]), difference, error, difference - half, difference + half, p)
