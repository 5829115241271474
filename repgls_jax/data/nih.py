"""NIH ChestX-ray14, as the NIH Clinical Center gives it out.

<source>/Data_Entry_2017_v2020.csv or Data_Entry_2017.csv   a row a film, with the findings present
<source>/train_val_list.txt, test_list.txt                   the official split, disjoint by patient
<source>/BBox_List_2017.csv                                  boxes of 880 films, where there
<source>/images/<name>.png, or images_001/images/<name>.png ... images_012/images/<name>.png

valid is carved from train_val by a hash of the patient. A finding that is listed is positive, the others of the data
set's 14 are negative; its labels say nothing of doubts, nor of findings that it has no name for. There are no reports.
"""

import csv
import io
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repgls_jax import findings as findings_lib
from repgls_jax.data import official, rows, splits
from repgls_jax.data.films import Boxes, FilmSource, Form
from repgls_jax.data.images import Bits, Fit

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
BOXES = "BBox_List_2017.csv"
BOX_SIDE = 1024  # pixels of the published films, in which the boxes are given
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
_NAME = r"\d{8}_\d{3}\.png"
_SHOWN = 5


class NihSource(FilmSource):
    """The films of ChestX-ray14 in the order of its table; image_id and study_id are the file's name without .png."""

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        findings: str = "nih",
        image_size: int = 224,
        views: str | Sequence[str] = "frontal",
        seed: int = 0,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        fit: Fit = "pad",
        bits: Bits = 8,
        max_megapixels: float = 64,
    ):
        """Reads the tables; films are read later, one by one.

        Args:
          source: folder laid out as above.
          findings: name of the vocabulary.
          image_size: side of the images written, in pixels.
          views: see :class:`repgls_jax.data.films.FilmSource`; a film's own view is PA or AP.
          seed: of the choice of patients for valid.
          fractions: the share of train_val that becomes valid is the second by the sum of the first two.
          fit: "pad" adds black to films that are not square, "crop" takes the square in their middle.
          bits: of a pixel, 8 or 16; 16 keeps what films of more than 8 bits show.
          max_megapixels: larger films are quarantined from their header.

        Raises:
          FileNotFoundError: no such folder, or it lacks the table or a list.
          ValueError: a table cannot be used; the message says what was found.
        """
        root = pathlib.Path(source)
        vocabulary = findings_lib.vocabulary(findings)
        path = official.require(root, *TABLES)
        lists = {split: official.require(root, name) for split, name in LISTS.items()}
        table = _table(path)
        split, listed = _splits(lists, table["Image Index"])
        lies = _lies(root)
        index = _index(table, split, lies, fractions, seed)
        has_split = split != ""
        boxes = official.find(root, BOXES)
        self._boxes = {
            image_id: [box for box in drawn if box[0] in vocabulary.findings]
            for image_id, drawn in (_boxes(boxes) if boxes else {}).items()
        }
        used = [path, *lists.values(), *([boxes] if boxes else [])]
        super().__init__(
            *(root, index.filter(pa.array(has_split)), _labels(path, table, vocabulary)[has_split]),
            vocabulary=vocabulary,
            form=Form(image_size, max_megapixels, fit, bits),
            views=views,
            left_out={
                "in no list": int((~has_split).sum()),
                "listed, but not in the table": listed - int(has_split.sum()),
                "file without a row": len(set(lies) - set(table["Image Index"].to_pylist())),
                "boxes of a film without a row": len(set(self._boxes) - set(index["image_id"].to_pylist())),
            },
            parameters={
                "tables_sha256": official.digest(used),
                "splits": {"seed": seed, "fractions": list(fractions)},
            },
            max_report_bytes=0,
        )

    def boxes(self, film: dict[str, Any]) -> Boxes:
        """Boxes as shares of the film's sides, so that they fit resized copies too."""
        return self._boxes.get(film["image_id"], [])


def _table(path: pathlib.Path) -> pa.Table:
    table = official.read(path, _COLUMNS)
    checks = official.Checks(path, table)
    checks.matches("Image Index", _NAME, "a name such as 00000001_000.png")
    checks.matches("Patient ID", r"\d{1,8}", "a number")
    checks.unique("Image Index")
    checks.done()
    first = pc.utf8_ltrim(pc.utf8_slice_codeunits(table["Image Index"], 0, 8), "0")
    checks.report(
        "Patient ID", pc.equal(first, pc.utf8_ltrim(table["Patient ID"], "0")).to_numpy(), "the image's patient"
    )
    checks.done()
    return table


def _splits(lists: dict[str, pathlib.Path], names: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """The split of each film, "" for none, and how many films are listed."""
    found = np.full(len(names), "", "U5")
    seen: set[str] = set()
    for split, path in lists.items():
        listed = official.lines(path)
        wrong = [name for name in listed if not re.fullmatch(_NAME, name)]
        twice = len(listed) - len(set(listed)) + len(seen.intersection(listed))
        if wrong or twice or not listed:
            raise ValueError(
                f"{path} holds {len(listed)} lines, {len(wrong)} of which are no names such as 00000001_000.png, and "
                f"{twice} stand twice in the lists; fetch it again"
            )
        seen.update(listed)
        found[official.positions(names, pa.array(listed)) >= 0] = split
    return found, len(seen)


def _index(table: pa.Table, split: np.ndarray, lies: dict[str, str], fractions: Sequence[float], seed: int) -> pa.Table:
    names = table["Image Index"].to_pylist()
    patients = np.array(table["Patient ID"].to_pylist())
    given = dict(zip(patients[split != ""].tolist(), split[split != ""].tolist(), strict=True))
    chosen = splits.with_valid(given, fractions, seed)
    stems = [name.removesuffix(".png") for name in names]
    return pa.table(
        {
            "path": [lies.get(name, f"images/{name}") for name in names],
            "image_id": stems,
            "patient": patients,
            "study": stems,
            "view": table["View Position"],
            "sex": [rows.sex(value) for value in table["Patient Gender"].to_pylist()],
            "age": pa.array([rows.age(value) for value in table["Patient Age"].to_pylist()], pa.int16()),
            # Both halves of a patient who is in two lists keep theirs, to be refused.
            "split": [s and (chosen[p] if s == given[p] else s) for s, p in zip(split, patients, strict=True)],
        }
    )


def _lies(root: pathlib.Path) -> dict[str, str]:
    """Name -> path below ``root`` of every film that is there."""
    folders = [root / "images", *sorted(root.glob("images_[0-9][0-9][0-9]/images"))]
    found: dict[str, str] = {}
    for folder in folders:
        if folder.is_dir():
            base = folder.relative_to(root).as_posix()
            for entry in os.scandir(folder):
                if re.fullmatch(_NAME, entry.name):
                    found.setdefault(entry.name, f"{base}/{entry.name}")
    return found


def _labels(path: pathlib.Path, table: pa.Table, vocabulary: findings_lib.Vocabulary) -> np.ndarray:
    """int8 [n, c]: those of the data set's findings, and No Finding, that the vocabulary has; -2 for the others."""
    labels = np.full((table.num_rows, len(vocabulary)), findings_lib.NOT_MENTIONED, np.int8)
    known = (*findings_lib.NIH.findings, findings_lib.NO_FINDING)
    places = {finding: vocabulary.index(finding) for finding in known if finding in vocabulary.findings}
    labels[:, list(places.values())] = findings_lib.NEGATIVE
    cells = table["Finding Labels"].combine_chunks().dictionary_encode()
    combinations = [
        [findings_lib.canonical(name.strip()) for name in cell.split("|")] for cell in cells.dictionary.to_pylist()
    ]
    good = np.array([set(c) <= set(known) and (findings_lib.NO_FINDING not in c or len(c) == 1) for c in combinations])
    rows_of = cells.indices.to_numpy()
    checks = official.Checks(path, table)
    checks.report("Finding Labels", good[rows_of], f"{findings_lib.NO_FINDING}, or findings with | between them")
    checks.done()
    positive = np.zeros((len(combinations), len(vocabulary)), bool)
    for i, combination in enumerate(combinations):
        positive[i, [places[finding] for finding in combination if finding in places]] = True
    labels[positive[rows_of]] = findings_lib.POSITIVE
    return labels


def _boxes(path: pathlib.Path) -> dict[str, Boxes]:
    """image_id -> its boxes. The header has commas within a name, so that columns go by their place."""
    found: dict[str, Boxes] = defaultdict(list)
    bad: list[str] = []
    try:
        lines = list(csv.reader(io.StringIO(official.content(path).decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"table {path} is no CSV file of UTF-8; fetch it again") from None
    for number, line in enumerate(lines[1:], 1):
        try:
            name, finding, x, y, width, height = line[:6]
            corners = [float(value) / BOX_SIDE for value in (x, y)]
            corners += [corners[0] + float(width) / BOX_SIDE, corners[1] + float(height) / BOX_SIDE]
        except ValueError:
            bad.append(str(number))
            continue
        finding = findings_lib.canonical(finding)
        whole = 0 <= corners[0] < corners[2] <= 1.001 and 0 <= corners[1] < corners[3] <= 1.001
        if not whole or finding not in findings_lib.NIH.findings or not re.fullmatch(_NAME, name):
            bad.append(str(number))
            continue
        found[name.removesuffix(".png")].append((finding, *corners))  # type: ignore[arg-type]
    if bad:
        raise ValueError(
            f"table {path} has {len(bad)} rows (row {', '.join(bad[:_SHOWN])}) that are no boxes: expected a film's "
            f"name, one of the 14 findings, and x, y, width, height within {BOX_SIDE} pixels"
        )
    return dict(found)
