"""Thresholds of the probability for an export, chosen on the validation split of the run that trained the model."""

from typing import Any

import numpy as np


def youden(probability: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> list[float | None]:
    """The threshold with the largest sensitivity + specificity - 1 (Youden, Cancer 3, 1950) of each finding.

    A film is called from the threshold up. It lies halfway to the next lower probability, so that rounding elsewhere
    changes no call here; of equally good ones it is the highest.

    Args:
      probability: float [n, c].
      labels: [n, c] of 0 and 1.
      mask: bool [n, c], True where the label counts.

    Returns:
      c thresholds; None for a finding with one class.
    """
    found: list[float | None] = []
    for j in range(probability.shape[1]):
        score, label = probability[mask[:, j], j].astype(np.float64), labels[mask[:, j], j].astype(bool)
        positives, negatives = label.sum(), (~label).sum()
        if not positives or not negatives:
            found.append(None)
            continue
        values = np.unique(score)[::-1]
        true = np.array([(score[label] >= v).mean() for v in values])
        false = np.array([(score[~label] >= v).mean() for v in values])
        best = int(np.argmax(true - false))
        lower = values[best + 1] if best + 1 < len(values) else 0.0
        found.append(float((values[best] + lower) / 2))
    return found


def told(values: list[float | None], findings: tuple[str, ...], images: int, against: str) -> dict[str, Any]:
    """As JSON: rule -> finding -> threshold, with what they were chosen on."""
    return {
        "split": "valid",
        "images": images,
        "reference": against,
        "rules": {"youden": dict(zip(findings, values, strict=True))},
    }
