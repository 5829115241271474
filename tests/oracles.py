"""What metrics are compared with: written from the definitions, in float64, without regard to speed."""

import numpy as np

from repgls_jax.results import metrics


def ece_oracle(p, y, w):
    """Straight from the definition: an image's bin is floor(15 * share of the weight with a higher p)."""
    p, y, w = (np.asarray(a, np.float64) for a in (p, y, w))
    total = w.sum()
    bins = np.array([int(metrics.BINS * w[p > v].sum() // total) for v in p])
    gaps = [abs((w * (p - y))[bins == b].sum()) for b in range(metrics.BINS)]
    return sum(gaps) / total
