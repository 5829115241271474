"""A folder of images with a CSV or Parquet table as a source."""

import hashlib
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.data import columns as columns_lib
from repgls_jax.data import images, labels, parallel, rows, splits
from repgls_jax.data.source import SPLITS, TEXT_FIELDS, Quarantined, Record


class TableSource:
    """The rows of a table, in their order within each split; one image a row."""

    simulated = False

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        table: str = "",
        columns: Mapping[str, str] | None = None,
        findings: str = "chexpert",
        image_size: int = 64,
        seed: int = 0,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        ignore: Collection[str] = (),
        max_megapixels: float = 64,
        max_report_bytes: int = 1_000_000,
        workers: int | None = None,
    ):
        """Reads and checks the table; images are read later, one by one.

        Args:
          source: folder that holds everything; no file outside it is read as an image.
          table: the table's path, relative to ``source`` or absolute; "" where ``source`` holds exactly one.
          columns: role or finding -> column, where :mod:`repgls_jax.data.columns` would not find it; "" for none.
          findings: name of the vocabulary.
          image_size: side of the images written, in pixels.
          seed: of the assignment of patients to splits, where the table gives none.
          fractions: of patients in train, valid and test, where the table gives no split.
          ignore: finding names in a list column that may be dropped.
          max_megapixels: larger images are quarantined from their header.
          max_report_bytes: studies with a longer text (UTF-8) are quarantined.
          workers: threads that decode; None for one per core. Records do not depend on it.

        Raises:
          FileNotFoundError: no such folder or table.
          ValueError: the table cannot be used; the message says what was found and what was expected.
        """
        if not 0 < max_megapixels <= images.PIL_MEGAPIXELS:
            raise ValueError(
                f"max_megapixels is {max_megapixels}; expected more than 0, at most {images.PIL_MEGAPIXELS}"
            )
        if not 8 <= image_size <= 4096:
            raise ValueError(f"image_size is {image_size}; expected 8 to 4096 pixels")
        if isinstance(ignore, str):
            raise ValueError(f"ignore is the text {ignore!r}; expected a list of finding names")
        self.vocabulary = findings_lib.vocabulary(findings)
        self.image_size = image_size
        self._root = pathlib.Path(source)
        path = rows.find(self._root, table)
        data = rows.read(path)
        used = columns_lib.resolve(data.column_names, columns or {}, self.vocabulary)
        self._rows = rows.select(data, used)
        self._label(used, ignore)
        patients = self._rows.column("patient")
        if "split" in used.roles:
            given = splits.from_column(patients, self._rows.column("split"), used.roles["split"])
            self._split_of = splits.with_valid(given, fractions, seed)
        else:
            self._split_of = splits.by_hash(patients, fractions, seed)
        self._too_long = self._rows.studies_over(max_report_bytes)
        self._limits = {"max_megapixels": max_megapixels, "max_report_bytes": max_report_bytes}
        self._workers = parallel.cores() if workers is None else max(1, workers)
        with path.open("rb") as file:
            table_hash = hashlib.file_digest(file, "sha256").hexdigest()
        self._parameters = {
            "table": path.name,
            "table_sha256": table_hash,
            "rows": data.num_rows,
            "images_sha256": _stamp(self._root, self._rows.column("image")),
            "duplicate_rows": data.num_rows - len(self._rows),
            "columns": used.roles | used.labels,
            "unused_columns": list(used.unused),
            "splits": {"column": used.roles.get("split"), "seed": seed, "fractions": list(fractions)},
            "ignore": sorted(ignore),
            **self._limits,
        }

    def _label(self, used: columns_lib.Columns, ignore: Collection[str]) -> None:
        n = len(self._rows)
        if "labels" in used.roles:
            cells = self._rows.column("labels")
            self._labels = labels.from_lists(cells, used.roles["labels"], self.vocabulary, ignore)
        else:
            cells_of = {finding: self._rows.column(finding) for finding in used.labels}
            self._labels = labels.from_columns(cells_of, used.labels, n, self.vocabulary)

    def splits(self) -> dict[str, int]:
        """Images per split; splits without a row are left out."""
        counts = {split: len(self._of(split)) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}

    def _of(self, split: str) -> list[int]:
        return [i for i, p in enumerate(self._rows.column("patient")) if self._split_of[p] == split]

    def records(self, split: str) -> Iterator[Record | Quarantined]:
        """The rows of a split in the table's order."""
        with futures.ThreadPoolExecutor(self._workers) as pool:
            yield from parallel.ordered(pool, self._record, self._of(split), 8 * self._workers)

    def _record(self, i: int) -> Record | Quarantined:
        row = self._rows[i]
        if row["study"] in self._too_long:
            return Quarantined(row["image"], f"the report has more than {self._limits['max_report_bytes']} bytes")
        try:
            path = images.locate(self._root, row["image"])
            image = images.read(path, self.image_size, self._limits["max_megapixels"])
        except images.UnusableImageError as error:
            return Quarantined(row["image"], str(error))
        states = self._labels[i]
        return {
            "image": image,
            "image_id": str(pathlib.PurePosixPath(row["image"])),
            "patient_id": row["patient"],
            "study_id": row["study"],
            "view": row["view"],
            **{field: row[field] for field in TEXT_FIELDS},
            "has_report": any(row[field] for field in TEXT_FIELDS),
            "labels": states,
            "observed": np.asarray(states != findings_lib.NOT_MENTIONED),
        }

    def parameters(self) -> dict[str, Any]:
        """The table by its content, the images by size and time, the columns and every option that changes a record."""
        return self._parameters

    def close(self) -> None:
        """Nothing to let go of."""


def _stamp(root: pathlib.Path, names: Sequence[str]) -> str:
    """Hash of the images' names, sizes and times: reading half a million files would take longer than the build."""
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        try:
            found = (root / name).stat()
            stamp = f"{found.st_size} {found.st_mtime_ns}"
        except (OSError, ValueError):  # not there, or no path at all: quarantined when its turn comes
            stamp = "absent"
        digest.update(f"{name}\0{stamp}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
