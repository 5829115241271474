"""What data sets of files share: the reading of one film, and an index of films as columns.

An index is a table with one row a film: path (below the data folder, with "/"), image_id, patient, study, view, sex
("F", "M" or ""), age (int16 years, -1 unknown) and split. :class:`FilmSource` leaves out the views that were not asked
for and the films that are not there, counts both, and reads the rest.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repgls_jax import findings as findings_lib
from repgls_jax.data import cells, images
from repgls_jax.data.source import SPLITS, TEXT_FIELDS, Quarantined, Record

# Names that stand for several views, by the names that data sets give them.
VIEWS: dict[str, tuple[str, ...]] = {
    "frontal": ("PA", "AP", "FRONTAL"),
    "lateral": ("LATERAL", "LL", "RL", "XTABLE LATERAL"),
}
ALL_VIEWS = "all"
Boxes = list[tuple[str, float, float, float, float]]

_SHOWN = 5
_MOST_VIEWS = 30  # that are counted by name; MIMIC-CXR has 16
_SHOWN_CHARACTERS = 20  # of a view, which could be any text


@dataclasses.dataclass(frozen=True)
class Form:
    """What becomes of a film.

    Attributes:
      image_size: side of the stored image, in pixels.
      max_megapixels: a larger film is quarantined from its header.
      fit: "pad" or "crop", see :func:`repgls_jax.data.images.square`.
      bits: of a stored pixel, 8 or 16.
    """

    image_size: int
    max_megapixels: float
    fit: images.Fit
    bits: images.Bits = 8

    def __post_init__(self) -> None:
        """Refuses what no film can be read with.

        Raises:
          ValueError: an option is out of range.
        """
        largest = images.PIL_MEGAPIXELS
        if not 0 < self.max_megapixels <= largest:
            raise ValueError(f"max_megapixels is {self.max_megapixels}; expected more than 0, at most {largest}")
        if not 8 <= self.image_size <= 4096:
            raise ValueError(f"image_size is {self.image_size}; expected 8 to 4096 pixels")
        if self.fit not in images.FITS:
            raise ValueError(f"fit is {self.fit!r}; expected {' or '.join(images.FITS)}")
        if self.bits not in images.BITS or not isinstance(self.bits, int):  # 16.0 is no number of bits
            raise ValueError(f"bits is {self.bits!r}; expected {' or '.join(map(str, images.BITS))}")

    def parameters(self) -> dict[str, Any]:
        """What a source says of it; it says its image_size itself.

        Nothing is said of 8 bits, so that builds from before there was a choice are known again.
        """
        said: dict[str, Any] = {"max_megapixels": self.max_megapixels, "fit": self.fit}
        return said if self.bits == 8 else said | {"bits": self.bits}


def read(
    root: pathlib.Path, film: Mapping[str, Any], states: np.ndarray, boxes: Boxes, form: Form
) -> Record | Quarantined:
    """The record of a film.

    Args:
      root: folder outside of which nothing is read.
      film: a row of an index, with the text fields of its study.
      states: int8 [c] label states.
      boxes: of findings, as shares of the film's sides.
      form: what becomes of the film.
    """
    try:
        picture = images.load(images.locate(root, film["path"]), form.max_megapixels)
    except images.UnusableImageError as error:
        return Quarantined(film["path"], str(error))
    record = {
        "image": images.square(picture, form.image_size, form.bits, form.fit),
        "image_id": film["image_id"],
        "patient_id": film["patient"],
        "study_id": film["study"],
        **{name: film[name] for name in ("view", "sex", "age", *TEXT_FIELDS)},
        "has_report": any(film[field] for field in TEXT_FIELDS),
        "labels": states,
        "observed": np.asarray(states != findings_lib.NOT_MENTIONED),
    }
    if boxes:
        width, height = picture.size
        record["boxes"] = [(name, x0 * width, y0 * height, x1 * width, y1 * height) for name, x0, y0, x1, y1 in boxes]
        record["placement"] = images.placement(width, height, form.image_size, form.fit)
    return record


class UnusableReportError(Exception):
    """The report of a study cannot be used; the message says why and holds none of it."""


class FilmSource:
    """The films of an index, in its order within each split.

    A data set subclasses it, and says in :meth:`texts` and :meth:`boxes` what belongs to a film.
    """

    simulated = False

    def __init__(
        self,
        root: pathlib.Path,
        index: pa.Table,
        labels: np.ndarray,
        *,
        vocabulary: findings_lib.Vocabulary,
        form: Form,
        views: str | Sequence[str],
        left_out: Mapping[str, int],
        parameters: Mapping[str, Any],
        max_report_bytes: int,
    ):
        """Chooses the films; they are read later, one by one.

        Args:
          root: folder that holds everything; no file outside it is read as an image.
          index: n films; see this module.
          labels: int8 [n, c] label states.
          vocabulary: order of the axis c.
          form: what becomes of the films.
          views: names of views, "unknown", the groups of :data:`VIEWS`, or "all"; a text may list several with commas.
          left_out: what the data set has left out already, by reason.
          parameters: of the data set.
          max_report_bytes: films of studies with a longer text (UTF-8) are quarantined.

        Raises:
          FileNotFoundError: none of the films is there.
          ValueError: no film is of these views, or a patient is in two splits.
        """
        self.vocabulary = vocabulary
        self.image_size = form.image_size
        self.bits = form.bits
        self._form = form
        self._root = root
        chosen = view_names(views)
        _disjoint(index)
        kept = _of_views(index["view"], chosen)
        reasons = Counter(left_out) + _count(
            [view[:_SHOWN_CHARACTERS] or "unknown" for view in _without(index["view"], kept)]
        )
        paths = index["path"].filter(pa.array(kept)).to_pylist()
        present, stamp = look(root, paths)
        if paths and not present.any():
            raise FileNotFoundError(f"none of the {len(paths)} films is there; the first would be {root / paths[0]}")
        reasons["image not there"] += int((~present).sum())
        kept[kept] = present
        self._films = index.filter(pa.array(kept)).combine_chunks()
        self._labels = labels[kept]
        split = self._films["split"].to_numpy(zero_copy_only=False)
        self._films = self._films.drop_columns("split")  # what is kept is copied to every process
        self._of = {name: np.flatnonzero(split == name).astype(np.int32) for name in SPLITS}
        self._max_report_bytes = max_report_bytes
        self._parameters = {
            **parameters,
            "views": sorted(chosen),
            "left_out": {reason: n for reason, n in sorted(reasons.items()) if n},
            "images_sha256": stamp,
            **form.parameters(),
            "max_report_bytes": max_report_bytes,
        }

    def texts(self, film: dict[str, Any]) -> dict[str, str]:
        """Those of findings, impression and report that the study of a film has.

        Raises:
          UnusableReportError: there is a report that cannot be read.
        """
        del film
        return {}

    def boxes(self, film: dict[str, Any]) -> Boxes:
        """(finding, x0, y0, x1, y1) of a film, as shares of its sides."""
        del film
        return []

    def splits(self) -> dict[str, int]:
        """Films per split; splits without one are left out."""
        return {split: len(rows) for split, rows in self._of.items() if len(rows)}

    def record(self, split: str, i: int) -> Record | Quarantined:
        """Film ``i`` of a split."""
        row = int(self._of[split][i])
        film = self._films.slice(row, 1).to_pylist()[0]
        try:
            texts = dict.fromkeys(TEXT_FIELDS, "") | self.texts(film)
            if any(len(text.encode()) > self._max_report_bytes for text in texts.values()):
                raise UnusableReportError(f"the report has more than {self._max_report_bytes} bytes")
        except UnusableReportError as error:
            return Quarantined(film["path"], str(error))
        return read(self._root, film | texts, self._labels[row], self.boxes(film), self._form)

    def parameters(self) -> dict[str, Any]:
        """The tables by their content, the images by size and time, what was left out, and every option."""
        return self._parameters


def view_names(views: str | Sequence[str]) -> set[str]:
    """The views asked for, in capitals; of all views :data:`ALL_VIEWS` alone."""
    listed = [view.strip() for view in (views.split(",") if isinstance(views, str) else views)]
    if not listed or "" in listed:
        raise ValueError(f"views is {views!r}; expected {', '.join(VIEWS)}, {ALL_VIEWS}, unknown, or a view's own name")
    if ALL_VIEWS in listed:
        return {ALL_VIEWS}
    return {name for view in listed for name in VIEWS.get(view, ("" if view == "unknown" else view.upper(),))}


def _of_views(views: pa.ChunkedArray, chosen: set[str]) -> np.ndarray:
    if ALL_VIEWS in chosen:
        return np.ones(len(views), bool)
    kept = np.array(pc.is_in(pc.utf8_upper(views), value_set=pa.array(sorted(chosen))))
    if len(kept) and not kept.any():
        found = ", ".join(
            f"{view[:_SHOWN_CHARACTERS] or 'unknown'} ({n})" for view, n in Counter(views.to_pylist()).most_common(10)
        )
        raise ValueError(f"no film has the views {', '.join(sorted(chosen))}; the data set has: {found}")
    return kept


def _without(values: pa.ChunkedArray, kept: np.ndarray) -> list[str]:
    return values.filter(pa.array(~kept)).to_pylist()


def _count(views: Sequence[str]) -> Counter[str]:
    common = Counter(views).most_common(_MOST_VIEWS)
    others = len(views) - sum(n for _, n in common)
    return Counter({f"view {view}": n for view, n in common}) + Counter({"views that are rarer": others})


def _disjoint(index: pa.Table) -> None:
    """Refuses a patient in two splits, which is no split at all."""
    pairs = index.group_by(["patient", "split"]).aggregate([])
    counts = pc.value_counts(pairs["patient"])
    shared = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()
    if shared:
        names = cells.names(sorted(shared), _SHOWN)
        raise ValueError(f"{len(shared)} patients are in more than one split: {names}; correct the tables")


def look(root: pathlib.Path, paths: Sequence[str]) -> tuple[np.ndarray, str]:
    """Which of the files are there, and a hash of their names, sizes and times, absent ones included.

    The films of half a million are not read for it: that would take longer than the build.
    """
    digest = hashlib.sha256()
    present = np.zeros(len(paths), bool)
    base = str(root)
    for i, name in enumerate(paths):
        try:
            found = os.stat(f"{base}/{name}")  # noqa: PTH116 - a Path for each of half a million files takes as long
            present[i], stamp = True, f"{found.st_size} {found.st_mtime_ns}"
        except (OSError, ValueError):
            stamp = "absent"
        digest.update(f"{name}\0{stamp}\n".encode("utf-8", "surrogatepass"))
    return present, digest.hexdigest()
