"""Writes a data set to disk: image shards, reports, and last the manifest that declares them complete.

<output>/shards/          TFDS folder with ArrayRecord files; no report text
<output>/reports.parquet  study_id, patient_id, split, findings, impression, report: one row per
                          study that has text and at least one usable image
<output>/manifest.json    counts, vocabulary, quarantined images, parameters, versions
"""

import contextlib
import importlib.metadata
import json
import pathlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tqdm

from repgls_jax.data.builder import Shards
from repgls_jax.data.source import TEXT_FIELDS, Quarantined, Record, Source

FORMAT = 1
SHARDS, REPORTS, MANIFEST = "shards", "reports.parquet", "manifest.json"
_PARTIAL = ".partial"
_PACKAGES = ("repgls-jax", "numpy", "pillow", "pyarrow", "array-record", "tensorflow-datasets")
_REPORTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("study_id", "patient_id", "split", *TEXT_FIELDS)])
_FLUSH = 1000  # reports held before they are written


def build(source: Source, output: pathlib.Path, *, overwrite: bool = False, progress: bool = False) -> dict[str, Any]:
    """Writes a source, or finds it written already.

    An interrupted build leaves no manifest; the next one clears what it left and starts again. Only one process may
    build in a folder at a time.

    Args:
      source: the data set.
      output: folder to write; made where needed.
      overwrite: replaces a complete build made from something else.
      progress: shows a progress bar.

    Returns:
      The manifest: format, vocabulary {name, version, findings}, image_size, simulated, source (its parameters),
      counts {split: {images, studies, patients, reports}}, quarantine {count, items [{split, item, reason}]}, versions.

    Raises:
      ValueError: ``output`` holds another build or foreign files, or the source is faulty.
    """
    identity = identity_of(source)
    if (output / MANIFEST).exists():
        manifest = read_manifest(output)
        if all(manifest.get(key) == value for key, value in identity.items()):
            return manifest
        if not overwrite:
            differ = ", ".join(_differing(identity, manifest))
            raise ValueError(f"{output} holds another build ({differ} differ); choose another folder or overwrite it")
    _clear(output)
    partial = output / _PARTIAL
    partial.mkdir(parents=True)
    planned = sum(source.splits().values())
    with contextlib.closing(source), _Ledger(partial / REPORTS, planned, progress) as ledger:
        shards = Shards(source, ledger.add, data_dir=partial, file_format="array_record")
        shards.download_and_prepare()
    manifest = identity | ledger.summary() | {"versions": {p: importlib.metadata.version(p) for p in _PACKAGES}}
    pathlib.Path(shards.data_path).replace(output / SHARDS)
    (partial / REPORTS).replace(output / REPORTS)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (partial / MANIFEST).replace(output / MANIFEST)
    shutil.rmtree(partial)
    return manifest


def read_manifest(output: pathlib.Path) -> dict[str, Any]:
    """The manifest of a complete build.

    Raises:
      FileNotFoundError: there is none: nothing was built here, or the build was interrupted.
      ValueError: another format.
    """
    path = output / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no complete build there; run data_prep/build.py")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; build the data set again")
    return manifest


def identity_of(source: Source) -> dict[str, Any]:
    """What a build of ``source`` follows from, as JSON values: builds with equal identities are equal."""
    vocabulary = source.vocabulary
    value = {
        "format": FORMAT,
        "vocabulary": {"name": vocabulary.name, "version": vocabulary.version, "findings": vocabulary.findings},
        "image_size": source.image_size,
        "simulated": source.simulated,
        "source": source.parameters(),
    }
    return json.loads(json.dumps(value))  # tuples as lists: it is compared with what was read from a file


def _differing(wanted: dict[str, Any], found: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of the entries of ``wanted`` that ``found`` has otherwise, as "source.config.seed"."""
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differing(value, other, f"{prefix}{key}.")
        elif value != other:
            yield prefix + key


def _clear(output: pathlib.Path) -> None:
    """Removes what an earlier build left, and nothing else."""
    ours = {_PARTIAL, SHARDS, REPORTS, MANIFEST}
    foreign = sorted(p.name for p in output.iterdir() if p.name not in ours) if output.exists() else []
    if foreign:
        raise ValueError(f"{output} holds files that no build wrote: {', '.join(foreign[:5])}; choose another folder")
    # The manifest goes first: without it the rest counts for nothing.
    (output / MANIFEST).unlink(missing_ok=True)
    (output / REPORTS).unlink(missing_ok=True)
    for folder in (SHARDS, _PARTIAL):
        if (output / folder).exists():
            shutil.rmtree(output / folder)


class _Ledger:
    """Counts what passes, writes the reports, keeps the quarantine list."""

    def __init__(self, path: pathlib.Path, planned: int, progress: bool):
        self._writer = pq.ParquetWriter(path, _REPORTS_SCHEMA)
        # A log file gets a line now and then, a terminal a moving bar.
        every = 0.1 if sys.stderr.isatty() else 10.0
        self._bar = tqdm.tqdm(total=planned, unit="image", disable=not progress, mininterval=every, maxinterval=every)
        self._images: Counter[str] = Counter()
        self._studies: dict[str, dict[str, bool]] = {}
        self._patients: dict[str, set[str]] = {}
        self._quarantined: list[dict[str, str]] = []
        self._waiting: list[dict[str, str]] = []

    def __enter__(self) -> "_Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()
        self._bar.close()

    def add(self, split: str, record: Record | Quarantined) -> None:
        self._bar.update()
        if isinstance(record, Quarantined):
            self._quarantined.append({"split": split, "item": record.item, "reason": record.reason})
            return
        self._images[split] += 1
        self._patients.setdefault(split, set()).add(record["patient_id"])
        studies = self._studies.setdefault(split, {})
        if record["study_id"] in studies:
            return
        studies[record["study_id"]] = bool(record["has_report"])
        if record["has_report"]:
            row = {name: record[name] for name in ("study_id", "patient_id", *TEXT_FIELDS)}
            self._waiting.append(row | {"split": split})
            if len(self._waiting) >= _FLUSH:
                self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=_REPORTS_SCHEMA))
            self._waiting = []

    def summary(self) -> dict[str, Any]:
        counts = {
            split: {
                "images": images,
                "studies": len(self._studies[split]),
                "patients": len(self._patients[split]),
                "reports": sum(self._studies[split].values()),
            }
            for split, images in self._images.items()
        }
        return {"counts": counts, "quarantine": {"count": len(self._quarantined), "items": self._quarantined}}
