"""Metrics by stratum: by what the report says of a finding, and by view, sex, age or groups that a user gives.

A dimension divides the images, or the pairs of an image and a finding, into levels; each level is scored by itself with
the same bootstrap over patients. AUROC within a level says how well its own images are ranked: a level may rank worse
for being harder, and not for being treated worse.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.results import operating, score

UNKNOWN = "unknown"
CERTAINTY = ("certain", "hedged", "not mentioned")
AGES = {"under 18": (0, 17), "18-39": (18, 39), "40-59": (40, 59), "60-79": (60, 79), "80 and over": (80, 999)}
MOST_LEVELS = 12  # of a dimension; the rarest others are scored together
OTHERS = "others"

# dimension -> level -> bool [n] or [n, c]
Strata = dict[str, dict[str, np.ndarray]]


def by_certainty(p: np.ndarray, mentioned: np.ndarray) -> dict[str, np.ndarray]:
    """What reports say of each finding: plainly present or absent, hedged, or nothing.

    Args:
      p: float [n, c], the certainty of the wording, see ``findings.state_of``; anything where nothing is mentioned.
      mentioned: bool [n, c].

    Returns:
      level -> bool [n, c], each pair in one level.
    """
    states = np.round(np.where(mentioned, p, 1.0), 6)
    certain = (states >= findings_lib.CERTAIN) | (states <= round(1 - findings_lib.CERTAIN, 6))
    return {"certain": mentioned & certain, "hedged": mentioned & ~certain, "not mentioned": ~mentioned}


def by_age(age: np.ndarray) -> dict[str, np.ndarray]:
    """Age groups, of years [n]; negative is unknown. Levels without an image are left out."""
    levels = {name: (age >= low) & (age <= high) for name, (low, high) in AGES.items()}
    levels[UNKNOWN] = age < 0
    return {name: of for name, of in levels.items() if of.any()}


def by_name(values: Sequence[str]) -> dict[str, np.ndarray]:
    """A level for each text of n, the commonest first, "" as unknown, rare ones together."""
    names = np.array([value.strip() or UNKNOWN for value in values], dtype=object)
    found, counts = np.unique(names.astype(str), return_counts=True)
    ordered = [str(found[i]) for i in np.lexsort((found, -counts))]
    kept = ordered if len(ordered) <= MOST_LEVELS else ordered[: MOST_LEVELS - 1]
    levels = {name: names == name for name in kept}
    if len(kept) < len(ordered):
        levels[OTHERS] = ~np.any(list(levels.values()), axis=0)
    return levels


def measure(
    probabilities: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    patient_ids: Sequence[str],
    vocabulary: findings_lib.Vocabulary,
    strata: Strata,
    thresholds: Mapping[str, float | None],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores every level of every dimension.

    Args:
      probabilities, labels, mask, patient_ids, vocabulary, replicates, seed: as in ``score.score``.
      strata: from the functions above. A dimension with one level is left out: it would repeat the whole.
      thresholds: finding -> threshold, for sensitivity and specificity.

    Returns:
      dimension -> level -> {"images": with a label in the level, "labels", "positives", "findings": {finding: {"n",
      "positives", metric: entry}}, "mean": {metric: entry}}; metrics are those of ``score.score``, and sensitivity and
      specificity at the thresholds.
    """
    probabilities, labels, mask = (np.asarray(a) for a in (probabilities, labels, mask))
    score.check(probabilities, labels, mask, patient_ids, vocabulary)
    _, patient = np.unique(np.asarray(patient_ids), return_inverse=True)
    made: dict[str, Any] = {}
    for dimension, levels in strata.items():
        if len(levels) < 2:
            continue
        made[dimension] = {}
        for level, of in levels.items():
            inside = mask & (of if of.ndim == 2 else of[:, None])
            scores = np.where(inside, probabilities, 0).astype(np.float32)
            targets = np.where(inside, labels, 0).astype(np.int8)
            rows, mean = score.measured(scores, targets, inside, patient, vocabulary, replicates=replicates, seed=seed)
            called = operating.measure(
                scores,
                targets,
                inside,
                patient,
                thresholds,
                vocabulary.findings,
                patients=int(patient.max()) + 1,
                replicates=replicates,
                seed=seed,
            )
            for name in ("sensitivity", "specificity"):
                mean[name] = called["mean"][name]
                for finding, row in rows.items():
                    row[name] = called["findings"][finding][name]
            made[dimension][level] = {
                "images": int(inside.any(axis=1).sum()),
                "labels": int(inside.sum()),
                "positives": int(targets.sum()),
                "findings": rows,
                "mean": mean,
            }
    return made
