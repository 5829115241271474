"""Reads image shards: single records, many images at once, the small fields of a whole split, and masks.

Shards are not trusted: files of the wrong size are refused when a split is opened. What a file holds is checked when it
is read: each record of ArrayRecord against its own checksum, and each image, the first time that a process reads it,
against the one that its record holds. Either way the message names the file.
"""

import bisect
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from repgls_jax import findings as findings_lib
from repgls_jax.data import features, pixels
from repgls_jax.data.meter import Meter
from repgls_jax.data.pixels import DamagedShardError as DamagedShardError

_METADATA = "metadata.json"
_UNREADABLE = -1  # in the place of a checksum


class _Split:
    """The files of one split. Can be read from several threads.

    Attributes:
      features: of an example, all but its image.
      shape: (h, w, 1) of an image.
      dtype: uint8 or uint16.
      pixels: one reader a shard.
      starts: number of the first example of each shard, and how many there are in all: int64 [shards + 1].
    """

    def __init__(self, folder: str | pathlib.Path, split: str):
        """Opens a split; see :class:`Records` for what it raises."""
        folder = pathlib.Path(folder)
        if not (folder / "dataset_info.json").exists():
            raise FileNotFoundError(f"{folder} holds no image shards; expected the folder 'shards' of a complete build")
        builder = tfds.builder_from_directory(folder)
        if split not in builder.info.splits:
            raise ValueError(f"split {split!r} is not in {folder}; expected one of {', '.join(builder.info.splits)}")
        self.features: tfds.features.FeaturesDict = builder.info.features
        self.shape, self.dtype = _image(folder)
        info = builder.info.splits[split]
        files = info.file_instructions
        pixels.make_room(2 * len(files))
        self._paths = [pathlib.Path(file.filename) for file in files]
        lengths = [file.examples_in_shard for file in files]
        self.starts = np.array([0, *itertools.accumulate(lengths)])
        if sum(path.stat().st_size for path in self._paths) != info.num_bytes:
            raise DamagedShardError(_which(files, split))
        self.pixels = [
            pixels.Reader(pixels.beside(path), (length, *self.shape), self.dtype)
            for path, length in zip(self._paths, lengths, strict=True)
        ]
        # A single record gains nothing from ArrayRecord's own threads, and waits for them.
        self._source = ArrayRecordDataSource(files, reader_options={"max_parallelism": "1"})

    def __len__(self) -> int:
        return int(self.starts[-1])

    def record(self, i: int) -> bytes:
        """Example ``i``, serialized."""
        try:
            return self._source[i]
        except (RuntimeError, IndexError) as error:  # what ArrayRecord raises on damage
            raise self.damaged(i, str(error)) from None

    def place(self, i: int) -> tuple[int, int]:
        """The shard of example ``i``, and its number there."""
        shard = bisect.bisect_right(self.starts, i) - 1
        return shard, i - int(self.starts[shard])

    def damaged(self, i: int, reason: str) -> DamagedShardError:
        """The error for the record of example ``i``."""
        shard, at = self.place(i)
        return DamagedShardError(f"{self._paths[shard]} is damaged at record {at} ({reason}); copy or build it again")


def _image(folder: pathlib.Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the images of a folder."""
    said = json.loads((folder / _METADATA).read_text()).get("image")
    if said is None:
        raise ValueError(f"{folder} was written by an older version, which kept pixels elsewhere; build it again")
    if said["dtype"] not in [np.dtype(dtype).name for dtype in features.PIXELS.values()]:
        raise ValueError(
            f"{folder} holds images of {said['dtype']}; expected uint8 or uint16, build the data set again"
        )
    return tuple(said["shape"]), np.dtype(said["dtype"])


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


def _checksum(record: bytes) -> int:
    """The image's checksum that a serialized example holds; -1 where it holds none."""
    try:
        # Not features[...]: looking a name up in such a map would make an entry of it.
        stored = tf_example_pb2.Example.FromString(record).features.feature.get(features.CHECKSUM)
    except DecodeError:
        return _UNREADABLE
    values: Sequence[int] = stored.int64_list.value if stored is not None else ()
    return values[0] if len(values) == 1 else _UNREADABLE


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
          fields: "image" and names of :func:`repgls_jax.data.features.spec`; none for all.

        Raises:
          FileNotFoundError: no shards there, or one is missing.
          ValueError: no such split or field, or shards of an older version.
          DamagedShardError: the files have not the size that was written.
        """
        self._split = _Split(shards, split)
        stored = self._split.features
        known = ["image", *(name for name in stored if name != features.CHECKSUM)]
        unknown = [name for name in fields if name not in known]
        if unknown:
            raise ValueError(f"{shards} has no field {', '.join(unknown)}; it has {', '.join(known)}")
        self.fields = tuple(fields) or tuple(known)
        self._reduced = (shards, split, self.fields)
        parsed = [features.CHECKSUM if name == "image" else name for name in self.fields]
        self._features = tfds.features.FeaturesDict({name: stored[name] for name in parsed})

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the description; the copy opens its own files."""
        return Records, self._reduced

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._split)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Example ``i``; text as str, the image uint8 or uint16 [h, w, 1].

        Raises:
          DamagedShardError: the record or the image is not as it was written.
        """
        raw = self._split.record(i)
        try:
            example = self._features.deserialize_example_np(raw)
            example = {k: v.decode() if isinstance(v, bytes) else v for k, v in example.items()}
        except (DecodeError, TypeError, KeyError, ValueError) as error:  # well framed, and yet no example of ours
            raise self._split.damaged(i, type(error).__name__) from None
        if features.CHECKSUM in example:
            checksum, image = int(example.pop(features.CHECKSUM)), np.empty(self._split.shape, self._split.dtype)
            shard, at = self._split.place(i)
            self._split.pixels[shard].read(at, image)
            _require(self._split, i, image, checksum)
            example["image"] = image
        return example


def _require(split: _Split, i: int, image: np.ndarray, checksum: int) -> None:
    """Raises DamagedShardError unless the image of example ``i`` has that checksum."""
    if checksum == _UNREADABLE:
        raise split.damaged(i, "it does not tell the checksum of its image")
    if pixels.checksum(image) != checksum:
        shard, at = split.place(i)
        raise split.pixels[shard].damaged(at, "its checksum is another than its record says")


class Images:
    """The images of one split, many at a time.

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
        self._split = _Split(shards, split)
        self._reduced = (shards, split)
        self.shape, self.dtype = self._split.shape, self._split.dtype
        self._checked = np.zeros(len(self._split), np.bool_)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the description; the copy opens its own files."""
        return Images, self._reduced

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._split)

    def read(self, indices: Sequence[int] | np.ndarray, meter: Meter | None = None) -> np.ndarray:
        """The images of the examples ``indices``, in that order: uint8 or uint16 [k, h, w, 1], writable.

        Args:
          indices: 0 to n - 1.
          meter: told the time for "read" (the files) and "check" (the checksums).

        Raises:
          IndexError: an index is out of range.
          DamagedShardError: an image, or the record with its checksum, is not as it was written.
        """
        out = np.empty((len(indices), *self.shape), self.dtype)
        self.fill(out, np.arange(len(indices)), np.asarray(indices, np.int64), meter or Meter())
        return out

    def fill(self, out: np.ndarray, rows: np.ndarray, indices: np.ndarray, meter: Meter) -> None:
        """Reads the images of the examples ``indices`` [k] into the ``rows`` [k] of ``out``; else as :meth:`read`."""
        outside = indices[(indices < 0) | (indices >= len(self))]
        if outside.size:
            raise IndexError(f"example {outside[0]} of {len(self)}")
        starts, readers = self._split.starts, self._split.pixels
        shards = np.searchsorted(starts, indices, side="right") - 1
        places = indices - starts[shards]
        with meter.measure("read"):
            for row, shard, at in zip(rows.tolist(), shards.tolist(), places.tolist(), strict=True):
                readers[shard].read(at, out[row])
        new = np.flatnonzero(~self._checked[indices])
        if new.size:
            with meter.measure("check"):
                for row, i in zip(rows[new].tolist(), indices[new].tolist(), strict=True):
                    _require(self._split, i, out[row], _checksum(self._split.record(i)))
            self._checked[indices] = True


def vocabulary(shards: str | pathlib.Path) -> findings_lib.Vocabulary:
    """The vocabulary that the shards were written with.

    Raises:
      FileNotFoundError: no shards there.
    """
    path = pathlib.Path(shards) / _METADATA
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
    records = Records(shards, split, [name for name in stored if name not in ("masks", features.CHECKSUM)])
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
    return Images(shards, split).read(indices)


def masks(shards: str | pathlib.Path, split: str, indices: Sequence[int]) -> np.ndarray:
    """Lesion masks of the examples ``indices`` of a simulated data set, uint16 [k, h, w]; bit k is finding k.

    Raises:
      ValueError: the data set is not simulated.
    """
    records = Records(shards, split, ["masks"])
    return np.stack([records[int(i)]["masks"][..., 0] for i in indices])
