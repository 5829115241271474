"""A TFDS builder that writes any :class:`repgls_jax.data.source.Source` as ArrayRecord, without TensorFlow."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from repgls_jax.data import features
from repgls_jax.data.source import Quarantined, Record, Source

Key = int
SHARD_EXAMPLES = 2000
SHARD_BYTES = 2**27  # of pixels; TFDS holds one shard of examples in memory while it writes


class Shards(tfds.core.ShardBasedBuilder):
    """Writes the records of a source, in their order.

    Shard-based rather than generator-based: TFDS's GeneratorBasedBuilder sorts a split in memory and, past 1 GB, spills
    to files through TensorFlow, which this project does without.
    """

    name = "repgls_shards"
    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Left alone, TFDS looks for a checksums file with a package it does not declare.
    url_infos = None

    def __init__(self, source: Source, on_record: Callable[[str, Record | Quarantined], None], **kwargs: Any):
        """Prepares to write.

        Args:
          source: the data set.
          on_record: called with (split, record) for each record, the quarantined included; takes the report text.
          **kwargs: for TFDS: data_dir and file_format.
        """
        self._source = source
        self._on_record = on_record
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        vocabulary = self._source.vocabulary
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.spec(self._source.image_size, len(vocabulary), self._source.simulated),
            metadata=tfds.core.MetadataDict(
                vocabulary={
                    "name": vocabulary.name,
                    "version": vocabulary.version,
                    "findings": list(vocabulary.findings),
                }
            ),
            disable_shuffling=True,
        )

    def _log_download_bytes(self) -> None:
        """Keeps TFDS from printing that it downloads."""

    def _log_download_done(self) -> None:
        """Keeps TFDS from printing that it downloaded."""

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[Any]]]]:
        del dl_manager
        pixel_bytes = self._source.image_size**2 * (3 if self._source.simulated else 1)  # masks take two
        size = max(1, min(SHARD_EXAMPLES, SHARD_BYTES // pixel_bytes))
        image_ids: set[str] = set()
        patients: dict[str, str] = {}
        iterators: dict[str, list[Callable[[], Iterator[Any]]]] = {}
        for split, planned in self._source.splits().items():
            stream = self._examples(split, image_ids, patients)
            shards = max(1, -(-planned // size))
            # Each shard takes what comes next. Quarantined images can leave the last ones short, even empty.
            iterators[split] = [functools.partial(itertools.islice, stream, size)] * shards
        return iterators

    def _examples(
        self, split: str, image_ids: set[str], patients: dict[str, str]
    ) -> Iterator[tuple[Key, dict[str, Any]]]:
        reasons: Counter[str] = Counter()
        key = 0
        for record in self._source.records(split):
            self._on_record(split, record)
            if isinstance(record, Quarantined):
                reasons[record.reason] += 1
                continue
            image_id, patient_id = record["image_id"], record["patient_id"]
            if image_id in image_ids:
                raise ValueError(f"image id {image_id!r} is used twice; ids must be unique over all splits")
            image_ids.add(image_id)
            if patients.setdefault(patient_id, split) != split:
                raise ValueError(f"patient {patient_id!r} is in {patients[patient_id]!r} and in {split!r}")
            yield key, features.example(record, self._source.simulated)
            key += 1
        if key == 0:
            common = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3)) or "the source gave none"
            raise ValueError(f"split {split!r} has no usable image; all {reasons.total()} were quarantined ({common})")
