"""Open-i: the chest films and reports of Indiana University, as the National Library of Medicine gives them out.

<source>/NLMCXR_reports.tgz, or the folder ecgen-radiology/ with N.xml   reports, MeSH codes, ids of the films
<source>/NLMCXR_png.tgz, or the folder NLMCXR_png/ or images/           films: CXR1_1_IM-0001-3001.png; the archive is
                                                                        unpacked beside itself, once
<source>/indiana_projections.csv                                        uid, filename, projection: which films are
                                                                        frontal, which the archives do not say

No patients are told apart: each report counts as one, and the split is by a hash of its id. A report of which no film
is there is counted, and left out; a folder of reports alone is a data set without films. Films are known by the number
of the report and by what follows it, because file names begin in several ways ("CXR1_1_IM-0001-3001.png",
"1_IM-0001-3001.dcm.png").

Labels are the codes that people gave the reports (MeSH, "major"; those that a program found are not used), as
:mod:`repgls_jax.data.openi_codes` reads them: positive, or uncertain; whatever is not coded is not mentioned.
"""

import hashlib
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax.data import download as download_lib
from repgls_jax.data import official, openi_codes, splits
from repgls_jax.data.films import ALL_VIEWS, FilmSource, Form, view_names
from repgls_jax.data.images import Bits, Fit
from repgls_jax.data.source import UNKNOWN_AGE
from repgls_jax.extraction import archives
from repgls_jax.extraction.backends import Fault

# The library gives no checksums: a damaged archive is noticed when it is unpacked.
URLS = {
    "NLMCXR_reports.tgz": "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz",
    "NLMCXR_png.tgz": "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_png.tgz",
}
REPORTS, FILMS = tuple(URLS)
PLACES = {REPORTS: ("ecgen-radiology", REPORTS), FILMS: ("NLMCXR_png", "images", FILMS)}
PROJECTIONS = "indiana_projections.csv"

_Key = tuple[int, str]
_Document = tuple[str, dict[str, str], list[str], list[str]]  # study, its texts, ids of its films, codes
_Film = tuple[str, str, str, str, str, int]  # path, image_id, study, view, split, number of the document
_NAME = re.compile(r"(?:CXR)?([0-9]{1,6})_(?:[0-9]+_)?(IM-[0-9]+(?:-[0-9]+)*)(?:\.dcm)?(?:\.png)?")


class OpeniSource(FilmSource):
    """The films of Open-i in the order of their ids; image_id is "CXR1_1_IM-0001-3001", study_id and patient "CXR1"."""

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        findings: str = "union",
        image_size: int = 224,
        views: str | Sequence[str] = "frontal",
        seed: int = 0,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        download: bool = False,
        fit: Fit = "pad",
        bits: Bits = 8,
        max_megapixels: float = 64,
        max_report_bytes: int = 1_000_000,
    ):
        """Reads the reports; films are read later, one by one.

        Args:
          source: folder laid out as above.
          findings: name of the vocabulary.
          image_size: side of the images written, in pixels.
          views: see :class:`repgls_jax.data.films.FilmSource`; a film's own view is FRONTAL or LATERAL.
          seed: of the assignment of reports to splits.
          fractions: of reports in train, valid and test.
          download: fetches what is missing of :data:`URLS` into ``source``, 1.3 GB, going on where it was broken off.
          fit: "pad" adds black to films that are not square, "crop" takes the square in their middle.
          bits: of a pixel, 8 or 16; 16 keeps what films of more than 8 bits show.
          max_megapixels: larger films are quarantined from their header.
          max_report_bytes: films of studies with a longer report are quarantined.

        Raises:
          FileNotFoundError: there are no reports.
          ValueError: they cannot be used, nothing says which films are frontal, or the download breaks off.
        """
        root = pathlib.Path(source)
        vocabulary = findings_lib.vocabulary(findings)
        if download:
            _fetch(root)
        reports = next((root / name for name in PLACES[REPORTS] if (root / name).exists()), None)
        if reports is None:
            raise FileNotFoundError(f"{root} holds neither {REPORTS} nor ecgen-radiology/; --option=download=true")
        documents, left_out = _documents(reports)
        split_of = splits.by_hash([study for study, *_ in documents], fractions, seed)
        projections = official.find(root, PROJECTIONS)
        view_of = _views(root, projections, views)
        films = _films(documents, _lies(root), view_of, split_of)
        left_out["film not there"] = sum(len(image_ids) for _, _, image_ids, _ in documents) - len(films)
        left_out["report without a film"] = len(documents) - len({study for _, _, study, *_ in films})
        self._texts = {study: texts for study, texts, _, _ in documents}
        states = openi_codes.labels([codes for *_, codes in documents], vocabulary)
        super().__init__(
            *(root, _index(films), states[[row for *_, row in films]]),
            vocabulary=vocabulary,
            form=Form(image_size, max_megapixels, fit, bits),
            views=views,
            left_out=left_out,
            parameters={
                "reports": len(documents),
                "reports_sha256": _digest(documents),
                "tables_sha256": official.digest([projections] if projections else []),
                "splits": {"seed": seed, "fractions": list(fractions)},
            },
            max_report_bytes=max_report_bytes,
        )

    def texts(self, film: dict[str, Any]) -> dict[str, str]:
        """Findings and impression."""
        return self._texts[film["study"]]


def _fetch(root: pathlib.Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, url in URLS.items():
        if not any((root / other).exists() for other in PLACES[name]):
            download_lib.fetch(url, root / name)


def _documents(path: pathlib.Path) -> tuple[list[_Document], Counter[str]]:
    """The reports in the order of their numbers; and how many cannot be used, by reason."""
    found: dict[str, _Document] = {}
    left_out: Counter[str] = Counter()
    for _, data, _ in archives.openi_files(path):
        try:
            if isinstance(data, Fault):
                raise ValueError(data.reason)
            document = _document(data)
            if document[0] in found:
                raise ValueError("another report has its id")
        except ValueError as error:
            left_out[f"report: {error}"] += 1
            continue
        found[document[0]] = document
    if not found:
        raise ValueError(
            f"{path} holds no report that can be used ({dict(left_out)}); expected the .xml files of Open-i"
        )
    return sorted(found.values(), key=lambda document: (len(document[0]), document[0])), left_out


def _document(data: bytes) -> _Document:
    report = archives.parse_openi(data)  # which has refused what would be dangerous to parse again
    root = ElementTree.fromstring(data)
    study = report.pop("study_id")
    if not re.fullmatch(r"CXR[0-9]{1,6}", study):
        raise ValueError("the id is not CXR and a number")
    ids = [image.get("id", "") for image in root.iter("parentImage")]
    codes = [(code.text or "").strip() for code in root.iter("major")]
    # One name a film, and no film of another report: an image id stands for one image.
    films = {key: name for name in reversed(ids) if (key := _key(name)) and f"CXR{key[0]}" == study}
    return study, report, [films[key] for key in dict.fromkeys(map(_key, ids)) if key in films], codes


def _key(name: str) -> _Key | None:
    """What is the same in all names of a film."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def _lies(root: pathlib.Path) -> dict[_Key | None, str]:
    """Path below ``root`` of every film that is there; unpacks the archive where there is no folder yet."""
    folder = next((root / name for name in PLACES[FILMS] if (root / name).is_dir()), None)
    if folder is None and (root / FILMS).is_file():
        folder = root / PLACES[FILMS][0]
        download_lib.unpack(root / FILMS, folder, re.compile(_NAME.pattern + r"(?<=\.png)"))
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".png")) if folder else []
    return {key: f"{folder.name}/{name}" for name in names if folder and (key := _key(name))}


def _views(root: pathlib.Path, path: pathlib.Path | None, views: str | Sequence[str]) -> dict[_Key | None, str]:
    if path is None:
        if ALL_VIEWS in view_names(views):
            return {}
        raise ValueError(
            f"nothing says which films are {views}: put {PROJECTIONS} (uid, filename, projection) into {root}, "
            f"or take views={ALL_VIEWS}"
        )
    table = official.read(path, ("uid", "filename", "projection"))
    checks = official.Checks(path, table)
    checks.matches("filename", _NAME.pattern, "a name such as 1_IM-0001-4001.dcm.png")
    checks.matches("projection", "Frontal|Lateral", "Frontal or Lateral")
    checks.done()
    rows = zip(table["filename"].to_pylist(), table["projection"].to_pylist(), strict=True)
    return {_key(name): projection.upper() for name, projection in rows}


def _films(
    documents: list[_Document],
    lies: dict[_Key | None, str],
    view_of: dict[_Key | None, str],
    split_of: dict[str, str],
) -> list[_Film]:
    return [
        (lies[key], image_id, study, view_of.get(key, ""), split_of[study], row)
        for row, (study, _, image_ids, _) in enumerate(documents)
        for image_id in image_ids
        if (key := _key(image_id)) in lies
    ]


def _index(films: list[_Film]) -> pa.Table:
    paths, image_ids, studies, views, split, _ = zip(*films, strict=True) if films else [()] * 6
    text: dict[str, Sequence[str]] = {
        "path": paths,
        "image_id": image_ids,
        "patient": studies,
        "study": studies,
        "view": views,
    }
    text |= {"sex": [""] * len(films), "split": split}
    columns = {name: pa.array(values, pa.string()) for name, values in text.items()}
    return pa.table(columns | {"age": pa.array([UNKNOWN_AGE] * len(films), pa.int16())})


def _digest(documents: list[_Document]) -> str:
    return hashlib.sha256(json.dumps(documents).encode()).hexdigest()
