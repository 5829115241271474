"""Writes the shards of a source as a TFDS folder of ArrayRecord files, their pixels beside them, without TensorFlow.

Every shard is a job of its own, which reads its images, holding one at a time, and leaves two files and a ledger.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import dataset_info, example_serializer, file_adapters, naming

from repgls_jax.data import features, ledger, pixels
from repgls_jax.data.ledger import About, File, Shard
from repgls_jax.data.parallel import Tick
from repgls_jax.data.source import Quarantined, Source

NAME = "repgls_shards"
SHARDS, PARTIAL = "shards", ".partial"
SHARD_EXAMPLES = 512  # what a kill may cost, and small enough that all cores end at about the same time
SHARD_BYTES = 2**26  # of pixels


def plan(source: Source) -> list[Shard]:
    """The shards of a source, split by split, which follow from its size alone.

    Raises:
      ValueError: a split has no image.
    """
    pixel_bytes = source.image_size**2 * (source.bits // 8 + (2 if source.simulated else 0))  # masks take two
    size = max(1, min(SHARD_EXAMPLES, SHARD_BYTES // pixel_bytes))
    shards = []
    for split, planned in source.splits().items():
        if planned < 1:
            raise ValueError(f"split {split!r} has no image; a source leaves such splits out")
        count = -(-planned // size)
        ends = [planned * k // count for k in range(count + 1)]
        shards += [Shard(split, ends[k], ends[k + 1], k, count) for k in range(count)]
    return shards


@dataclasses.dataclass(frozen=True)
class Job:
    """Writes shards of a source.

    Attributes:
      source: the data set.
      output: folder of the build, which holds the folders :data:`SHARDS` and :data:`PARTIAL`.
    """

    source: Source
    output: pathlib.Path

    def file(self, shard: Shard) -> pathlib.Path:
        """The shard's ArrayRecord file, by TFDS's own scheme; its pixels are beside it, see :mod:`.pixels`."""
        template = _template(self.output / SHARDS, shard.split)
        return pathlib.Path(template.sharded_filepath(shard_index=shard.index, num_shards=shard.count))

    def ledger(self, shard: Shard) -> pathlib.Path:
        """The shard's ledger."""
        return self.output / PARTIAL / f"{self.file(shard).name}.ledger"

    def done(self, shard: Shard) -> tuple[About, pa.Table] | None:
        """The shard's ledger, if the shard's files are there as the ledger says."""
        written, file = ledger.read(self.ledger(shard)), self.file(shard)
        if written is None:
            return None
        about, _ = written
        same = about.shard == shard and about.records.is_at(file) and about.pixels.is_at(pixels.beside(file))
        return written if same else None

    def __call__(self, shard: Shard, tick: Tick) -> None:
        """Writes a shard, then its ledger.

        Args:
          shard: of :func:`plan`.
          tick: called with 1 after each image.

        Raises:
          OSError: a file could not be written.
          ValueError: the source made an image of another size or type than it says.
        """
        began = time.process_time()
        rows, file, scratch = [], self.file(shard), self.output / PARTIAL
        beside = pixels.beside(file)
        spec = features_of(self.source)
        serializer = example_serializer.ExampleSerializer(spec.get_serialized_info())
        images = 0
        with ledger.whole(file, scratch) as temporary, ledger.whole(beside, scratch) as temporary_pixels:
            writer = _Records(temporary)
            with pixels.Writer(temporary_pixels, *image_of(self.source)) as films:
                for i in range(shard.start, shard.stop):
                    record = self.source.record(shard.split, i)
                    rows.append(ledger.row(record))
                    if not isinstance(record, Quarantined):
                        checksum = films.write(record["image"][..., None])
                        example = spec.encode_example(features.example(record, self.source.simulated, checksum))
                        # Left to itself, protobuf orders the fields otherwise in every process.
                        writer.write(serializer.get_tf_example(example).SerializeToString(deterministic=True))
                        images += 1
                    tick(1)
            writer.close()
        seconds = time.process_time() - began
        ledger.write(self.ledger(shard), scratch, rows, About(shard, images, File.of(file), File.of(beside), seconds))


class _Records:
    """An ArrayRecord file whose errors are those of a file."""

    def __init__(self, path: pathlib.Path):
        # Records are read singly; zstd would save 3 % of the disk and double the time of reading.
        self._file = ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def write(self, record: bytes) -> None:
        self._do(self._file.write, record)

    def close(self) -> None:
        self._do(self._file.close)

    def _do(self, function: Callable[..., None], *arguments: bytes) -> None:
        try:
            function(*arguments)
        except RuntimeError as error:
            raise OSError(
                f"a shard could not be written ({error}); the same command goes on from those before"
            ) from None


def features_of(source: Source) -> tfds.features.FeaturesDict:
    """The features of a source's examples."""
    return features.spec(source.image_size, len(source.vocabulary), source.simulated)


def image_of(source: Source) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Shape (h, w, 1) and type of a source's images."""
    return (source.image_size, source.image_size, 1), np.dtype(features.PIXELS[source.bits])


def _template(folder: pathlib.Path, split: str) -> naming.ShardedFileTemplate:
    return naming.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=NAME,
        split=split,
        filetype_suffix=file_adapters.FileFormat.ARRAY_RECORD.file_suffix,
    )


def write_metadata(source: Source, folder: pathlib.Path, shards: list[About]) -> None:
    """Writes what TFDS needs to read the files of ``folder``: features, splits and, as metadata, the vocabulary and the
    shape and type of the images.
    """
    vocabulary, (shape, dtype) = source.vocabulary, image_of(source)
    named: dict[str, Any] = {"name": vocabulary.name, "version": vocabulary.version}
    info = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=NAME, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
        ),
        features=features_of(source),
        metadata=tfds.core.MetadataDict(
            vocabulary=named | {"findings": list(vocabulary.findings)},
            image={"shape": list(shape), "dtype": dtype.name},
        ),
        disable_shuffling=True,
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    infos = []
    for split in source.splits():
        of = [about for about in shards if about.shard.split == split]
        lengths = [about.images for about in of]
        size = sum(
            about.records.bytes for about in of if about.images
        )  # of what is read: TFDS passes over the other files
        infos.append(tfds.core.SplitInfo(split, lengths, size, _template(folder, split)))
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)
