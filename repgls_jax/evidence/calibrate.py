"""What a site's labels say of each cue: how often a finding is there when it is worded so.

The model. A cue c of a category g was used n times on findings whose label is known, and k of them were present:

  k | theta ~ Binomial(n, theta_c),  theta_c ~ Beta(s_g m_c, s_g (1 - m_c)),  logit m_c = logit p_c + a_g

p_c is the p that the lexicon gives the cue (kept within [.005, .995]), so that m_c is the category's calibrated curve:
the lexicon's, shifted in log-odds by a_g ~ N(0, 1.5^2). s_g is worth that many labels: log s_g ~ N(log 10, 1.5^2),
cut to [0, log 1000].
Given a_g and s_g, theta_c is Beta(s_g m_c + k, s_g (1 - m_c) + n - k): a cue with many labels follows them, one with
few stays near its category, and one with none moves with it, so that "most likely" keeps above "likely". Both are
integrated out on a grid rather than set to their best value, since a category has few cues; this is the hierarchical
model of Gelman et al., Bayesian Data Analysis, 3rd ed., section 5.3, with a prior mean that depends on the cue. The
posterior's first two moments give p; a Beta with the same moments gives the interval.

Labels of one study are counted as independent, and so are studies.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import special, stats

from repgls_jax.reports import override as override_lib

FOLDS = 5
_EDGE = 0.005
_SHIFT = np.linspace(-7.0, 7.0, 281)  # a_g
_STRENGTH = np.geomspace(1.0, 1000.0, 25)  # s_g


@dataclasses.dataclass(frozen=True)
class Cues:
    """The rows of a calibration table, m of them.

    Attributes:
      ids: see :func:`repgls_jax.reports.override.key`.
      category: of each.
      own: float64 [m], the p that each stands for.
    """

    ids: tuple[str, ...]
    category: tuple[str, ...]
    own: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fit:
    """Calibrated certainties.

    Attributes:
      p, low, high: float64 [m], posterior mean in (0, 1) and 95 % interval of each cue of a category with labels.
      shift, strength: category -> posterior mean of a_g and of log s_g, as a log-odds and as a number of labels.
    """

    p: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shift: Mapping[str, float]
    strength: Mapping[str, float]


def fit(cues: Cues, n: np.ndarray, present: np.ndarray) -> Fit:
    """Fits the model above.

    Args:
      cues: what to fit.
      n, present: int [m], labels known of findings worded with each cue, and how many of them are present.

    Returns:
      The calibrated certainties. A category without any label keeps its own p, without an interval (NaN), and has no
      shift.
    """
    n, present = np.asarray(n, np.float64), np.asarray(present, np.float64)
    mean, spread = cues.own.copy(), np.zeros(len(cues.ids))
    shift, strength = {}, {}
    for group in dict.fromkeys(c for c, count in zip(cues.category, n, strict=True) if count):
        member = np.array([c == group for c in cues.category])
        own = np.clip(cues.own[member], _EDGE, 1 - _EDGE)
        # Most cues are alike: rare ones have the same few counts.
        kinds, kind, times = np.unique(
            np.stack([own, n[member], present[member]]), axis=1, return_inverse=True, return_counts=True
        )
        weight, first, second = _posterior(kinds[0], kinds[1], kinds[2], times)
        mean[member] = np.tensordot(weight, first, axes=2)[kind.ravel()]
        spread[member] = np.tensordot(weight, second, axes=2)[kind.ravel()] - mean[member] ** 2
        shift[group] = float(weight.sum(axis=1) @ _SHIFT)
        strength[group] = float(np.exp(weight.sum(axis=0) @ np.log(_STRENGTH)))
    with np.errstate(divide="ignore", invalid="ignore"):
        total = mean * (1 - mean) / spread - 1  # of the Beta with these moments
    low, high = (stats.beta.ppf(q, mean * total, (1 - mean) * total) for q in (0.025, 0.975))
    return Fit(mean, low, high, shift, strength)


def _posterior(
    own: np.ndarray, n: np.ndarray, present: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The grid's posterior for one category, whose m kinds of cue stand ``times`` [m] each.

    Returns:
      Weights [a, s] of the grid's points; E theta and E theta^2 [a, s, m] at each of them.
    """
    prior = special.expit(special.logit(own)[None, None, :] + _SHIFT[:, None, None])
    strength = _STRENGTH[None, :, None]
    alpha, beta = prior * strength, (1 - prior) * strength
    log = (special.betaln(alpha + present, beta + n - present) - special.betaln(alpha, beta)) @ times
    log += stats.norm.logpdf(_SHIFT, 0, 1.5)[:, None] + stats.norm.logpdf(np.log(_STRENGTH), np.log(10), 1.5)[None, :]
    weight = np.exp(log - special.logsumexp(log))
    total = strength + n
    first = (alpha + present) / total
    return weight, first, first * (alpha + present + 1) / (total + 1)


@dataclasses.dataclass(frozen=True)
class Mentions:
    """Mentions whose finding has a label, m of them.

    Attributes:
      cues: the table's rows.
      cue: int [m], row of each.
      finding: int [m], index into ``findings``.
      findings: names.
      study: int [m], number of the study.
      p: float64 [m], what the wording expresses.
      plain: bool [m], whether ``p`` is the cue's own; only these are fitted. The others (shared between alternatives,
        signs, qualified negations) move along, see :mod:`repgls_jax.reports.override`.
      hedged: bool [m], whether the state is uncertain.
      present: int8 [m], the label.
    """

    cues: Cues
    cue: np.ndarray
    finding: np.ndarray
    findings: tuple[str, ...]
    study: np.ndarray
    p: np.ndarray
    plain: np.ndarray
    hedged: np.ndarray
    present: np.ndarray


def counts(mentions: Mentions, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels and present ones [rows] of each cue's plain uses, of all mentions or of those ``among`` [m] bool."""
    use = mentions.plain if among is None else mentions.plain & among
    size = len(mentions.cues.ids)
    n = np.bincount(mentions.cue[use], minlength=size)
    return n, np.bincount(mentions.cue[use], mentions.present[use], minlength=size).astype(np.int64)


def moved(mentions: Mentions, new: np.ndarray) -> np.ndarray:
    """The p [m] of mentions once cues stand for ``new`` [rows]: what the engine gives them under that override."""
    pairs, index = np.unique(np.stack([mentions.cue.astype(np.float64), mentions.p]), axis=1, return_inverse=True)
    own = mentions.cues.own
    moves = [override_lib.move(p, own[int(c)], new[int(c)]) for c, p in pairs.T.tolist()]
    return np.array(moves)[index.ravel()]


def out_of_fold(mentions: Mentions, seed: int = 0) -> np.ndarray:
    """The p [m] of each mention under a fit that has not seen its study: studies are dealt into :data:`FOLDS` folds."""
    names, study = np.unique(mentions.study, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    made = np.empty(len(mentions.p))
    for k in range(FOLDS):
        held = fold[study] == k
        made[held] = moved(mentions, fit(mentions.cues, *counts(mentions, ~held)).p)[held]
    return made


def uneven(mentions: Mentions) -> list[tuple[str, str, float, str, float]]:
    """Cues that mean different things for different findings, so that their one p hides it.

    Among findings with ten labels or more of a cue's plain uses: shares at least .2 apart, and Pearson's test of one
    share for all refuses at .001.

    Returns:
      (cue, finding with the lowest share, that share, finding with the highest share, that share).
    """
    made = []
    size = len(mentions.findings)
    for row in np.unique(mentions.cue[mentions.plain]):
        use = mentions.plain & (mentions.cue == row)
        n = np.bincount(mentions.finding[use], minlength=size)
        k = np.bincount(mentions.finding[use], mentions.present[use], minlength=size)
        many = np.flatnonzero(n >= 10)
        n, k = n[many], k[many]
        if len(many) < 2 or np.ptp(k / n) < 0.2:
            continue
        if stats.chi2_contingency(np.stack([k, n - k])).pvalue < 0.001:
            low, high = int(np.argmin(k / n)), int(np.argmax(k / n))
            ends = ((mentions.findings[many[i]], float(k[i] / n[i])) for i in (low, high))
            (a, at_a), (b, at_b) = ends
            made.append((mentions.cues.ids[row], a, at_a, b, at_b))
    return made


def table(cues: Cues, fitted: Fit, n: np.ndarray, present: np.ndarray) -> list[dict[str, str]]:
    """Rows of an override file (columns of :data:`repgls_jax.reports.override.COLUMNS`), the most used cue first.

    A cue without a label is there if its category has one.
    """
    used = {c for c, count in zip(cues.category, n, strict=True) if count}
    made = []
    for i in np.argsort(-n, kind="stable"):
        if cues.category[i] in used:
            numbers = [f"{min(max(v[i], 1e-6), 1 - 1e-6):.6f}" for v in (fitted.p, fitted.low, fitted.high)]
            row = (cues.ids[i], *numbers, str(n[i]), str(present[i]), f"{cues.own[i]:g}")
            made.append(dict(zip(override_lib.COLUMNS, row, strict=True)))
    return made
