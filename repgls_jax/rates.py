"""From certainty to rate: the expert map, and the permuted control.

The map is this project's decision (the paper's is not public): a wording that a reader understands as probability p of
presence gives the hard label ``y = 1[p >= 1/2]`` and the rate ``r = min(2p, 2(1 - p))``, so that the GLS target
``(1 - r) y + r / 2`` is p itself.
"""

from typing import Any

import numpy as np

from repgls_jax.findings import CERTAIN

# |r| < 1 keeps the target on y's side of one half. .95 leaves a wording of p = .5 a pull of .025 towards its label.
R_MAX = 0.95


def hedge_rate(p: Any, xp: Any = np) -> Any:
    """``min(2p, 2(1 - p))`` clipped at :data:`R_MAX`: [...] of the module ``xp`` (numpy, or jax.numpy when traced)."""
    return xp.minimum(xp.minimum(2 * p, 2 * (1 - p)), R_MAX)


def expert_rates(p: np.ndarray, rho: float = 0.0, r_blank: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Hard labels and rates of certainties.

    Args:
      p: [...] float, probability of presence in [0, 1]; NaN where the finding is not mentioned.
      rho: sharpening of plain assertions and negations, in [0, 1): their rate becomes ``-rho``.
      r_blank: rate of findings that are not mentioned, in (-1, 1); their label is 0.

    Returns:
      (y, r): [...] int8 labels in {0, 1}, and [...] float32 rates in (-1, 1).

    Raises:
      ValueError: p, rho or r_blank is outside its range.
    """
    p = np.asarray(p, np.float32)
    blank = np.isnan(p)
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"certainty p spans [{np.nanmin(p)}, {np.nanmax(p)}]; expected probabilities in [0, 1]")
    if not 0 <= rho < 1:
        raise ValueError(f"rho is {rho}; expected [0, 1)")
    if not -1 < r_blank < 1:
        raise ValueError(f"r_blank is {r_blank}; expected (-1, 1)")
    y = p >= 0.5  # False for NaN
    r = hedge_rate(p)
    if rho:
        r = np.where((p >= CERTAIN) | (p <= 1 - CERTAIN), -rho, r)
    return y.astype(np.int8), np.where(blank, r_blank, r).astype(np.float32)


def sharpening(flip_rate: float) -> float:
    """The rho that undoes symmetric label flips exactly, ``2e / (1 - 2e)``.

    With ``r = -rho`` GLS is the unbiased loss of Natarajan et al. (NeurIPS 2013) up to scale.

    Args:
      flip_rate: share e of labels flipped either way, in [0, .25); from .25 on the rate would leave (-1, 1).

    Raises:
      ValueError: the flip rate is outside [0, .25).
    """
    if not 0 <= flip_rate < 0.25:
        raise ValueError(f"flip rate is {flip_rate}; expected [0, .25): at .25 the rate reaches -1")
    return 2 * flip_rate / (1 - 2 * flip_rate)


def permute(rates: np.ndarray, y: np.ndarray, among: np.ndarray, seed: int) -> np.ndarray:
    """The control for sample-dependence: rates shuffled among the studies of a finding that share a label.

    Keeps every finding's distribution of rates given its label and breaks the link with the study.

    Args:
      rates: [n, c] float32.
      y: [n, c] labels in {0, 1}.
      among: [n, c] bool, the entries that take part (those the loss sees); the others stay.
      seed: of the shuffle.

    Returns:
      [n, c] float32, a new array.
    """
    rng = np.random.default_rng(seed)
    shuffled = rates.copy()
    for k in range(rates.shape[1]):
        for label in (0, 1):
            (rows,) = np.nonzero(among[:, k] & (y[:, k] == label))
            shuffled[rows, k] = rates[rng.permutation(rows), k]
    return shuffled
