"""Several data sets as one: their splits end to end, their findings in one vocabulary, their order by weight."""

import bisect
import itertools
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.data.meter import Meter
from repgls_jax.data.shards import Images

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
        self._ends = list(itertools.accumulate(self.lengths))

    def __len__(self) -> int:
        """Number of examples."""
        return self._ends[-1]

    def part(self, i: int) -> tuple[int, int]:
        """Which data set example ``i`` is of, and its number there."""
        k = bisect.bisect_right(self._ends, i)
        return k, i - (self._ends[k - 1] if k else 0)

    def read(self, indices: Sequence[int], meter: Meter | None = None) -> np.ndarray:
        """The images of the examples ``indices``, as :meth:`repgls_jax.data.shards.Images.read`."""
        if len(self._parts) == 1:
            return self._parts[0].read(indices, meter)
        out = np.empty((len(indices), *self.shape), self.dtype)
        places = [self.part(i) for i in indices]
        for k, part in enumerate(self._parts):
            rows = [row for row, (of, _) in enumerate(places) if of == k]
            out[rows] = part.read([places[row][1] for row in rows], meter)
        return out


def order(lengths: Sequence[int], weights: Sequence[float], seed: int) -> "grain.MapDataset[int]":
    """Endless examples of :class:`Joined`: each data set by its weight, shuffled anew when it is over.

    Args:
      lengths: images of each data set.
      weights: positive shares, in any unit; none means by length, so that an image is as likely as any other.
      seed: of the order, >= 0.

    Raises:
      ValueError: the weights do not fit.
    """
    weights = list(weights) or [float(n) for n in lengths]
    if len(weights) != len(lengths) or not all(0 < w < float("inf") for w in weights):
        raise ValueError(f"weights are {weights}; expected {len(lengths)} positive numbers, one a data set")
    stops = list(itertools.accumulate(lengths))
    # One seed a data set, so that sets of equal length are not shuffled alike; the first has the seed itself.
    seeds = [seed, *(int(s) for s in np.random.SeedSequence(seed).generate_state(len(lengths) - 1))]
    sets = [
        grain.MapDataset.range(stop - length, stop).seed(own).shuffle().repeat()
        for stop, length, own in zip(stops, lengths, seeds, strict=True)
    ]
    return sets[0] if len(sets) == 1 else grain.MapDataset.mix(sets, weights)
