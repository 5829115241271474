"""The pixels of a shard: a NumPy file of their own, beside the ArrayRecord file that holds the rest.

A file holds uint8 or uint16 [n, h, w, 1] as ``numpy.save`` would write it, so that ``numpy.load`` reads or maps it.
Here an image is asked for with one call of the system instead of being mapped. Where the file is not in memory, that
reads far less from the disk, since a map reads around each place that is touched; and a file that is cut while it is
open, or that the disk fails to read, ends in an error with a name instead of a signal.
"""

import contextlib
import os
import pathlib
import resource
import weakref
import zlib

import numpy as np

HEADER = 128  # bytes before the pixels, whatever their number
_MAGIC = b"\x93NUMPY\x01\x00"
_FILES = 2**16  # as many as a data set may open, if the system lets it


class DamagedShardError(OSError):
    """A file of a shard folder is not what was written; the message names it."""


def beside(shard: pathlib.Path) -> pathlib.Path:
    """The file with the pixels of an ArrayRecord file."""
    return shard.with_name(shard.name.replace(".array_record-", ".pixels-") + ".npy")


def header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The header of NumPy's format 1.0, always as long, so that it can be written last.

    Not numpy's own: the header of a file that is not trusted is compared with this one and never parsed.
    """
    said = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    room = HEADER - len(_MAGIC) - 2
    return _MAGIC + room.to_bytes(2, "little") + said.ljust(room - 1) + b"\n"


def checksum(image: np.ndarray) -> int:
    """CRC-32 of an image's bytes, as stored beside it. Finds each run of up to 32 damaged bits, at 3 GB/s."""
    return zlib.crc32(np.ascontiguousarray(image).data)


class Writer:
    """Writes images of one shape, one by one."""

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype):
        """Makes the file.

        Args:
          path: of the file.
          shape: (h, w, 1).
          dtype: uint8 or uint16.
        """
        self._shape, self._dtype, self._count = shape, dtype, 0
        self._file = path.open("wb")
        self._file.write(bytes(HEADER))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        """Writes the header, which says how many images there are."""
        with self._file:
            self._file.seek(0)
            self._file.write(header((self._count, *self._shape), self._dtype))

    def write(self, image: np.ndarray) -> int:
        """Adds an image and returns its checksum.

        Raises:
          ValueError: the image has another shape or type.
        """
        if image.shape != self._shape or image.dtype != self._dtype:
            raise ValueError(
                f"the source made an image {image.dtype} {image.shape}; expected {self._dtype} {self._shape}"
            )
        self._file.write(np.ascontiguousarray(image).data)
        self._count += 1
        return checksum(image)


class Reader:
    """Reads images of one file, in any order and from several threads."""

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype):
        """Looks at the file's size; it is opened when it is first read.

        Args:
          path: of the file.
          shape: (n, h, w, 1).
          dtype: uint8 or uint16.

        Raises:
          FileNotFoundError: there is no such file.
          DamagedShardError: it has not the size that was written.
        """
        self.path, self._shape, self._dtype = path, shape, dtype
        self._bytes = int(np.prod(shape[1:])) * dtype.itemsize
        self._descriptor: int | None = None
        wanted, found = HEADER + shape[0] * self._bytes, path.stat().st_size
        if found != wanted:
            raise DamagedShardError(f"{path}: {found} bytes instead of the {wanted} written; copy or build it again")

    def read(self, i: int, out: np.ndarray) -> None:
        """Reads image ``i`` into ``out``, which is contiguous and of the image's size.

        Raises:
          DamagedShardError: the header is not as it was written, the file ends before the image does, or the system
            could not read it.
          OSError: the file cannot be opened.
        """
        file = self._open() if self._descriptor is None else self._descriptor
        start = HEADER + i * self._bytes
        try:
            got = os.preadv(file, [out.data], start)
            while got < self._bytes:  # some file systems return less than they could
                more = os.preadv(file, [out.data.cast("B")[got:]], start + got)
                if not more:
                    raise self.damaged(i, "the file ends here")
                got += more
        except OSError as error:
            if isinstance(error, DamagedShardError):
                raise
            raise self.damaged(i, str(error)) from None

    def damaged(self, i: int, reason: str) -> DamagedShardError:
        """The error for image ``i``."""
        return DamagedShardError(f"{self.path} is damaged at record {i} ({reason}); copy or build it again")

    def _open(self) -> int:
        file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)  # also of a second one, where two threads come at a time
        if os.pread(file, HEADER, 0) != header(self._shape, self._dtype):
            raise DamagedShardError(
                f"{self.path} has not the header of images {self._dtype} {list(self._shape)}; copy or build it again"
            )
        self._descriptor = file
        return file


def make_room(files: int) -> None:
    """Lets this process open ``files`` files more, as far as the system allows: all files of a shuffled data set are
    read from at a time.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or files < soft // 4:
        return
    limit = _FILES if hard == resource.RLIM_INFINITY else min(hard, max(soft, _FILES))
    with contextlib.suppress(ValueError, OSError):  # if files are too many after all, opening them says so
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
