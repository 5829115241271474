"""A folder of images with a CSV or Parquet table as a source."""

import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from repgls_jax import findings as findings_lib
from repgls_jax.data import columns as columns_lib
from repgls_jax.data import films, labels, official, rows, splits
from repgls_jax.data.images import Bits, Fit
from repgls_jax.data.source import SPLITS, TEXT_FIELDS, UNKNOWN_AGE, Quarantined, Record


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
        fit: Fit = "pad",
        bits: Bits = 8,
        max_megapixels: float = 64,
        max_report_bytes: int = 1_000_000,
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
          fit: "pad" adds black to films that are not square, "crop" takes the square in their middle.
          bits: of a pixel, 8 or 16; 16 keeps what images of more than 8 bits show.
          max_megapixels: larger images are quarantined from their header.
          max_report_bytes: studies with a longer text (UTF-8) are quarantined.

        Raises:
          FileNotFoundError: no such folder or table.
          ValueError: the table cannot be used; the message says what was found and what was expected.
        """
        self._form = films.Form(image_size, max_megapixels, fit, bits)
        if isinstance(ignore, str):
            raise ValueError(f"ignore is the text {ignore!r}; expected a list of finding names")
        self.vocabulary = findings_lib.vocabulary(findings)
        self.image_size = image_size
        self.bits = bits
        self._root = pathlib.Path(source)
        path = rows.find(self._root, table)
        data = rows.read(path)
        used = columns_lib.resolve(data.column_names, columns or {}, self.vocabulary)
        self._rows = rows.select(data, used)
        self._label(used, ignore)
        patients = self._rows.column("patient")
        if "split" in used.roles:
            given = splits.from_column(patients, self._rows.column("split"), used.roles["split"])
            split_of = splits.with_valid(given, fractions, seed)
        else:
            split_of = splits.by_hash(patients, fractions, seed)
        self._of = {split: [i for i, p in enumerate(patients) if split_of[p] == split] for split in SPLITS}
        self._too_long = self._rows.studies_over(max_report_bytes)
        self._max_report_bytes = max_report_bytes
        self._parameters = self._facts(path, data.num_rows, used) | {
            "splits": {"column": used.roles.get("split"), "seed": seed, "fractions": list(fractions)},
            "ignore": sorted(ignore),
            **self._form.parameters(),
            "max_report_bytes": max_report_bytes,
        }

    def _facts(self, path: pathlib.Path, n: int, used: columns_lib.Columns) -> dict[str, Any]:
        """What the parameters say of the files; ``n`` is the number of the table's rows."""
        return {
            "table": path.name,
            "table_sha256": official.digest([path])[path.name],
            "rows": n,
            "images_sha256": self._stamp(),
            "duplicate_rows": n - len(self._rows),
            "columns": used.roles | used.labels,
            "unused_columns": list(used.unused),
            "unread": {
                "sex": sum(bool(v) and not rows.sex(v) for v in self._rows.column("sex")),
                "age": sum(bool(v) and rows.age(v) == UNKNOWN_AGE for v in self._rows.column("age")),
            },
        }

    def _stamp(self) -> str:
        """A hash of the images' sizes and times, in the folder or below its images/, as they are found later."""
        names = sorted(set(self._rows.column("image")))
        present, stamp = films.look(self._root, names)
        rest = [name for name, there in zip(names, present, strict=True) if not there]
        return f"{stamp} {films.look(self._root / 'images', rest)[1]}" if rest else stamp

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
        return {split: len(indices) for split, indices in self._of.items() if indices}

    def record(self, split: str, i: int) -> Record | Quarantined:
        """Row ``i`` of a split, in the table's order."""
        i = self._of[split][i]
        row = self._rows[i]
        if row["study"] in self._too_long:
            return Quarantined(row["image"], f"the report has more than {self._max_report_bytes} bytes")
        film = {
            "path": row["image"],
            "image_id": row["image"],
            **{name: row[name] for name in ("patient", "study", "view", *TEXT_FIELDS)},
            "sex": rows.sex(row["sex"]),
            "age": rows.age(row["age"]),
        }
        return films.read(self._root, film, self._labels[i], [], self._form)

    def parameters(self) -> dict[str, Any]:
        """The table by its content, the images by size and time, the columns and every option that changes a record."""
        return self._parameters
