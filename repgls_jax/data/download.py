"""Fetches a published archive, going on where an earlier attempt stopped, and unpacks the films of one."""

import gzip
import http.client
import pathlib
import re
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zlib

import tqdm

from repgls_jax.extraction import archives

_CHUNK = 2**20
_SECONDS = 60  # without a byte
_MAX_ARCHIVE_BYTES = 64 * 2**30
_MAX_FILM_BYTES = 64 * 2**20
_MAX_FILMS = 100_000
_MAX_RATIO = 20  # bytes out per byte in; films are compressed already
_FLOOR = 64 * 2**20  # bytes that an archive may give whatever its ratio


def fetch(url: str, path: pathlib.Path, max_bytes: int = _MAX_ARCHIVE_BYTES) -> None:
    """Downloads ``url`` to ``path`` unless it is there. What an attempt got stays in ``<path>.part`` for the next.

    Args:
      url: of a file that a server may change only with its size, or the archive in it is found damaged when read.
      path: file to write.
      max_bytes: of the file.

    Raises:
      ValueError: the server refuses, the connection breaks, or the file is too long. The next call goes on.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    had = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={had}-"} if had else {})
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {had}-")
            start = had if goes_on else 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            _receive(answer, part, start, total, max_bytes)
    except urllib.error.HTTPError as error:
        # 416: nothing is left to send. Only a part that the server calls complete is taken as such.
        if not (error.code == 416 and had and error.headers.get("Content-Range") == f"bytes */{had}"):
            raise ValueError(f"{url} cannot be fetched: the server answers {error.code}") from None
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        got = part.stat().st_size if part.exists() else 0
        raise ValueError(
            f"{url} broke off after {got} bytes ({type(error).__name__}); the same command goes on from there"
        ) from None
    part.replace(path)


def _receive(
    answer: http.client.HTTPResponse, part: pathlib.Path, start: int, total: int | None, max_bytes: int
) -> None:
    with (
        part.open("ab" if start else "wb") as file,
        tqdm.tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
    ):
        while data := answer.read(_CHUNK):
            file.write(data)
            bar.update(len(data))
            if file.tell() > max_bytes:
                raise ValueError(f"{part} has more than {max_bytes} bytes; that is not the archive")
        if total is not None and file.tell() < total:  # http.client ends quietly when the connection does
            raise ConnectionError


def unpack(archive: pathlib.Path, folder: pathlib.Path, name: re.Pattern[str]) -> int:
    """Unpacks the plain files of a .tgz whose base name matches into one folder, which is there only when all are.

    Paths, links and everything else in the archive are passed over.

    Args:
      archive: .tgz or .tar.gz.
      folder: to make.
      name: of the files to take, matched as a whole.

    Returns:
      The number of files.

    Raises:
      ValueError: damaged, too large for what it is, or without such a file.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        count = _extract(archive, partial, name)
        if not count:
            raise ValueError(f"{archive} holds no file {name.pattern}")
        partial.replace(folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({type(error).__name__}); delete it and fetch it again") from None
    except OSError as error:
        raise ValueError(
            f"{archive} cannot be unpacked beside itself ({error.strerror}); unpack it elsewhere"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _extract(archive: pathlib.Path, partial: pathlib.Path, name: re.Pattern[str]) -> int:
    count, left = 0, max(_FLOOR, _MAX_RATIO * archive.stat().st_size)
    # gzip rather than tarfile's own "r|gz", which does not look at the checksum.
    with (
        gzip.open(archive) as unzipped,
        archives.Headed(unzipped) as headed,
        tarfile.open(fileobj=headed, mode="r|") as members,
    ):
        for member in members:
            headed.member(member)
            left -= member.size  # of those passed over too: they are unpacked all the same
            if left < 0:
                raise ValueError(f"{archive} unpacks to more than {_MAX_RATIO} times its size; films do not")
            base = member.name.rpartition("/")[2]
            if not name.fullmatch(base):
                continue
            if member.size > _MAX_FILM_BYTES or count == _MAX_FILMS:
                raise ValueError(f"{archive} holds a film of {member.size} bytes, or more than {_MAX_FILMS} films")
            file = members.extractfile(member) if member.isreg() else None
            if file is not None:
                with (partial / base).open("xb") as copy:
                    shutil.copyfileobj(file, copy, _CHUNK)
                count += 1
            members.members.clear()  # type: ignore[attr-defined]  # a stream never goes back to one
        while data := unzipped.read(_CHUNK):  # the checksum is at the very end
            left -= len(data)
            if left < 0:
                raise ValueError(f"{archive} unpacks to more than {_MAX_RATIO} times its size; films do not")
    return count
