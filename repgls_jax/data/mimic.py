"""MIMIC-CXR and MIMIC-CXR-JPG, as PhysioNet gives them out.

<source>/mimic-cxr-2.0.0-metadata.csv[.gz]           dicom_id, subject_id, study_id, ViewPosition, StudyDate
<source>/mimic-cxr-2.0.0-split.csv[.gz]              the official split: train, validate, test, disjoint by patient
<source>/mimic-cxr-2.0.0-{chexpert,negbio}.csv[.gz]  labels of a study
<source>/mimic-cxr-2.1.0-test-set-labeled.csv[.gz]   labels by radiologists, of a part of the test set
<source>/files/p10/p10000032/s50414267/<dicom_id>.jpg or .dcm
<source>/files/p10/p10000032/s50414267.txt, or <source>/mimic-cxr-reports.zip with the same paths
<source>/patients.csv[.gz]                           of MIMIC-IV, where there: sex, and age in the year of the study

The tables belong to MIMIC-CXR-JPG; with the DICOM films of MIMIC-CXR they are put beside its folder files/.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repgls_jax import findings as findings_lib
from repgls_jax.data import official
from repgls_jax.data.films import FilmSource, Form, UnusableReportError
from repgls_jax.data.images import Bits, Fit
from repgls_jax.data.mimic_reports import Reports
from repgls_jax.data.source import UNKNOWN_AGE
from repgls_jax.data.splits import OFFICIAL

METADATA, SPLIT = "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-split.csv"
LABELS = {
    "chexpert": "mimic-cxr-2.0.0-chexpert.csv",
    "negbio": "mimic-cxr-2.0.0-negbio.csv",
    "radiologist": "mimic-cxr-2.1.0-test-set-labeled.csv",
    "none": "",
}
PATIENTS = "patients.csv"
OLDEST = 120  # years
_TYPES = (".jpg", ".dcm")


class MimicSource(FilmSource):
    """The films of MIMIC-CXR in the order of its metadata; study_id and patient_id are its numbers, without letters."""

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        findings: str = "chexpert",
        image_size: int = 224,
        views: str | Sequence[str] = "frontal",
        images: Literal["auto", "jpg", "dcm"] = "auto",
        labels: str = "chexpert",
        test_labels: str = "",
        reports: str = "",
        fit: Fit = "pad",
        bits: Bits = 8,
        max_megapixels: float = 64,
        max_report_bytes: int = 1_000_000,
    ):
        """Reads and joins the tables; films and reports are read later, one by one.

        Args:
          source: folder laid out as above.
          findings: name of the vocabulary.
          image_size: side of the images written, in pixels.
          views: see :class:`repgls_jax.data.films.FilmSource`; a film's own view is its ViewPosition.
          images: type of the films; "auto" is that of the first film that is there, .jpg before .dcm.
          labels: of all studies, from :data:`LABELS`.
          test_labels: of the test set, where they are others; "" for the same. Studies that the table does not have are
            not mentioned throughout, so that labels of two origins are never mixed in an evaluation.
          reports: folder that holds files/, or .zip, absolute or below ``source``; "" for whichever lies in ``source``,
            "none" for none.
          fit: "pad" adds black to films that are not square, "crop" takes the square in their middle.
          bits: of a pixel, 8 or 16; 16 keeps what films of more than 8 bits show.
          max_megapixels: larger films are quarantined from their header.
          max_report_bytes: films of studies with a longer report are quarantined.

        Raises:
          FileNotFoundError: no such folder or table.
          ValueError: a table cannot be used, or an option is unknown; the message says what was found.
        """
        root = pathlib.Path(source)
        vocabulary = findings_lib.vocabulary(findings)
        _check(images, labels, test_labels)
        used = {METADATA: official.require(root, METADATA), SPLIT: official.require(root, SPLIT)}
        index, left_out = _index(used[METADATA], used[SPLIT])
        states, tables = _states(root, index, labels, test_labels or labels, vocabulary)
        used |= tables
        patients = official.find(root, PATIENTS)
        if patients:
            used[PATIENTS] = patients
            index = _with_people(index, patients)
        suffix = _suffix(root, index["path"]) if images == "auto" else f".{images}"
        index = _set(index, "path", pc.binary_join_element_wise(index["path"], suffix, ""))
        self._reports = Reports.of(root, reports)
        super().__init__(
            *(root, index.drop_columns("date"), states),
            vocabulary=vocabulary,
            form=Form(image_size, max_megapixels, fit, bits),
            views=views,
            left_out=left_out,
            parameters={
                "tables_sha256": official.digest(list(used.values())),
                "images": suffix[1:],
                "labels": labels,
                "test_labels": test_labels or labels,
            },
            max_report_bytes=max_report_bytes,
        )
        self._parameters |= self._reports.stamp(self._films["patient"], self._films["study"])

    def texts(self, film: dict[str, Any]) -> dict[str, str]:
        """The report as a whole; none where the study has none."""
        try:
            return {"report": self._reports.read(film["patient"], film["study"])}
        except ValueError as error:
            raise UnusableReportError(f"the report: {error}") from None


def _check(images: str, *labels: str) -> None:
    if images not in ("auto", "jpg", "dcm") or any(name not in LABELS for name in labels if name):
        raise ValueError(
            f"labels and test_labels are {labels}, images {images!r}; expected labels from {', '.join(LABELS)}, and "
            "images auto, jpg or dcm"
        )


def _set(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _index(metadata: pathlib.Path, split: pathlib.Path) -> tuple[pa.Table, dict[str, int]]:
    """The films that have a split, their path yet without a suffix; and how many have none."""
    films = official.read(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition"), {"StudyDate"}.__contains__)
    checks = official.Checks(metadata, films)
    checks.matches("dicom_id", "[0-9a-f]{8}(?:-[0-9a-f]{8}){4}", "40 hexadecimal digits in five groups")
    checks.matches("subject_id", r"\d{8}", "8 digits")
    checks.matches("study_id", r"\d{8}", "8 digits")
    checks.unique("dicom_id")
    checks.done()
    given = official.read(split, ("dicom_id", "split"))
    checks = official.Checks(split, given)
    checks.matches("split", "train|validate|test", "train, validate or test")
    checks.unique("dicom_id")
    checks.done()
    total, place = films.num_rows, official.positions(films["dicom_id"], given["dicom_id"])
    films, place = films.filter(pa.array(place >= 0)), place[place >= 0]
    n, patients, studies = films.num_rows, films["subject_id"], films["study_id"]
    several = len(films.group_by(["subject_id", "study_id"]).aggregate([])) - len(pc.unique(studies))
    if several:
        raise ValueError(f"table {metadata}: {several} studies have more than one subject_id; fetch it again")
    folders = (pc.utf8_slice_codeunits(patients, 0, 2), patients, studies)
    parts = [pc.binary_join_element_wise(letter, part, "") for letter, part in zip("pps", folders, strict=True)]
    index = {
        "path": pc.binary_join_element_wise("files", *parts, films["dicom_id"], "/"),
        "image_id": films["dicom_id"],
        "patient": patients,
        "study": studies,
        "view": films["ViewPosition"],
        "sex": pa.array([""] * n),
        "age": pa.array(np.full(n, UNKNOWN_AGE, np.int16)),
        "split": pa.array([OFFICIAL[name] for name in given["split"].take(place).to_pylist()]),
        "date": films["StudyDate"] if "StudyDate" in films.column_names else pa.array([""] * n),
    }
    return pa.table(index), {"no split": total - n}


def _states(
    root: pathlib.Path, index: pa.Table, labels: str, test_labels: str, vocabulary: findings_lib.Vocabulary
) -> tuple[np.ndarray, dict[str, pathlib.Path]]:
    """int8 [n, c] labels of the films, and the tables that they are from."""
    states = np.full((index.num_rows, len(vocabulary)), findings_lib.NOT_MENTIONED, np.int8)
    used = {}
    in_test = pc.equal(index["split"], "test").to_numpy()
    for name, rows in ((labels, ~in_test), (test_labels, in_test)):
        if LABELS[name]:
            path = used[name] = official.require(root, LABELS[name], advice="or take other labels=")
            states[rows] = _labels(path, index["study"].filter(pa.array(rows)), vocabulary)
    return states, used


def _labels(path: pathlib.Path, studies: pa.ChunkedArray, vocabulary: findings_lib.Vocabulary) -> np.ndarray:
    """int8 [studies, c]; -2 throughout for a study that the table does not have."""
    table = official.read(path, ("study_id",), official.names_finding(vocabulary))
    checks = official.Checks(path, table)
    checks.unique("study_id")
    checks.done()
    nothing = np.full((1, len(vocabulary)), findings_lib.NOT_MENTIONED, np.int8)
    place = official.positions(studies, table["study_id"])
    known = np.concatenate([official.states(path, table, vocabulary), nothing])
    return known[place]  # -1 is the last, which is nothing


def _with_people(index: pa.Table, path: pathlib.Path) -> pa.Table:
    """Adds sex, and the age in the year of the study: dates are shifted, but alike for all tables of a patient."""
    people = official.read(path, ("subject_id", "gender", "anchor_age", "anchor_year"))
    checks = official.Checks(path, people)
    checks.matches("gender", "[FM]?", "F, M or blank")
    checks.matches("anchor_age", r"\d{1,3}", "years")
    checks.matches("anchor_year", r"\d{4}", "a year")
    checks.unique("subject_id")
    checks.done()
    place = official.positions(index["patient"], people["subject_id"])
    age, year = (np.append(people[name].cast(pa.int32()), -1)[place] for name in ("anchor_age", "anchor_year"))
    dated = pc.match_substring_regex(index["date"], r"^\d{8}$").to_numpy()
    of_study = np.where(dated, pc.utf8_slice_codeunits(index["date"], 0, 4), "0").astype(np.int32)
    now = age + of_study - year
    known = dated & (place >= 0) & (now >= 0) & (now <= OLDEST)
    sexes = np.append(people["gender"].to_numpy(), "")[place]
    index = _set(index, "sex", pa.array(sexes, pa.string()))
    return _set(index, "age", pa.array(np.where(known, now, UNKNOWN_AGE).astype(np.int16)))


def _suffix(root: pathlib.Path, paths: pa.ChunkedArray) -> str:
    for path in paths.to_pylist():
        for suffix in _TYPES:
            if (root / f"{path}{suffix}").is_file():
                return suffix
    return _TYPES[0]
