"""The verdict: paired differences between arms, with intervals over seeds and over patients.

A seed is a hospital of its own, so the interval over seeds (Student's t of the paired differences) holds the sampling
of patients, readers and reports, and of training. The interval over patients holds the trained models fixed and draws
test patients: the paired percentile bootstrap within each hospital, averaged over hospitals.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from repgls_jax.results import bootstrap

Values = Mapping[str, Sequence[float]]  # arm -> value of each seed, seeds in one order
Draws = Mapping[str, np.ndarray]  # arm -> [seeds, replicates], paired between arms


@dataclasses.dataclass(frozen=True)
class Difference:
    """``first - second``.

    Attributes:
      first, second: arms.
      value: mean over seeds.
      seeds: 95 % interval over seeds, (low, high); NaN with fewer than two.
      patients: 95 % interval over test patients; NaN where there are no draws.
      each: of each seed.
    """

    first: str
    second: str
    value: float
    seeds: tuple[float, float]
    patients: tuple[float, float]
    each: tuple[float, ...]

    @property
    def sign(self) -> int:
        """1 or -1 where both intervals exclude zero on that side, else 0."""
        bounds = np.array([self.seeds, self.patients])
        return int((bounds > 0).all()) - int((bounds < 0).all())

    @property
    def word(self) -> str:
        """The sign in words."""
        return {1: "better", -1: "worse", 0: "not told apart"}[self.sign]


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval for the mean; NaN with fewer than two values."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.5 + bootstrap.LEVEL / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half)


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    found = bootstrap.interval(draws)
    return float(found.low), float(found.high)


def difference(values: Values, draws: Draws, first: str, second: str) -> Difference:
    """The paired difference of a metric between two arms.

    Args:
      values: of every arm and seed.
      draws: of the arms that were bootstrapped.
      first, second: arms.
    """
    each = np.asarray(values[first], np.float64) - np.asarray(values[second], np.float64)
    patients = (float("nan"), float("nan"))
    if first in draws and second in draws:
        patients = _percentiles((draws[first] - draws[second]).mean(axis=0))
    return Difference(first, second, float(each.mean()), t_interval(each.tolist()), patients, tuple(each.tolist()))


def best_fixed(values: Values, fixed: Sequence[str]) -> str:
    """The arm of ``fixed`` with the best mean: the hardest of them to beat, chosen on the test seeds themselves."""
    return max((arm for arm in fixed if arm in values), key=lambda arm: float(np.mean(values[arm])))


@dataclasses.dataclass(frozen=True)
class Recovered:
    """Share of the way from ``start`` to ``goal`` that an arm has gone, (arm - start) / (goal - start) of the means.

    Attributes:
      arm, start, goal: names.
      value: the share; NaN where the goal is no better than the start, and there is no way to go.
      seeds: 95 % interval over seeds, by the bootstrap of hospitals: a quotient has no t interval.
      patients: 95 % interval over patients.
    """

    arm: str
    start: str
    goal: str
    value: float
    seeds: tuple[float, float]
    patients: tuple[float, float]


def recovered(
    values: Values, draws: Draws, arm: str, start: str, goal: str, replicates: int = 2000, seed: int = 0
) -> Recovered:
    """See :class:`Recovered`. Hospitals are drawn ``replicates`` times, with replacement."""
    a, b, c = (np.asarray(values[name], np.float64) for name in (arm, start, goal))
    rows = np.random.default_rng(seed).integers(0, len(a), (replicates, len(a)))
    seeds = _percentiles(_share(a[rows].mean(1), b[rows].mean(1), c[rows].mean(1))) if len(a) > 1 else (np.nan,) * 2
    patients = (float("nan"), float("nan"))
    if all(name in draws for name in (arm, start, goal)):
        patients = _percentiles(_share(*(draws[name].mean(axis=0) for name in (arm, start, goal))))
    value = float(_share(a.mean(), b.mean(), c.mean()))
    return Recovered(arm, start, goal, value, seeds, patients)


def _share(arm: Any, start: Any, goal: Any) -> np.ndarray:
    way = np.asarray(goal - start, np.float64)
    return np.where(way > 0, np.asarray(arm - start) / np.where(way > 0, way, 1.0), np.nan)


def claims(
    values: Values, draws: Draws, controls: Mapping[str, str], fixed: Sequence[str]
) -> tuple[list[Difference], list[Recovered]]:
    """What the project claims of rates: better than shuffled ones and than every fixed policy, and by how much.

    Args:
      values: AUROC of every arm and seed.
      draws: see :func:`difference`.
      controls: arm that the claims are about -> the arm with the same rates shuffled, "" where there is none.
      fixed: fixed policies, hard labels among them.

    Returns:
      Differences of each arm to its control and to every fixed policy, and what each recovers of the way from the best
      of those to clean labels.
    """
    known = {arm: control for arm, control in controls.items() if arm in values}
    differences = [
        difference(values, draws, arm, other)
        for arm, control in known.items()
        for other in (control, *fixed)
        if other in values
    ]
    if "clean" not in values or not any(arm in values for arm in fixed):
        return differences, []
    start = best_fixed(values, fixed)
    return differences, [recovered(values, draws, arm, start, "clean") for arm in known]
