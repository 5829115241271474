"""The metrics of :mod:`repgls_jax.results.metrics` under many sets of weights at once, in float64 on the CPU.

A patient-level bootstrap weights every image by how often its patient was drawn. All replicates of a finding share
one sort, and what differs between them is sums of weights over runs of ranks. These sums are the product of a sparse
matrix, runs x patients, with the matrix of draws, patients x replicates: each image is added once to a row of r
numbers. The ranking metrics need a run only for every distinct score of a positive, so that all further work is in
proportion to the positives, which are few. Whole weights make the sums exact, and so the metrics are scikit-learn's to
rounding.

The edges of ECE's bins lie elsewhere in each replicate: sums over blocks of ranks find the block of an edge, and the
images of that block the rank.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from repgls_jax.results.metrics import BINS

_BLOCK = 64  # images, or one group of equal scores where that is larger
_EXACT = 2**24  # whole numbers below it are float32s
_SUMMED = 8  # rows that are added one after the other before their sums are


class Finding:
    """One finding's images, sorted once.

    Attributes:
      images: m, those that count.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray, mask: np.ndarray, patient: np.ndarray, patients: int):
        """Sorts.

        Args:
          scores: float [n], probabilities; logits do for AUROC and AUPRC.
          labels: [n] of 0 and 1; anything where the mask is off.
          mask: bool [n], True where the label counts.
          patient: int [n] in [0, patients).
          patients: number of patients.
        """
        kept = np.flatnonzero(mask)
        order = kept[np.argsort(-scores[kept], kind="stable")]
        self.images, self._patients = len(order), patients
        self._patient = patient[order].astype(np.int64)
        self._valid = bool(np.isfinite(scores[order]).all())
        # Differences of stored scores, not of float64 ones: equal scores are equal bits.
        self._start = np.append(True, np.diff(scores[order]) != 0)[: self.images]
        self._sort_positives(labels[order].astype(bool))
        self._gap = scores[order].astype(np.float64) - labels[order]
        self._cut_blocks()

    def _matrix(self, row: np.ndarray, rows: int, values: np.ndarray | None = None) -> sparse.csr_array:
        """[rows, patients]: what each image adds to the sum ``row`` [m] of its rank; -1 adds to none."""
        data = np.ones(self.images, np.float32) if values is None else values
        used = row >= 0
        shape = (rows, self._patients)
        return sparse.csr_array((data[used], (row[used], self._patient[used])), shape=shape)

    def _sort_positives(self, label: np.ndarray) -> None:
        """Sums of weights by the k distinct scores of positives: of positives [k]; of negatives between these scores,
        from above the first to below the last [k + 1]; of negatives that have such a score, in the rows ``tied`` of k.
        """
        group = np.cumsum(self._start) - 1
        with_positive = np.zeros(int(group[-1]) + 1 if self.images else 0, bool)
        with_positive[group[label]] = True
        k = int(with_positive.sum())
        at, here = (np.cumsum(with_positive) - with_positive)[group], with_positive[group]
        self._positives = self._matrix(np.where(label, at, -1), k)
        # Those that are tied are below the score as well as beside it: the sum above it has none of them.
        self._negatives = self._matrix(np.where(label, -1, at + here), k + 1)
        tied = here & ~label
        self._tied, row = np.unique(at[tied], return_inverse=True)
        rows = np.full(self.images, -1)
        rows[tied] = row
        self._ties = self._matrix(rows, len(self._tied))

    def _cut_blocks(self) -> None:
        """Cuts the ranks into blocks of at most :data:`_BLOCK` images, or of one score alone, for sums of weights and
        of p - y.
        """
        firsts = np.append(np.flatnonzero(self._start), self.images)
        wanted = np.arange(0, self.images, _BLOCK)
        at = [firsts[np.searchsorted(firsts, wanted, side="right") - 1], firsts[np.searchsorted(firsts, wanted)]]
        self._blocks = np.unique(np.append(np.concatenate(at), self.images))
        count = len(self._blocks) - 1
        row = np.repeat(np.arange(count), np.diff(self._blocks))
        self._weights, self._gaps = self._matrix(row, count), self._matrix(row, count, self._gap)
        self._squares = np.bincount(self._patient, self._gap**2, self._patients)

    def measure(self, draws: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Metrics under each set of weights.

        Args:
          draws: float32 [patients, r], not negative whole numbers: the weight of every image of a patient.
          names: keys of :data:`METRICS`.

        Returns:
          name -> float64 [r]; NaN where a metric is not defined.
        """
        if self.images * float(draws.max(initial=0)) >= _EXACT:
            draws = draws.astype(np.float64)
        made: dict[str, np.ndarray] = {}
        for compute in dict.fromkeys(METRICS[name] for name in names):
            made |= compute(self, draws)
        blank = np.full(draws.shape[1], np.nan)
        return {name: made[name] if self._valid else blank for name in names}

    def ranking(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """AUROC (Mann-Whitney, ties count half) and AUPRC (average precision); NaN with fewer than two classes."""
        p = (self._positives @ draws).astype(np.float64)
        above = _running((self._negatives @ draws).astype(np.float64))  # negatives above each score; at last, all
        negatives, above = above[-1], above[:-1]
        tied = (self._ties @ draws).astype(np.float64)
        pairs = np.einsum("kr,kr->r", p, negatives - above)
        pairs -= np.einsum("kr,kr->r", p[self._tied], tied) / 2
        found = _running(p.copy())  # positives at or above each score
        above += found
        above[self._tied] += tied
        found /= np.maximum(above, 1.0, out=above)  # without an image at or above, 0 of whole weights
        weighted = np.einsum("kr,kr->r", p, found)
        total = p.sum(axis=0)
        both = (total > 0) & (negatives > 0)
        nothing = np.full(len(total), np.nan)
        return {
            "auroc": np.divide(pairs, total * negatives, out=nothing.copy(), where=both),
            "auprc": np.divide(weighted, total, out=nothing, where=both),
        }

    def calibration(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Brier score and ECE in :data:`BINS` bins of equal weight; NaN without a labelled image."""
        double = draws.astype(np.float64)
        r = draws.shape[1]
        none = np.zeros((1, r))
        weight = np.vstack([none, _running((self._weights @ draws).astype(np.float64))])
        error = np.vstack([none, _running(self._gaps @ double)])
        total = weight[-1]
        sums = self._binned(draws, weight, error) if self.images else none
        defined = total > 0
        nothing = np.full(r, np.nan)
        return {
            "brier": np.divide(self._squares @ double, total, out=nothing.copy(), where=defined),
            "ece": np.divide(np.abs(sums).sum(axis=0), total, out=nothing, where=defined),
        }

    def _binned(self, draws: np.ndarray, weight: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Sums of weight * (p - y) in each bin, float64 [BINS, r]; bin b begins at the first score with at least the
        share b / BINS of the weight above it.

        Args:
          draws: [patients, r].
          weight, error: float64 [blocks + 1, r], sums of weight, and of weight * (p - y), above each block.
        """
        edges = np.arange(1, BINS)[:, None] * weight[-1]  # times BINS as on the left below: exact for whole weights
        # The last block that begins with less than an edge's weight above it. The edge is in it, or ends it.
        block = np.stack([(BINS * weight[:-1] < edge).sum(axis=0) - 1 for edge in edges]).clip(0)
        column = np.arange(draws.shape[1])
        first, last = self._blocks[block], self._blocks[block + 1]
        rank = first[..., None] + np.arange(min(int((last - first).max()), _BLOCK))  # [edges, r, block]
        there = rank < last[..., None]
        rank = np.minimum(rank, self.images - 1)
        w = np.where(there, draws[self._patient[rank], column[:, None]], 0).astype(np.float64)
        before = weight[block, column][..., None] + np.cumsum(w, axis=2) - w
        reached = there & self._start[rank] & (BINS * before >= edges[..., None])
        w *= self._gap[rank]
        summed = error[block, column][..., None] + np.cumsum(w, axis=2) - w
        at = np.take_along_axis(summed, reached.argmax(axis=2)[..., None], axis=2)[..., 0]
        at = np.where(reached.any(axis=2), at, error[block + 1, column])
        return np.diff(np.vstack([np.zeros_like(at[:1]), at, error[-1:]]), axis=0)


def _running(x: np.ndarray) -> np.ndarray:
    """Sums over rows 0 to i of [k, r], in place: as np.cumsum, which takes thrice as long down the rows of a table."""
    whole = len(x) - len(x) % _SUMMED
    if whole <= _SUMMED:
        return np.cumsum(x, axis=0, out=x)
    parts = x[:whole].reshape(-1, _SUMMED, x.shape[1])
    for i in range(1, _SUMMED):
        parts[:, i] += parts[:, i - 1]
    parts[1:] += np.cumsum(parts[:-1, -1], axis=0)[:, None]
    if whole < len(x):
        x[whole] += x[whole - 1]
        np.cumsum(x[whole:], axis=0, out=x[whole:])
    return x


# Each computes several metrics, which share their sums.
METRICS: dict[str, Callable[[Finding, np.ndarray], dict[str, np.ndarray]]] = {
    "auroc": Finding.ranking,
    "auprc": Finding.ranking,
    "brier": Finding.calibration,
    "ece": Finding.calibration,
}
