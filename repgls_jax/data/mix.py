"""Several data sets as one: their splits end to end, their findings in one vocabulary, their order by weight."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.data.meter import Meter
from repgls_jax.data.shards import Images

_WHOLE = 2**31  # all weights together, in whole numbers; their products fit 64 bits

# What a column says of a finding that its data set does not know: nothing. None of these reaches a loss, because
# "observed" is False there.
_ABSENT = {
    "labels": findings_lib.NOT_MENTIONED,
    "state": findings_lib.NOT_MENTIONED,
    "given": findings_lib.NOT_MENTIONED,
    "observed": False,
    "p": np.nan,
    "belief": np.nan,
    "rate": 0.0,
    "truth": 0,
    "contrast": 0.0,
}


def align(
    columns: Mapping[str, np.ndarray], vocabulary: findings_lib.Vocabulary, target: findings_lib.Vocabulary
) -> dict[str, np.ndarray]:
    """Columns of one data set, with the findings of another vocabulary.

    Args:
      columns: name -> [n] or [n, c] in the order of ``vocabulary``, as of :func:`repgls_jax.data.shards.examples` or
        :func:`repgls_jax.train.labels.columns`.
      vocabulary: of the data set.
      target: wanted.

    Returns:
      The columns, those with findings as [n, len(target)]. A finding that the data set lacks is not mentioned and not
      observed; one that ``target`` lacks is left out.

    Raises:
      ValueError: a column has another number of findings, or is not known to have any.
    """
    known = {finding: k for k, finding in enumerate(vocabulary.findings)}
    pairs = [(k, known[finding]) for k, finding in enumerate(target.findings) if finding in known]
    to, source = [k for k, _ in pairs], [k for _, k in pairs]
    aligned = {}
    for name, values in columns.items():
        if name in _ABSENT:
            if values.ndim != 2 or values.shape[1] != len(vocabulary):
                raise ValueError(
                    f"column {name!r} has the shape {values.shape}; expected [n, {len(vocabulary)}], the findings of "
                    f"the vocabulary {vocabulary.name!r}"
                )
            aligned[name] = np.full((len(values), len(target)), _ABSENT[name], values.dtype)
            aligned[name][:, to] = values[:, source]
        elif values.ndim == 1:
            aligned[name] = values
        else:
            raise ValueError(
                f"column {name!r} has the shape {values.shape}, and what it says of an absent finding is not known; "
                "add it to repgls_jax/data/mix.py"
            )
    return aligned


def concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Aligned columns of several data sets, end to end in the order of their images in :class:`Joined`.

    Raises:
      ValueError: the parts have different columns.
    """
    names = [name for part in parts for name in part]
    uneven = sorted(name for name in set(names) if names.count(name) < len(parts))
    if uneven:
        raise ValueError(f"only some of the data sets have the columns {', '.join(uneven)}; leave them out")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Joined:
    """The images of several splits, end to end. Can be pickled for worker processes and read from several threads.

    Attributes:
      shape: (h, w, 1) of every image.
      dtype: uint8 or uint16, of every image.
      lengths: images of each part.
    """

    def __init__(self, parts: Sequence[Images]):
        """Joins splits that are open.

        Raises:
          ValueError: the images have several sizes, or some have 8 bits and others 16.
        """
        shapes = sorted({part.shape for part in parts})
        if len(shapes) != 1:
            raise ValueError(f"the data sets have images of {shapes}; build them with one image_size")
        dtypes = sorted({str(part.dtype) for part in parts})
        if len(dtypes) != 1:
            raise ValueError(f"the data sets have images of {' and '.join(dtypes)}; build them with the same bits")
        self._parts = tuple(parts)
        self.shape, self.dtype = shapes[0], parts[0].dtype
        self.lengths = [len(part) for part in parts]
        self._starts = np.array([0, *itertools.accumulate(self.lengths)])

    def __len__(self) -> int:
        """Number of examples."""
        return int(self._starts[-1])

    def part(self, i: int) -> tuple[int, int]:
        """Which data set example ``i`` is of, and its number there."""
        k = int(np.searchsorted(self._starts, i, side="right")) - 1
        return k, i - int(self._starts[k])

    def read(self, indices: Sequence[int] | np.ndarray, meter: Meter | None = None) -> np.ndarray:
        """The images of the examples ``indices``, as :meth:`repgls_jax.data.shards.Images.read`."""
        out, indices = np.empty((len(indices), *self.shape), self.dtype), np.asarray(indices, np.int64)
        for k, part in enumerate(self._parts):
            rows = np.flatnonzero((self._starts[k] <= indices) & (indices < self._starts[k + 1]))
            part.fill(out, rows, indices[rows] - self._starts[k], meter or Meter())
        return out


class Order:
    """Endless examples of :class:`Joined`: each data set by its weight, shuffled anew when it is over.

    Which example stands at a position follows from the seed and the position alone, whichever version of NumPy: the
    shuffle sorts the bits of a counter-based generator, whose stream NumPy promises not to change.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int):
        """Describes the order.

        Args:
          lengths: images of each data set.
          weights: positive shares, in any unit; none means by length, so that an image is as likely as any other.
          seed: of the order, >= 0.

        Raises:
          ValueError: the weights do not fit.
        """
        if weights and (len(weights) != len(lengths) or not all(0 < w < float("inf") for w in weights)):
            raise ValueError(f"weights are {list(weights)}; expected {len(lengths)} positive numbers, one a data set")
        self._reduced = (lengths, weights, seed)
        self._lengths = list(lengths)
        self._starts = [0, *itertools.accumulate(lengths)]
        self._shares = [max(1, round(_WHOLE * w / sum(weights))) for w in weights] or self._lengths
        # Threads are in two rounds at a time where one ends.
        self._shuffled = [
            functools.lru_cache(3)(functools.partial(_shuffle, n, seed, k)) for k, n in enumerate(lengths)
        ]

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the description."""
        return Order, self._reduced

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Examples at the positions int64 [k], each 0 or more; int64 [k]."""
        examples = np.empty_like(positions)
        parts, turns = self._drawn(positions)
        for k, length in enumerate(self._lengths):
            mine = np.flatnonzero(parts == k)
            rounds, at = np.divmod(turns[mine], length)
            for one in np.unique(rounds):
                now = rounds == one
                examples[mine[now]] = self._starts[k] + self._shuffled[k](int(one))[at[now]]
        return examples

    def batch(self, step: int, size: int) -> np.ndarray:
        """Examples of the whole batch ``step``, int64 [size].

        Several data sets take turns in a regular way, so their examples are shuffled within the batch: what pairs rows
        (mixup) or deals them out (micro-batches) would meet a pattern.
        """
        rows, seed, sets = np.arange(size), self._reduced[2], len(self._lengths)
        return self(step * size + (_shuffle(size, seed, sets, step) if sets > 1 else rows))

    def _drawn(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which data set is drawn from at each position, and how often it was before.

        In every run of sum(shares) positions each data set is drawn as often as its share says, evenly spread: the
        first by its share of all positions, the second by its share of those that are left, and so on.
        """
        rest = sum(self._shares)
        runs, before = np.divmod(positions, rest)
        after = before + 1
        parts, turns = np.empty_like(positions), np.empty_like(positions)
        for k, share in enumerate(self._shares):
            left_before, left_after = (x * (rest - share) // rest for x in (before, after))
            drawn = before - left_before
            mine = drawn != after - left_after
            parts[mine], turns[mine] = k, (runs * share + drawn)[mine]
            rest, before, after = rest - share, left_before, left_after
        return parts, turns


def _shuffle(length: int, seed: int, part: int, round_: int) -> np.ndarray:
    """0 to length - 1 in an order of their own for every (seed, part, round)."""
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(part, round_))).random_raw(length)
    return np.argsort(bits, kind="stable")
