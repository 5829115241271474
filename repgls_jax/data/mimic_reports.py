"""The reports of MIMIC-CXR, each found by its number alone: in a folder, or in the archive as it is given out.

Of an archive only the places of its reports are kept, 30 bytes each: a source is copied to every process.
"""

import dataclasses
import pathlib
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import pyarrow as pa

from repgls_jax.data import images, official
from repgls_jax.data.films import look

ARCHIVE = "mimic-cxr-reports.zip"
MAX_BYTES = 4 * 2**20  # of one report; the longest has 11 kB
MAX_REPORTS = 1_000_000  # there are 227,835
_NAME = re.compile(r"(?:.*/)?s([0-9]{8})\.txt")
_PLACE = [("study", "i8"), ("at", "i8"), ("packed", "i8"), ("crc", "u4"), ("method", "u2"), ("encrypted", "?")]
_FAR = 2**62
_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, ..., lengths of the name and of the extra field


@dataclasses.dataclass(frozen=True)
class Reports:
    """Where the reports are.

    Attributes:
      path: folder that holds files/, archive, or None for no reports.
      places: of the archive's reports, by their study.
    """

    path: pathlib.Path | None
    places: np.ndarray

    @classmethod
    def of(cls, root: pathlib.Path, where: str) -> "Reports":
        """Finds the reports.

        Args:
          root: the data folder.
          where: folder or .zip, absolute or below ``root``; "" for whichever is in ``root``, "none" for none.

        Raises:
          FileNotFoundError: it is not there.
          ValueError: it is no folder and no archive of reports.
        """
        none = np.empty(0, _PLACE)
        if where == "none":
            return cls(None, none)
        path = root / (where or (ARCHIVE if (root / ARCHIVE).is_file() else "."))
        if not path.exists():
            raise FileNotFoundError(f"reports {path} do not exist; give a folder that holds files/, or {ARCHIVE}")
        return cls(path, none if path.is_dir() else _places(path))

    def read(self, patient: str, study: str) -> str:
        """The report of a study; "" where there is none.

        Raises:
          ValueError: it cannot be read. The message holds nothing of it.
        """
        if self.path is None:
            return ""
        data = _file(self.path, _name(patient, study)) if self.path.is_dir() else self._member(self.path, int(study))
        if len(data) > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES} bytes")
        try:
            return data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError("bytes that are not UTF-8") from None

    def _member(self, archive: pathlib.Path, study: int) -> bytes:
        i = int(np.searchsorted(self.places["study"], study))
        if i == len(self.places) or self.places["study"][i] != study:
            return b""
        _, at, packed, crc, method, encrypted = self.places[i].tolist()
        if encrypted or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or packed > MAX_BYTES:
            raise ValueError("encrypted, compressed by another method than deflate, or too long")
        try:
            with archive.open("rb") as file:
                file.seek(at)
                signature, *lengths = _HEADER.unpack(file.read(_HEADER.size))
                file.seek(sum(lengths), 1)
                data = file.read(packed)
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MAX_BYTES + 1)
        except (OSError, struct.error, zlib.error) as error:
            raise ValueError(f"cannot be unpacked ({type(error).__name__})") from None
        if signature != b"PK\3\4" or (len(data) <= MAX_BYTES and zlib.crc32(data) != crc):
            raise ValueError("cannot be unpacked: damaged")
        return data

    def stamp(self, patients: pa.ChunkedArray, studies: pa.ChunkedArray) -> dict[str, Any]:
        """What the reports of some films follow from, and how many of their studies have none."""
        if self.path is None:
            return {"reports": "none"}
        unique = pa.table({"patient": patients, "study": studies}).group_by(["patient", "study"]).aggregate([])
        if self.path.is_dir():
            pairs = zip(unique["patient"].to_pylist(), unique["study"].to_pylist(), strict=True)
            present, digest = look(self.path, sorted(_name(patient, study) for patient, study in pairs))
            missing = int((~present).sum())
        else:
            digest = official.digest([self.path])[self.path.name]
            missing = int((~np.isin(unique["study"].cast(pa.int64()), self.places["study"])).sum())
        return {"reports": "folder" if self.path.is_dir() else "archive", "reports_sha256": digest} | {
            "studies_without_report": missing
        }


def _name(patient: str, study: str) -> str:
    return f"files/p{patient[:2]}/p{patient}/s{study}.txt"


def _file(folder: pathlib.Path, name: str) -> bytes:
    if not (folder / name).exists():
        return b""
    try:
        with images.locate(folder, name).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except images.UnusableImageError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise ValueError(f"the file cannot be read ({error.strerror})") from None


def _places(path: pathlib.Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [(found[1], info) for info in archive.infolist() if (found := _NAME.fullmatch(info.filename))]
    except (zipfile.BadZipFile, struct.error, EOFError, ValueError, NotImplementedError) as error:
        raise ValueError(f"reports {path} are no readable .zip ({type(error).__name__}); fetch them again") from None
    if not 0 < len(infos) <= MAX_REPORTS:
        raise ValueError(f"reports {path} hold {len(infos)} files s<8 digits>.txt; expected 1 to {MAX_REPORTS}")
    rows = [  # offsets and sizes of up to 64 bits; what lies beyond the file is found when it is read
        (
            *(int(study), min(max(info.header_offset, 0), _FAR), min(info.compress_size, _FAR)),
            *(info.CRC, info.compress_type, info.flag_bits & 1),
        )
        for study, info in infos
    ]
    places = np.sort(np.array(rows, _PLACE), order="study")
    twice = places["study"][1:][np.diff(places["study"]) == 0]
    if len(twice):
        raise ValueError(f"reports {path} hold {len(twice)} studies twice, such as s{twice[0]}.txt")
    return places
