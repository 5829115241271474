"""CheXpert, as Stanford gives it out: CheXpert-v1.0-small, or CheXpert-v1.0 once it is unpacked.

<source>/train.csv, valid.csv    Path, Sex, Age, Frontal/Lateral, AP/PA and a column a finding
<source>/test.csv                the radiologists' test set, where there: also as test_labels.csv or groundtruth.csv;
                                 Path and a column a finding
<source>/train/patient00001/study1/view1_frontal.jpg

A Path begins with the folder's name, as "CheXpert-v1.0-small/train/...": it is found below <source> with and without
that. The batches of the full films hold "train" in pieces: "CheXpert-v1.0 batch 2 (train 1)/patient00001/..."; these
are found too, when they lie in <source>. The official splits are the three tables, which share no patient. There are
no reports.
"""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repgls_jax import findings as findings_lib
from repgls_jax.data import official, rows
from repgls_jax.data.films import FilmSource, Form
from repgls_jax.data.images import Bits, Fit

TABLES = {
    "train": ("train.csv",),
    "valid": ("valid.csv",),
    "test": ("test.csv", "test_labels.csv", "groundtruth.csv"),
}
_CSV_FOLDER = "CheXpert-v1.0 batch 1 (validate & csv)"
_PATH = r"(?:[^/\\]+/)?(?:train|valid|test)/patient\d{5}/study\d{1,3}/view\d{1,3}_(?:frontal|lateral)\.(?:jpg|png)"
_DETAILS = {"Sex", "Age", "AP/PA"}
_PARTS = re.compile(r"(?:.*/)?((?:train|valid|test)/((patient\d+)/study\d+)/view\d+_(frontal|lateral))(\..*)")


class ChexpertSource(FilmSource):
    """The films of CheXpert in the order of its tables; image_id is "train/patient00001/study1/view1_frontal"."""

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        findings: str = "chexpert",
        image_size: int = 224,
        views: str | Sequence[str] = "frontal",
        fit: Fit = "pad",
        bits: Bits = 8,
        max_megapixels: float = 64,
    ):
        """Reads the tables; films are read later, one by one.

        Args:
          source: folder laid out as above.
          findings: name of the vocabulary.
          image_size: side of the images written, in pixels.
          views: see :class:`repgls_jax.data.films.FilmSource`; a film's own view is its AP/PA, or FRONTAL where that is
            blank, and LATERAL.
          fit: "pad" adds black to films that are not square, "crop" takes the square in their middle.
          bits: of a pixel, 8 or 16; 16 keeps what films of more than 8 bits show.
          max_megapixels: larger films are quarantined from their header.

        Raises:
          FileNotFoundError: no such folder, or it lacks train.csv or valid.csv.
          ValueError: a table cannot be used; the message says what was found.
        """
        root = pathlib.Path(source)
        vocabulary = findings_lib.vocabulary(findings)
        tables = root / _CSV_FOLDER if (root / _CSV_FOLDER / "train.csv").is_file() else root
        used = {split: official.require(tables, *TABLES[split]) for split in ("train", "valid")}
        test = official.find(tables, *TABLES["test"])
        if test:
            used["test"] = test
        parts = [_read(path, split, vocabulary, root) for split, path in used.items()]
        super().__init__(
            *(root, pa.concat_tables(index for index, _ in parts), np.concatenate([states for _, states in parts])),
            vocabulary=vocabulary,
            form=Form(image_size, max_megapixels, fit, bits),
            views=views,
            left_out={},
            parameters={"tables_sha256": official.digest(list(used.values()))},
            max_report_bytes=0,
        )


def _read(
    path: pathlib.Path, split: str, vocabulary: findings_lib.Vocabulary, root: pathlib.Path
) -> tuple[pa.Table, np.ndarray]:
    is_finding = official.names_finding(vocabulary)
    table = official.read(path, ("Path",), lambda name: name in _DETAILS or is_finding(name))
    checks = official.Checks(path, table)
    checks.matches("Path", _PATH, f"<folder>/{split}/patient00001/study1/view1_frontal.jpg")
    checks.unique("Path")
    checks.done()
    found = [_PARTS.fullmatch(name) for name in table["Path"].to_pylist()]
    parts = [match.groups() for match in found if match]
    inside = np.array([image_id.startswith(f"{split}/") for image_id, *_ in parts])
    checks.report("Path", inside, f"a path below {split}/")
    checks.done()
    columns = set(table.column_names)
    given = table["AP/PA"].to_pylist() if "AP/PA" in columns else [""] * len(parts)
    index = {
        "path": _paths(root, table["Path"].to_pylist(), split),
        "image_id": [image_id for image_id, *_ in parts],
        "patient": [patient for _, _, patient, _, _ in parts],
        "study": [study for _, study, _, _, _ in parts],
        "view": [
            "LATERAL" if side == "lateral" else view.upper() or "FRONTAL"
            for view, (_, _, _, side, _) in zip(given, parts, strict=True)
        ],
        "sex": [rows.sex(value) for value in table["Sex"].to_pylist()] if "Sex" in columns else [""] * len(parts),
        "age": pa.array(_ages(table) if "Age" in columns else [-1] * len(parts), pa.int16()),
        "split": [split] * len(parts),
    }
    return pa.table(index), official.states(path, table, vocabulary)


def _ages(table: pa.Table) -> list[int]:
    known = {value: rows.age(value) for value in pc.unique(table["Age"]).to_pylist()}
    return [known[value] for value in table["Age"].to_pylist()]


def _paths(root: pathlib.Path, names: list[str], split: str) -> list[str]:
    """Where the films lie below ``root``: as the table says, without the first folder, or in a batch."""
    inner = [name[name.index(f"{split}/") :] for name in names]
    folders = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir()]
    batches = [name for name in folders if re.fullmatch(r"CheXpert-v1\.0 batch \d+ \(train \d+\)", name)]
    if split == "train" and batches:
        # 65,000 patients in three folders: each is listed once, rather than asked for every film.
        holds = {entry.name: batch for batch in batches for entry in (root / batch).iterdir()}
        return [
            f"{holds.get(patient, batches[0])}/{patient}/{rest}"
            for _, patient, rest in (name.split("/", 2) for name in inner)
        ]
    first = {name.partition("/")[0] for name in names}
    bases = ["", *(f"{name}/" for name in sorted(first & set(folders)) if (root / name / split).is_dir())]
    bases += [f"{_CSV_FOLDER}/"] * (_CSV_FOLDER in folders)
    base = next((base for base in bases if (root / base / split).is_dir()), "")
    return [base + name for name in inner]
