"""What a build knows of its shards: one ledger a shard, and what all ledgers say together.

A ledger has a row for each image that was planned, and says which files the shard is. It is written after those files,
so that a ledger without one of its files, or with another, means that the shard is to be made again. On disk it is a
SHA-256, and the Parquet file that it is of.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from repgls_jax.data.source import TEXT_FIELDS, Quarantined, Record

_ABOUT = b"repgls_shard"
_SHOWN = 80  # characters of an id in a message
_DIGEST = hashlib.sha256().digest_size
_BOX = [("finding", pa.string()), *((name, pa.float32()) for name in ("x0", "y0", "x1", "y1"))]
_IDS = ("image_id", "patient_id", "study_id")
_STRINGS = (*_IDS, *TEXT_FIELDS, "item", "reason")
_ROW = pa.schema(
    [*((name, pa.string()) for name in _STRINGS), ("has_report", pa.bool_()), ("boxes", pa.list_(pa.struct(_BOX)))]
)
REPORTS = pa.schema([(name, pa.string()) for name in ("study_id", "patient_id", "split", *TEXT_FIELDS)])
BOXES = pa.schema([("image_id", pa.string()), *_BOX])


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive images of a split that go into one file of pixels and one ArrayRecord file.

    Attributes:
      split: of the images.
      start: the first image's number within the split.
      stop: one more than the last one's.
      index: of the shard within the split.
      count: shards of the split.
    """

    split: str
    start: int
    stop: int
    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was written: its name, its size, and its SHA-256."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: pathlib.Path) -> "File":
        """Reads a file through."""
        with path.open("rb") as file:
            return cls(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())

    def is_at(self, path: pathlib.Path) -> bool:
        """Whether ``path`` is this file; read only where its size is right."""
        return path.is_file() and path.stat().st_size == self.bytes and File.of(path) == self


@dataclasses.dataclass(frozen=True)
class About:
    """What a ledger says of its shard.

    Attributes:
      shard: which one.
      images: examples in it; the rest was quarantined.
      records: its ArrayRecord file.
      pixels: its file of pixels.
      seconds: of processor time that it took.
    """

    shard: Shard
    images: int
    records: File
    pixels: File
    seconds: float


@contextlib.contextmanager
def whole(path: pathlib.Path, scratch: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file in ``scratch`` that becomes ``path`` when the block ends well: complete or absent, whatever happens."""
    temporary = scratch / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def row(record: Record | Quarantined) -> dict[str, Any]:
    """The ledger's row of an image; boxes are taken to the stored image, and clipped to it."""
    if isinstance(record, Quarantined):
        # Names of files need not be valid text.
        return {"item": record.item.encode(errors="backslashreplace").decode(), "reason": record.reason}
    texts = {name: record[name] for name in TEXT_FIELDS} if record["has_report"] else {}
    boxes = [
        {"finding": finding} | dict(zip(("x0", "y0", "x1", "y1"), placed, strict=True))
        for finding, *corners in record.get("boxes", ())
        if (placed := _placed(corners, record["placement"], record["image"].shape))
    ]
    return {name: record[name] for name in _IDS} | texts | {"has_report": bool(record["has_report"]), "boxes": boxes}


def _placed(
    corners: Iterable[float], placement: tuple[float, float, float], shape: tuple[int, int]
) -> list[float] | None:
    """(x0, y0, x1, y1) in the stored image, as much of it as is there; None for nothing."""
    scale, *offsets = placement
    x0, y0, x1, y1 = (
        min(max(value * scale + offsets[i % 2], 0.0), float(shape[1 - i % 2])) for i, value in enumerate(corners)
    )
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None


def write(path: pathlib.Path, scratch: pathlib.Path, rows: list[dict[str, Any]], about: About) -> None:
    """Writes a ledger."""
    schema = _ROW.with_metadata({_ABOUT: json.dumps(dataclasses.asdict(about)).encode()})
    body = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), body, compression="zstd")
    with whole(path, scratch) as temporary:
        temporary.write_bytes(hashlib.sha256(body.getvalue()).digest() + body.getvalue())


def read(path: pathlib.Path) -> tuple[About, pa.Table] | None:
    """What a ledger says of its shard, and its rows; None where there is no ledger as it was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    said, body = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(body).digest() != said:
        return None
    table = pq.read_table(io.BytesIO(body))
    about = json.loads(table.schema.metadata[_ABOUT])
    shard, records, pixels = Shard(**about.pop("shard")), File(**about.pop("records")), File(**about.pop("pixels"))
    return About(shard, records=records, pixels=pixels, **about), table


class Total:
    """All ledgers together, added one by one in the order of the images."""

    def __init__(self, reports: pathlib.Path, boxes: pathlib.Path):
        """Opens the two files that are written on the way."""
        self._reports = pq.ParquetWriter(reports, REPORTS)
        self._boxes = pq.ParquetWriter(boxes, BOXES)
        self._counts: dict[str, Counter[str]] = {}
        self._images: set[str] = set()
        self._studies: set[tuple[str, str]] = set()
        self._split_of: dict[str, str] = {}
        self._quarantined: list[dict[str, str]] = []
        self._box_count = 0

    def __enter__(self) -> "Total":
        return self

    def __exit__(self, *_: object) -> None:
        self._reports.close()
        self._boxes.close()

    def add(self, split: str, rows: pa.Table) -> None:
        """Adds the rows of a shard of ``split``.

        Raises:
          ValueError: an image id is used twice, or a patient is in two splits.
        """
        reports, boxes = [], []
        counts = self._counts.setdefault(split, Counter())
        for entry in rows.to_pylist():
            if entry["reason"] is not None:
                self._quarantined.append({"split": split, "item": entry["item"], "reason": entry["reason"]})
                continue
            self._image(split, entry, counts)
            boxes += [{"image_id": entry["image_id"]} | box for box in entry["boxes"]]
            if (split, entry["study_id"]) in self._studies:
                continue
            self._studies.add((split, entry["study_id"]))
            counts["studies"] += 1
            if entry["has_report"]:
                counts["reports"] += 1
                reports.append(entry | {"split": split})
        self._box_count += len(boxes)
        for writer, found, schema in ((self._reports, reports, REPORTS), (self._boxes, boxes, BOXES)):
            if found:
                writer.write_table(pa.Table.from_pylist(found, schema=schema))

    def _image(self, split: str, entry: dict[str, Any], counts: Counter[str]) -> None:
        image_id, patient_id = entry["image_id"], entry["patient_id"]
        if image_id in self._images:
            raise ValueError(f"image id {image_id[:_SHOWN]!r} is used twice; ids must be unique over all splits")
        self._images.add(image_id)
        other = self._split_of.get(patient_id)
        if other is None:
            self._split_of[patient_id] = split
            counts["patients"] += 1
        elif other != split:
            raise ValueError(
                f"patient {patient_id[:_SHOWN]!r} is in {other!r} and in {split!r}; splits must share no patient"
            )
        counts["images"] += 1

    def summary(self) -> dict[str, Any]:
        """counts, boxes and quarantine of the manifest.

        Raises:
          ValueError: a split has no usable image.
        """
        for split, counts in self._counts.items():
            if not counts["images"]:
                reasons = Counter(item["reason"] for item in self._quarantined if item["split"] == split)
                common = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
                raise ValueError(
                    f"split {split!r} has no usable image; all {reasons.total()} were quarantined ({common})"
                )
        names = ("images", "studies", "patients", "reports")
        return {
            "counts": {split: {name: counts[name] for name in names} for split, counts in self._counts.items()},
            "boxes": self._box_count,
            "quarantine": {"count": len(self._quarantined), "items": self._quarantined},
        }
