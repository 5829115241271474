"""Which films a page shows: the most confident errors, and those whose reports would hedge most.

The extremes of one finding would fill a row: a finding gets a third of it at most, while there are others.
"""

from collections import Counter

import numpy as np

Pairs = list[tuple[int, int]]  # (image, finding)


def _pick(order: np.ndarray, images: np.ndarray, findings: np.ndarray, count: int, used: set[int]) -> Pairs:
    """``count`` pairs in that order, of images that are not ``used``, which they are from then on."""
    made: Pairs = []
    of_finding: Counter[int] = Counter()
    for most in (-(-count // 3), count):
        for k in order:
            i, j = int(images[k]), int(findings[k])
            if len(made) == count:
                break
            if i not in used and of_finding[j] < most:
                used.add(i)
                of_finding[j] += 1
                made.append((i, j))
    place = {pair: at for at, pair in enumerate(zip(images[order].tolist(), findings[order].tolist(), strict=True))}
    return sorted(made, key=lambda pair: place[pair])


def errors(probability: np.ndarray, labels: np.ndarray, mask: np.ndarray, count: int) -> tuple[Pairs, Pairs]:
    """The worst false alarms, highest probability first, and the worst misses, lowest first; a film is shown once.

    Args:
      probability: float [n, c].
      labels: [n, c] of 0 and 1; anything where the mask is off.
      mask: bool [n, c].
      count: of each kind at most. Of few films half are left to the misses.
    """
    used: set[int] = set()
    count = min(count, -(-int(mask.any(axis=1).sum()) // 2))
    found = []
    for present in (0, 1):
        images, findings = np.nonzero(mask & (labels == present))
        p = probability[images, findings]
        order = np.argsort(p if present else -p, kind="stable")
        found.append(_pick(order, images, findings, count, used))
    return found[0], found[1]


def hedged(rate: np.ndarray, count: int) -> Pairs:
    """The films with the highest predicted rates, float [n, c], the highest first."""
    n, c = rate.shape
    order = np.argsort(-rate, axis=None, kind="stable")
    return _pick(order, np.repeat(np.arange(n), c), np.tile(np.arange(c), n), count, set())
