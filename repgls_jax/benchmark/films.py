"""Methods on real films whose labels are known: a simulated reader hedges, patient-grouped cross-validation scores.

No public set comes with the certainty of its labels and with labels that are right. Here the labels of the set count as
the truth y, and a reader is simulated who sees of finding k only

  v ~ N((2y - 1) d^2 / 2, d^2),  which is the log likelihood ratio of v itself,

so that the belief p = sigmoid(logit(prevalence_k) + v) is calibrated, and a wording of certainty p is wrong, whichever
side it takes, with probability min(p, 1 - p): flips depend on the hedge. The belief is put in words at the nearest of
:data:`LEVELS`, the anchors of the wording; a finding believed at less than half of the lowest hedge is sometimes not
mentioned. The reader's evidence is independent of the film given the truth: that a reader sees what the network sees
cannot be simulated without knowing more of the film than its labels.
"""

import dataclasses

import numpy as np

from repgls_jax import findings as findings_lib

# Certainties of wording: negation, unlikely, cannot exclude, possible, suggestive, likely, most likely, assertion.
LEVELS = np.array([0.0, 0.15, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the simulated reader sees and speaks.

    Attributes:
      distance: d, how well a present finding is told from an absent one; AUROC is Phi(d / sqrt(2)).
      silence: share of findings taken for absent that the report does not mention, in [0, 1].
    """

    distance: float = 2.0
    silence: float = 0.5


def read(truth: np.ndarray, reading: Reading, seed: int) -> dict[str, np.ndarray]:
    """What reports would say of films.

    Args:
      truth: [n, c] of 0 and 1.
      reading: how.
      seed: of the reader's noise and of what is left unsaid.

    Returns:
      ``state`` int8 [n, c], ``p`` float32 [n, c] (NaN where not mentioned), ``observed`` bool [n, c] (all True),
      ``truth`` int8 [n, c], ``belief`` float32 [n, c].
    """
    random = np.random.default_rng(seed)
    prevalence = np.clip(truth.mean(0), 1e-3, 1 - 1e-3)
    d = reading.distance
    view = (2.0 * truth - 1.0) * d**2 / 2.0 + d * random.standard_normal(truth.shape)
    belief = 1.0 / (1.0 + np.exp(-(np.log(prevalence / (1.0 - prevalence)) + view)))
    p = LEVELS[np.abs(belief[..., None] - LEVELS).argmin(-1)]
    silent = (p == 0.0) & (random.random(truth.shape) < reading.silence)
    state = np.full(truth.shape, findings_lib.UNCERTAIN, np.int8)
    state[p >= findings_lib.CERTAIN] = findings_lib.POSITIVE
    state[p == 0.0] = findings_lib.NEGATIVE
    state[silent] = findings_lib.NOT_MENTIONED
    return {
        "state": state,
        "p": np.where(silent, np.nan, p).astype(np.float32),
        "observed": np.ones(truth.shape, bool),
        "truth": truth.astype(np.int8),
        "belief": belief.astype(np.float32),
    }


def folds(patient_ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Fold [n] of each film, in [0, count): patients, with all their films, are dealt in an order drawn from ``seed``.

    Raises:
      ValueError: there are fewer patients than folds.
    """
    patients, patient = np.unique(patient_ids, return_inverse=True)
    if len(patients) < count:
        raise ValueError(f"{len(patients)} patients cannot be dealt into {count} folds; take fewer folds")
    return (np.random.default_rng(seed).permutation(len(patients)) % count)[patient]
