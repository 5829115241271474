"""Reads image shards: single records, many images at once, the small fields of a whole split, and masks.

Shards are not trusted: files of the wrong size are refused when a split is opened, and each record is checked against
its own checksum when it is read. Either way the message names the file.
"""

import bisect
import itertools
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from repgls_jax import findings as findings_lib
from repgls_jax.data import features
from repgls_jax.data.meter import Meter

_LARGE = ("image", "masks")


class DamagedShardError(OSError):
    """A file of a shard folder is not what was written; the message names it."""


class _Stored:
    """The serialized examples of one split. Can be pickled, and read from several threads."""

    def __init__(self, shards: str | pathlib.Path, split: str):
        """Opens a split; see :class:`Records` for what it raises."""
        shards = pathlib.Path(shards)
        if not (shards / "dataset_info.json").exists():
            raise FileNotFoundError(f"{shards} holds no image shards; expected the folder 'shards' of a complete build")
        builder = tfds.builder_from_directory(shards)
        if split not in builder.info.splits:
            raise ValueError(f"split {split!r} is not in {shards}; expected one of {', '.join(builder.info.splits)}")
        self.features: tfds.features.FeaturesDict = builder.info.features
        info = builder.info.splits[split]
        files = info.file_instructions
        self._paths = [pathlib.Path(file.filename) for file in files]
        self._ends = list(itertools.accumulate(file.examples_in_shard for file in files))
        if sum(path.stat().st_size for path in self._paths) != info.num_bytes:
            raise DamagedShardError(_which(files, split))
        self._reduced = (shards, split)
        # A single record gains nothing from ArrayRecord's own threads, and waits for them.
        self._source = ArrayRecordDataSource(files, reader_options={"max_parallelism": "1"})

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the description; the copy opens its own files."""
        return _Stored, self._reduced

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> bytes:
        try:
            return self._source[i]
        except (RuntimeError, IndexError) as error:  # what ArrayRecord raises on damage
            raise self.damaged(i, str(error)) from None

    def damaged(self, i: int, reason: str) -> DamagedShardError:
        """The error for example ``i``."""
        shard = bisect.bisect_right(self._ends, i)
        at = i - (self._ends[shard - 1] if shard else 0)
        return DamagedShardError(f"{self._paths[shard]} is damaged at record {at} ({reason}); copy or build it again")


def _which(files: Sequence[Any], split: str) -> str:
    """Tells which files of a split are not as long as they were written."""
    bad = []
    for file in files:
        try:
            reader = ArrayRecordReader(file.filename)
            found = reader.num_records()  # 0 where the end of the file is not one
            reader.close()
        except RuntimeError:
            found = 0
        if found != file.examples_in_shard:
            bad.append(file.filename)
    named = ", ".join(bad) or f"a file of the split {split!r} beside {files[0].filename}"
    return f"{named}: not of the size that was written; copy or build it again"


class Records:
    """One split of a shard folder as a sequence of dicts that hold only the fields asked for.

    Fields that are not asked for are neither parsed nor decoded. Can be pickled for worker processes and read from
    several threads.
    """

    def __init__(self, shards: str | pathlib.Path, split: str, fields: Sequence[str] = ()):
        """Opens a split.

        Args:
          shards: the folder "shards" of a build.
          split: train, valid or test.
          fields: names of :func:`repgls_jax.data.features.spec`; none for all.

        Raises:
          FileNotFoundError: no shards there, or one is missing.
          ValueError: no such split or field.
          DamagedShardError: the files have not the size that was written.
        """
        self._stored = _Stored(shards, split)
        stored = self._stored.features
        unknown = [name for name in fields if name not in stored]
        if unknown:
            raise ValueError(f"{shards} has no field {', '.join(unknown)}; it has {', '.join(stored)}")
        self.fields = tuple(fields) or tuple(stored)
        self._reduced = (shards, split, self.fields)
        self._features = tfds.features.FeaturesDict({name: stored[name] for name in self.fields})

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the description; the copy opens its own files."""
        return Records, self._reduced

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._stored)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Example ``i``; text as str.

        Raises:
          DamagedShardError: the record is not as it was written.
        """
        raw = self._stored[i]
        try:
            example = self._features.deserialize_example_np(raw)
            return {k: v.decode() if isinstance(v, bytes) else v for k, v in example.items()}
        except (DecodeError, TypeError, KeyError, ValueError) as error:  # well framed, and yet no example of ours
            raise self._stored.damaged(i, type(error).__name__) from None


class Images:
    """The images of one split, many at a time; TFDS's own reading of a record takes longer than all the rest.

    Can be pickled for worker processes and read from several threads.

    Attributes:
      shape: (h, w, 1).
      dtype: uint8 or uint16.
    """

    def __init__(self, shards: str | pathlib.Path, split: str):
        """Opens a split.

        Raises:
          ValueError: the images are not of 8 or 16 bits; else what :class:`Records` raises.
        """
        self._stored = _Stored(shards, split)
        self._reduced = (shards, split)
        image = self._stored.features["image"]
        self.shape: tuple[int, ...] = image.shape
        self.dtype: np.dtype[Any] = np.dtype(image.np_dtype)
        if self.dtype not in features.PIXELS.values():
            raise ValueError(
                f"{shards} holds images of {self.dtype}; expected uint8 or uint16, build the data set again"
            )

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the description; the copy opens its own files."""
        return Images, self._reduced

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._stored)

    def read(self, indices: Sequence[int], meter: Meter | None = None) -> np.ndarray:
        """The images of the examples ``indices``, in that order: uint8 or uint16 [k, h, w, 1], writable.

        Args:
          indices: 0 to n - 1.
          meter: told the time for "read" (the files) and "decode" (the pixels).

        Raises:
          DamagedShardError: a record is not as it was written.
        """
        out = np.empty((len(indices), *self.shape), self.dtype)
        flat = out.reshape(len(indices), math.prod(self.shape))
        reading, began = 0.0, time.perf_counter()
        for k, i in enumerate(indices):
            start = time.perf_counter()
            raw = self._stored[i]
            reading += time.perf_counter() - start
            flat[k] = self._pixels(raw, i)
        if meter is not None:
            meter.add("read", reading)
            meter.add("decode", time.perf_counter() - began - reading)
        return out

    def _pixels(self, raw: bytes, i: int) -> np.ndarray:
        try:
            # Not features["image"]: looking a name up in such a map would make an entry of it.
            stored = tf_example_pb2.Example.FromString(raw).features.feature.get("image")
        except DecodeError:
            raise self._stored.damaged(i, "not an example") from None
        values: Sequence[bytes] = stored.bytes_list.value if stored is not None else ()
        wanted = math.prod(self.shape) * self.dtype.itemsize
        if len(values) != 1 or len(values[0]) != wanted:
            raise self._stored.damaged(i, f"its image is not {wanted} bytes")
        return np.frombuffer(values[0], self.dtype)


def vocabulary(shards: str | pathlib.Path) -> findings_lib.Vocabulary:
    """The vocabulary that the shards were written with.

    Raises:
      FileNotFoundError: no shards there.
    """
    path = pathlib.Path(shards) / "metadata.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected the folder 'shards' of a complete build")
    stored = json.loads(path.read_text())["vocabulary"]
    return findings_lib.Vocabulary(stored["name"], stored["version"], tuple(stored["findings"]))


def examples(shards: str | pathlib.Path, split: str) -> dict[str, np.ndarray]:
    """The small fields of a split, in the order of its examples; images and masks are not decoded.

    Returns:
      image_id, patient_id, study_id, view, sex: str [n]; age: int16 [n]; has_report: bool [n]; labels: int8 [n, c];
      observed: bool [n, c]; of a simulated data set also truth: int8 [n, c], contrast, belief: float32 [n, c], reader:
      int32 [n].
    """
    stored = tfds.builder_from_directory(shards).info.features
    records = Records(shards, split, [name for name in stored if name not in _LARGE])
    n = len(records)
    table: dict[str, Any] = {
        name: [] if name in features.TEXT else np.empty((n, *stored[name].shape), stored[name].np_dtype)
        for name in records.fields
    }
    for i in range(n):
        for name, value in records[i].items():
            if name in features.TEXT:
                table[name].append(value)
            else:
                table[name][i] = value
    return {name: np.asarray(values) for name, values in table.items()}


def images(shards: str | pathlib.Path, split: str, indices: Sequence[int]) -> np.ndarray:
    """Images of the examples ``indices``, uint8 or uint16 [k, h, w, 1]."""
    return Images(shards, split).read([int(i) for i in indices])


def masks(shards: str | pathlib.Path, split: str, indices: Sequence[int]) -> np.ndarray:
    """Lesion masks of the examples ``indices`` of a simulated data set, uint16 [k, h, w]; bit k is finding k.

    Raises:
      ValueError: the data set is not simulated.
    """
    records = Records(shards, split, ["masks"])
    return np.stack([records[int(i)]["masks"][..., 0] for i in indices])
