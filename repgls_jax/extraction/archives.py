"""Reports as they are published: folders and archives of single files, streamed without unpacking anything to disk.

MIMIC-CXR: a folder or .zip of files/p10/p10000032/s50414267.txt. The name without its "s" is the study_id, as in the
tables of that data set; the text is the field "report".
Open-i: a .tgz, .tar.gz, folder or .zip of ecgen-radiology/N.xml. The uId ("CXR1") is the study_id; the abstract's
FINDINGS and IMPRESSION are the fields, its COMPARISON and INDICATION are left out.
Other folders and .zip files of .txt: the file's name without ".txt" is the study_id, the text is the field "report".
"""

import contextlib
import dataclasses
import gzip
import io
import os
import pathlib
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any
from xml.etree import ElementTree
from xml.parsers import expat

from repgls_jax.extraction.backends import Fault

MAX_MEMBER = 4 * 2**20  # bytes of one report's file; MIMIC-CXR's longest has 11 kB
MAX_MEMBERS = 1_000_000  # MIMIC-CXR has 227,835 reports
MAX_RATIO = 200  # bytes out per byte in; English text gives 3, the XML of Open-i 15
_FLOOR = 64 * 2**20  # bytes that an archive may give whatever its ratio
_MAX_HEADERS = 2**20  # bytes before a member of a tar file, which are read at once

# What the readers of archives raise for mangled ones; a NotImplementedError is a version or compression of the future.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    UnicodeDecodeError,
    NotImplementedError,
)

Report = dict[str, str]
Row = tuple[str, Report | Fault, float]  # where it stands, the report, share of the archive read by then, [0, 1]
_Member = tuple[str, bytes | Fault, float]


def rows(path: pathlib.Path) -> Iterator[Row]:
    """Reports of a folder or archive, each with a study_id; those of folders and .zip files are sorted by path.

    Args:
      path: folder, .zip, .tgz or .tar.gz.

    Raises:
      ValueError: it holds no report, too many files, or is damaged or suspect as a whole. A member that cannot be used
        is a :class:`~repgls_jax.extraction.backends.Fault` in its place instead.
    """
    if path.is_dir():
        names = _walk(path)
        kind = _kind(path, names)
        for name in names:
            if not kind.holds(name) and (path / name).is_dir():
                yield f"folder {name[-200:]}", Fault("a link to a folder, which is not followed"), 0.0
        yield from _parsed(_read_files(path, [name for name in names if kind.holds(name)]), kind)
    elif path.suffix.lower() == ".zip":
        with _damage_told(path), zipfile.ZipFile(path) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.filename)
            kind = _kind(path, [info.filename for info in infos])
            yield from _parsed(_read_zip(archive, [info for info in infos if kind.holds(info.filename)]), kind)
    else:
        found = False
        with _damage_told(path):
            for row in _parsed(_read_tar(path, _OPENI), _OPENI):
                found = True
                yield row
        if not found:
            raise ValueError(f"{path} holds no .xml file; expected the reports of Open-i, or a .zip of text files")


def openi_files(path: pathlib.Path) -> Iterator[_Member]:
    """The files of Open-i's reports in a folder or .tgz: (name, bytes or why there are none, share read so far)."""
    if path.is_dir():
        yield from _read_files(path, [name for name in _walk(path) if _OPENI.holds(name)])
    else:
        with _damage_told(path):
            yield from _read_tar(path, _OPENI)


def parse_openi(data: bytes) -> Report:
    """One report of Open-i: study_id, findings and impression ("" where the report has none).

    Raises:
      ValueError: it is no XML, declares a document type (entities could be anything), or is no report of Open-i. The
        message holds nothing of the file.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"not well-formed XML: {expat.ErrorString(error.code)}, line {error.lineno}") from None
    except (LookupError, UnicodeError, TypeError):
        raise ValueError("XML in an encoding that is not known") from None
    root = builder.close()
    uid = root.find("uId")
    if uid is None or not uid.get("id"):
        raise ValueError("no <uId id=...>: not a report of Open-i")
    parts: dict[str, list[str]] = {"FINDINGS": [], "IMPRESSION": []}
    for element in root.iter("AbstractText"):
        text = "".join(element.itertext()).strip()
        if element.get("Label", "").upper() in parts and text:
            parts[element.get("Label", "").upper()].append(text)
    return {
        "study_id": uid.get("id", ""),
        "findings": "\n".join(parts["FINDINGS"]),
        "impression": "\n".join(parts["IMPRESSION"]),
    }


def _refuse(*_: Any) -> None:
    raise ValueError("declares a document type; reports of Open-i have none")


def _decoded(data: bytes) -> str:
    """The text; bytes that are not UTF-8 come out marked, for :mod:`repgls_jax.extraction.source` to refuse."""
    return data.decode("utf-8-sig", "surrogateescape")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How the reports of one publisher are found and read.

    Attributes:
      name: pattern of a file's name; group 1 is the study_id of a text.
      parse: None for texts.
    """

    name: re.Pattern[str]
    parse: Callable[[bytes], Report] | None = None

    def holds(self, path: str) -> bool:
        return self.name.fullmatch(_base(path)) is not None

    def read(self, path: str, data: bytes) -> Report:
        if self.parse is not None:
            return self.parse(data)
        match = self.name.fullmatch(_base(path))
        assert match is not None  # it was chosen by its name
        return {"study_id": match[1], "report": _decoded(data)}


# Names that begin with a dot are what systems leave beside files.
_MIMIC = _Kind(re.compile(r"s(\d+)\.txt"))
_OPENI = _Kind(re.compile(r"[^.].*\.xml", re.IGNORECASE | re.DOTALL), parse_openi)
_TEXTS = _Kind(re.compile(r"([^.].*)\.txt", re.IGNORECASE | re.DOTALL))


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _kind(path: pathlib.Path, names: list[str]) -> _Kind:
    """MIMIC-CXR if there are files of its, else Open-i, else any text."""
    if len(names) > MAX_MEMBERS:
        raise ValueError(f"{path} holds more than {MAX_MEMBERS} files; give the folder of the reports alone")
    for kind in (_MIMIC, _OPENI, _TEXTS):
        if any(kind.holds(name) for name in names):
            return kind
    raise ValueError(f"{path} holds no report; expected .txt files (as MIMIC-CXR's s50414267.txt) or .xml (Open-i)")


def _parsed(members: Iterable[_Member], kind: _Kind) -> Iterator[Row]:
    for name, data, share in members:
        result: Report | Fault
        if isinstance(data, Fault):
            result = data
        else:
            try:
                result = kind.read(name, data)
            except ValueError as error:
                result = Fault(str(error))
        yield f"file {name[-200:]}", result, share


def _walk(folder: pathlib.Path) -> list[str]:
    """Paths of all files below ``folder``, and of links to folders, with "/", sorted."""

    def stop(error: OSError) -> None:
        raise error  # a folder that cannot be listed would be reports lost in silence

    found = []
    for root, folders, files in os.walk(folder, onerror=stop):
        base = pathlib.Path(root).relative_to(folder)
        links = [name for name in folders if (folder / base / name).is_symlink()]
        found += [(base / name).as_posix() for name in (*files, *links)]
        if len(found) > MAX_MEMBERS:
            break  # refused by the caller
    return sorted(found)


def _read_files(folder: pathlib.Path, names: list[str]) -> Iterator[_Member]:
    for number, name in enumerate(names, 1):
        data: bytes | Fault
        try:
            if (folder / name).is_file():  # a pipe of a report's name would be waited for without end
                with (folder / name).open("rb") as file:
                    data = _bounded(file)
            else:
                data = Fault("not a plain file")
        except PermissionError as error:
            data = Fault(f"cannot be opened: {error.strerror}")
        yield name, data, number / len(names)


def _read_zip(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> Iterator[_Member]:
    for number, info in enumerate(infos, 1):
        data: bytes | Fault
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            data = Fault(f"compressed by method {info.compress_type}; only deflated files are read")
        elif info.header_offset < 0:
            data = Fault("cannot be unpacked: its place lies before the file")
        elif info.file_size > MAX_RATIO * max(info.compress_size, 1_000):
            data = Fault(f"{info.compress_size} bytes that swell to {info.file_size}; at most {MAX_RATIO}-fold is read")
        else:
            try:
                with archive.open(info) as file:
                    data = _bounded(file)
            # A RuntimeError is an encrypted member; a struct.error or ValueError comes from a mangled header.
            except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError, struct.error, ValueError) as error:
                data = Fault(f"cannot be unpacked: {type(error).__name__}")
        yield info.filename, data, number / len(infos)


def _read_tar(path: pathlib.Path, kind: _Kind) -> Iterator[_Member]:
    """Members in the archive's own order: a compressed tar cannot be read in another without unpacking it."""
    size = max(path.stat().st_size, 1)
    number = 0
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as unzipped:
        stream = io.BufferedReader(_Limited(unzipped, max(_FLOOR, MAX_RATIO * size), path))
        with tarfile.open(fileobj=(headed := Headed(stream)), mode="r|") as archive:
            for info in archive:
                headed.member(info)
                number += 1
                if number > MAX_MEMBERS:
                    raise ValueError(f"{path} holds more than {MAX_MEMBERS} files")
                if info.isdir() or not kind.holds(info.name):
                    continue
                data: bytes | Fault = Fault("not a plain file")
                if info.isreg() and (file := archive.extractfile(info)):
                    data = _bounded(file)
                yield info.name, data, min(1.0, raw.tell() / size)
                archive.members.clear()  # type: ignore[attr-defined]  # a stream never goes back to one
        while stream.read(2**20):
            pass  # to the end, where gzip checks that nothing was changed


class _Limited(io.RawIOBase):
    """A stream that gives at most ``limit`` bytes: an archive that swells beyond reason is refused, not followed."""

    def __init__(self, stream: gzip.GzipFile, limit: int, path: pathlib.Path) -> None:
        super().__init__()
        self._stream, self._left, self._path = stream, limit, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"{self._path} unpacks to more than {MAX_RATIO} times its size; reports do not")
        buffer[: len(data)] = data
        return len(data)


class Headed(io.RawIOBase):
    """A stream of a tar file that ends in an error at a mark, as tarfile reads headers of any size at once."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        """Starts before the first member."""
        super().__init__()
        self._stream, self._at, self._until = stream, 0, _MAX_HEADERS

    def member(self, info: tarfile.TarInfo) -> None:
        """Moves the mark: a member was met, and may be read."""
        self._until = self._at + info.size + _MAX_HEADERS

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes.

        Raises:
          tarfile.ReadError: they are beyond the mark.
        """
        data = self._stream.read(size)
        self._at += len(data)
        if self._at > self._until:
            raise tarfile.ReadError
        return data


def _bounded(file: IO[bytes]) -> bytes | Fault:
    data = file.read(MAX_MEMBER + 1)
    return Fault(f"longer than {MAX_MEMBER} bytes") if len(data) > MAX_MEMBER else data


@contextlib.contextmanager
def _damage_told(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}); fetch it again") from error
