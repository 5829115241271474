"""Reads image shards: single records, the small fields of a whole split, and masks where they are wanted."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.decode import DeserializeMethod

from repgls_jax import findings as findings_lib
from repgls_jax.data import features

_LARGE = ("image", "masks")


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
          FileNotFoundError: no shards there.
          ValueError: no such split or field.
        """
        shards = pathlib.Path(shards)
        if not (shards / "dataset_info.json").exists():
            raise FileNotFoundError(f"{shards} holds no image shards; expected the folder 'shards' of a complete build")
        builder = tfds.builder_from_directory(shards)
        if split not in builder.info.splits:
            raise ValueError(f"split {split!r} is not in {shards}; expected one of {', '.join(builder.info.splits)}")
        stored = builder.info.features
        unknown = [name for name in fields if name not in stored]
        if unknown:
            raise ValueError(f"{shards} has no field {', '.join(unknown)}; it has {', '.join(stored)}")
        self.fields = tuple(fields) or tuple(stored)
        self._reduced = (shards, split, self.fields)
        self._features = tfds.features.FeaturesDict({name: stored[name] for name in self.fields})
        self._raw = builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Pickles the description; the copy opens its own files."""
        return Records, self._reduced

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._raw)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Example ``i``; text as str."""
        example = self._features.deserialize_example_np(self._raw[i])
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in example.items()}


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
      image_id, patient_id, study_id, view: str [n]; has_report: bool [n]; labels: int8 [n, c]; observed: bool [n, c];
      of a simulated data set also truth: int8 [n, c], contrast, belief: float32 [n, c], reader: int32 [n].
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
    """Images of the examples ``indices``, uint8 [k, h, w, 1]."""
    records = Records(shards, split, ["image"])
    return np.stack([records[int(i)]["image"] for i in indices])


def masks(shards: str | pathlib.Path, split: str, indices: Sequence[int]) -> np.ndarray:
    """Lesion masks of the examples ``indices`` of a simulated data set, uint16 [k, h, w]; bit k is finding k.

    Raises:
      ValueError: the data set is not simulated.
    """
    records = Records(shards, split, ["masks"])
    return np.stack([records[int(i)]["masks"][..., 0] for i in indices])
