"""Where findings are: masks of a build, from a phantom's lesions or a data set's boxes, and maps that look at no film.

The controls say what a map's score is worth. "random" is noise on the grid of patches, as smooth as a map. "prior" is
where the finding tends to be: the mean of its masks in the training split, which has seen no test film and knows
nothing of the film at hand.
"""

import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import pyarrow.parquet as pq

from repgls_jax import findings as findings_lib
from repgls_jax.data import shards
from repgls_jax.data.build import BOXES, SHARDS
from repgls_jax.data.features import MASK_BITS

FEWEST = 5  # masks of a finding of which a mean is taken
_AT_A_TIME = 256
CONTROLS = {"random": "Random", "prior": "Mean training mask"}


class Regions:
    """The masks of one split of a build.

    Attributes:
      kind: "masks" or "boxes".
      vocabulary: order of the findings.
      side: of the films, in pixels.
      films: int [m], the examples that have any region, in order.
    """

    def __init__(self, build: pathlib.Path, split: str):
        """Opens them.

        Raises:
          FileNotFoundError: no such build.
          ValueError: no such split, or the build says of no film where its findings are.
        """
        self._shards = build / SHARDS
        self.vocabulary = shards.vocabulary(self._shards)
        self.side = shards.Images(self._shards, split).shape[0]
        records = shards.Records(self._shards, split)
        if "masks" in records.fields:
            self.kind = "masks"
            self._records = shards.Records(self._shards, split, ["masks"])
            self.films = np.arange(len(records))
            return
        self.kind = "boxes"
        self._boxes = _boxes(build / BOXES, self.vocabulary)
        ids = shards.Records(self._shards, split, ["image_id"])
        self._ids = [ids[i]["image_id"] for i in range(len(ids))]
        self.films = np.flatnonzero([image_id in self._boxes for image_id in self._ids])

    def read(self, films: Sequence[int] | np.ndarray) -> np.ndarray:
        """Masks of examples: bool [k, c, h, w]."""
        c, out = len(self.vocabulary), np.zeros((len(films), len(self.vocabulary), self.side, self.side), bool)
        for row, film in enumerate(np.asarray(films).tolist()):
            if self.kind == "masks":
                bits = self._records[film]["masks"][..., 0]
                out[row] = (bits[None] >> np.arange(min(c, MASK_BITS), dtype=np.uint16)[:, None, None]) & 1
            else:
                for finding, x0, y0, x1, y1 in self._boxes.get(self._ids[film], ()):
                    out[row, finding, y0:y1, x0:x1] = True
        return out


def _boxes(path: pathlib.Path, vocabulary: findings_lib.Vocabulary) -> dict[str, list[tuple[int, int, int, int, int]]]:
    """image_id -> (finding, x0, y0, x1, y1) in whole pixels, each box of one pixel or more."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected the folder of a complete build")
    found: dict[str, list[tuple[int, int, int, int, int]]] = {}
    for row in pq.read_table(path).to_pylist():
        x0, y0 = int(row["x0"]), int(row["y0"])
        x1, y1 = max(x0 + 1, round(row["x1"])), max(y0 + 1, round(row["y1"]))
        if row["finding"] in vocabulary.findings:
            found.setdefault(row["image_id"], []).append((vocabulary.index(row["finding"]), x0, y0, x1, y1))
    return found


def batches(regions: Regions, films: np.ndarray, size: int = _AT_A_TIME) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(examples, their masks bool [k, c, h, w]), ``size`` at a time."""
    for start in range(0, len(films), size):
        chosen = films[start : start + size]
        yield chosen, regions.read(chosen)


def priors(build: pathlib.Path, split: str = "train", most: int = 0) -> tuple[np.ndarray, list[str]]:
    """Where each finding tends to be.

    Args:
      build: the data.
      split: whose masks are averaged.
      most: films that are read, from the first on; 0 reads all.

    Returns:
      float32 [c, h, w] in [0, 1], and for each finding whose mean it is: "finding", "all" where fewer than
      :data:`FEWEST` masks show it, or "centre" (a Gaussian with a standard deviation of a quarter of the side) where
      the split has next to no masks at all.

    Raises:
      FileNotFoundError, ValueError: see :class:`Regions`.
    """
    regions = Regions(build, split)
    films = regions.films[:most] if most else regions.films
    side, c = regions.side, len(regions.vocabulary)
    total, count = np.zeros((c, side, side)), np.zeros(c, int)
    for _, masks in batches(regions, films):
        total += masks.sum(axis=0)
        count += masks.any(axis=(2, 3)).sum(axis=0)
    if count.sum() < FEWEST:
        return np.repeat(centre(side)[None], c, axis=0), ["centre"] * c
    everywhere = total.sum(axis=0) / count.sum()
    enough = count >= FEWEST
    mean = np.where(enough[:, None, None], total / np.maximum(count, 1)[:, None, None], everywhere)
    return mean.astype(np.float32), ["finding" if yes else "all" for yes in enough]


def centre(side: int) -> np.ndarray:
    """A Gaussian in the middle: float32 [h, w] in (0, 1]."""
    at = (np.arange(side) + 0.5) / side - 0.5
    line = np.exp(-0.5 * (at / 0.25) ** 2)
    return (line[:, None] * line).astype(np.float32)


def noise(key: jax.Array, films: np.ndarray, c: int, grid: tuple[int, int]) -> jax.Array:
    """Uniform noise of each film and finding, the same whatever else is in the batch: float32 [k, c, rows, columns]."""
    keys = jax.vmap(lambda film: jax.random.fold_in(key, film))(np.asarray(films, np.int32))
    return jax.vmap(lambda one: jax.random.uniform(one, (c, *grid)))(keys)
