"""The films that a look at the data shows: which ones, and with which boxes and outlines."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from repgls_jax import findings as findings_lib
from repgls_jax.data import images, shards

SHOWN = {findings_lib.POSITIVE: "positive", findings_lib.UNCERTAIN: "uncertain", findings_lib.NEGATIVE: "negative"}
_MEAN_SIDE = 128

Box = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Film:
    """A film to show.

    Attributes:
      image: uint8 [h, w].
      image_id: of the film.
      note: a word or two about it.
      boxes: (x0, y0, x1, y1) of the finding, in pixels of the film.
      mask: bool [h, w], where a simulated finding is, or None.
    """

    image: np.ndarray
    image_id: str
    note: str = ""
    boxes: tuple[Box, ...] = ()
    mask: np.ndarray | None = None


class Gallery:
    """Finds and reads the films of a build."""

    def __init__(
        self,
        folder: pathlib.Path,
        rows: Mapping[str, Any],
        boxes: Mapping[str, Mapping[str, list[Box]]],
        vocabulary: findings_lib.Vocabulary,
        simulated: bool,
    ):
        """Takes the description of a build.

        Args:
          folder: the folder "shards".
          rows: image_id, patient_id: str [n]; split, index: int [n]; splits, their names.
          boxes: finding -> image id -> boxes.
          vocabulary: of the build.
          simulated: whether there are masks.
        """
        self._folder, self._rows, self._boxes = folder, rows, boxes
        self._vocabulary, self._simulated = vocabulary, simulated
        self._open: dict[tuple[str, str], shards.Records] = {}

    def images(self, chosen: np.ndarray) -> list[np.ndarray]:
        """The films of some rows, uint8 [h, w] each, whatever bits they are stored with."""
        return [images.eight_bits(film) for film in self._read("image", chosen)]

    def _read(self, field: str, chosen: np.ndarray) -> list[np.ndarray]:
        made = []
        for row in chosen:
            split = self._rows["splits"][self._rows["split"][row]]
            if (field, split) not in self._open:
                self._open[field, split] = shards.Records(self._folder, split, [field])
            made.append(self._open[field, split][int(self._rows["index"][row])][field][..., 0])
        return made

    def pair(self, a: int, b: int) -> tuple[Film, Film]:
        """The films of two rows, without boxes."""
        first, second = self.films(np.array([a, b]))
        return first, second

    def films(self, chosen: np.ndarray, notes: Sequence[str] = ()) -> list[Film]:
        """The films of some rows, a note each, or else their split; without boxes."""
        notes = notes or [self._rows["splits"][self._rows["split"][row]] for row in chosen]
        ids = self._rows["image_id"][chosen]
        return [Film(image, str(i), note) for image, i, note in zip(self.images(chosen), ids, notes, strict=True)]

    def sheets(self, state: np.ndarray, most: int, seed: int) -> dict[str, dict[str, list[Film]]]:
        """Films drawn at random for each finding and state: finding -> state in words -> films.

        Those with boxes come first, and each patient once.

        Args:
          state: int8 [n, c] label states.
          most: films of a finding and state.
          seed: of the draw.
        """
        made: dict[str, dict[str, list[Film]]] = {}
        for k, finding in enumerate(self._vocabulary.findings):
            boxes = self._boxes.get(finding, {})
            made[finding] = {}
            for value, words in SHOWN.items():
                drawn = self._draw(np.flatnonzero(state[:, k] == value), boxes, most, [seed, k, value + 1])
                made[finding][words] = self._with_marks(drawn, k, boxes)
        return made

    def _draw(self, rows: np.ndarray, boxes: Mapping[str, Any], most: int, seed: list[int]) -> np.ndarray:
        order = np.random.default_rng(seed).permutation(rows)
        if boxes:
            has_box = np.isin(self._rows["image_id"][order], list(boxes))
            order = order[np.argsort(~has_box, kind="stable")]
        kept: dict[str, int] = {}
        for row in order:
            kept.setdefault(str(self._rows["patient_id"][row]), int(row))
            if len(kept) == most:
                break
        return np.array(list(kept.values()), np.int64)

    def _with_marks(self, chosen: np.ndarray, k: int, boxes: Mapping[str, list[Box]]) -> list[Film]:
        films = self.films(chosen)
        masks = self._read("masks", chosen) if self._simulated else []
        return [
            dataclasses.replace(
                film,
                boxes=tuple(boxes.get(film.image_id, ())),
                mask=(masks[i] >> np.uint16(k) & 1).astype(bool) if masks else None,
            )
            for i, film in enumerate(films)
        ]

    def means(self, chosen: np.ndarray, views: np.ndarray, most: int) -> dict[str, np.ndarray]:
        """The mean of at most ``most`` films of each view, evenly spaced among those chosen: view -> uint8 [h, w]."""
        made = {}
        for view in np.unique(views):
            mine = chosen[views == view]
            films = self.images(mine[:: -(-len(mine) // most)])
            side = min(_MEAN_SIDE, len(films[0]))
            small = [Image.fromarray(film).resize((side, side), Image.Resampling.BOX) for film in films]
            made[str(view)] = np.mean([np.asarray(film) for film in small], axis=0).astype(np.uint8)
        return made
