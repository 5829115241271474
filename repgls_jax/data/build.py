"""Writes a data set to disk: image shards, reports, boxes, and last the manifest that declares them complete.

<output>/shards/          TFDS folder with ArrayRecord files, their pixels beside them; no report text
<output>/reports.parquet  study_id, patient_id, split, findings, impression, report: one row per
                          study that has text and at least one usable image
<output>/boxes.parquet    image_id, finding, x0, y0, x1, y1: in pixels of the stored image
<output>/manifest.json    counts, vocabulary, shards, quarantined images, parameters, versions

A build that was interrupted, even by a kill, goes on from the shards that are finished, and ends in the same files.
Until then <output>/.partial holds what is known of them, report text included.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import tqdm

from repgls_jax.data import builder, ledger, parallel, pixels
from repgls_jax.data.builder import PARTIAL, SHARDS
from repgls_jax.data.ledger import Shard
from repgls_jax.data.source import Source

FORMAT = 3  # 2 had the pixels in ArrayRecord
REPORTS, BOXES, MANIFEST = "reports.parquet", "boxes.parquet", "manifest.json"
_BEGUN, _BUSY = "begun.json", "busy"  # in the folder PARTIAL
_PACKAGES = ("repgls-jax", "numpy", "pillow", "pydicom", "pyarrow", "array-record", "tensorflow-datasets")
_FEW = 300  # images: making them takes no longer than starting a process

# Does a job for every shard, in any order and anywhere that sees the output folder; see :func:`parallel.run`.
Engine = Callable[[builder.Job, Sequence[Shard], parallel.Tick], None]


def build(
    source: Source,
    output: pathlib.Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
    workers: int | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Writes a source, or finds it written already, or goes on where an earlier build of it was interrupted.

    Args:
      source: the data set.
      output: folder to write; made where needed.
      overwrite: replaces a build, complete or not, made from something else.
      progress: shows a progress bar, and at the end how fast it was.
      workers: processes; None for one per core, or this one where there is little to do. What is written does not
        depend on it.
      engine: does the jobs instead of processes of this machine, see :mod:`repgls_jax.data.beam`.

    Returns:
      The manifest: format, vocabulary {name, version, findings}, image_size, simulated, source (its parameters),
      counts {split: {images, studies, patients, reports}}, boxes (how many), quarantine {count, items [{split, item,
      reason}]}, shards {file: {images, bytes, sha256}}, versions.

    Raises:
      ValueError: ``output`` holds another build or foreign files, another process builds there, or the source is
        faulty.
      OSError: the disk is full, or a process died. What is finished stays.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; expected at least 1")
    output = output.absolute()
    identity = identity_of(source)
    manifest = _complete(output, identity, overwrite)
    if manifest and not (output / PARTIAL).exists():
        return manifest
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output):
        manifest = _complete(output, identity, overwrite)  # another process may have made it meanwhile
        if manifest is None:
            _open(output, identity, overwrite)
            manifest = _write(source, output, identity, progress, engine or _local(workers, output))
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
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


@contextlib.contextmanager
def _alone(output: pathlib.Path) -> Iterator[None]:
    """Keeps other builds out of the folder; a file beside it is the lock."""
    try:
        with parallel.locked(output.with_name(f".{output.name}.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield
    except BlockingIOError:
        raise ValueError(f"another process builds in {output}; wait for it, or name another folder") from None


def _complete(output: pathlib.Path, identity: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of a complete build with this identity; None if there is no complete build, or it may go."""
    if not (output / MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(output)
    except ValueError:
        if overwrite:
            return None
        raise
    return manifest if _same(identity, manifest, output, overwrite) else None


def _same(wanted: dict[str, Any], found: dict[str, Any], output: pathlib.Path, overwrite: bool) -> bool:
    differ = ", ".join(_differing(wanted, found))
    if differ and not overwrite:
        raise ValueError(f"{output} holds another build ({differ} differ); choose another folder or overwrite it")
    return not differ


def _differing(wanted: dict[str, Any], found: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of the entries that differ, as "source.config.seed"; at the top ``found`` may have more."""
    more = [key for key in found if key not in wanted] if prefix else []
    for key in (*wanted, *more):
        value, other = wanted.get(key), found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differing(value, other, f"{prefix}{key}.")
        elif value != other:
            yield prefix + key


def _open(output: pathlib.Path, identity: dict[str, Any], overwrite: bool) -> None:
    """Makes the folder ready: keeps what an interrupted build of the same source has finished, and nothing else."""
    ours = {PARTIAL, SHARDS, REPORTS, BOXES, MANIFEST}
    foreign = sorted(p.name for p in output.iterdir() if p.name not in ours)
    if foreign:
        raise ValueError(f"{output} holds files that no build wrote: {', '.join(foreign[:5])}; choose another folder")
    partial = output / PARTIAL
    # Shards of two versions of a decoder must not be mixed.
    wanted = identity | {"versions": _versions()}
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        with parallel.locked(partial / _BUSY, fcntl.LOCK_EX):  # until the last process of a killed build has ended
            begun = json.loads((partial / _BEGUN).read_text(encoding="utf-8"))
        if not (output / MANIFEST).exists() and _same(wanted, begun, output, overwrite):
            return
    # The manifest goes first: without it the rest counts for nothing. Then the word that there are shards to go on
    # from.
    for path in (output / MANIFEST, partial / _BEGUN, output / REPORTS, output / BOXES):
        path.unlink(missing_ok=True)
    for folder in (output / SHARDS, partial):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
    _write_json(output / PARTIAL / _BEGUN, wanted, partial)


def _write_json(path: pathlib.Path, value: dict[str, Any], scratch: pathlib.Path) -> None:
    with ledger.whole(path, scratch) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in _PACKAGES}


def _local(workers: int | None, output: pathlib.Path) -> Engine:
    def engine(job: builder.Job, shards: Sequence[Shard], tick: parallel.Tick) -> None:
        few = sum(shard.stop - shard.start for shard in shards) < _FEW
        chosen = workers or (1 if few else parallel.cores())
        parallel.run(job, shards, chosen, tick, output / PARTIAL / _BUSY)

    return engine


def _write(
    source: Source, output: pathlib.Path, identity: dict[str, Any], progress: bool, engine: Engine
) -> dict[str, Any]:
    """Makes the shards that are not done, then everything that follows from their ledgers."""
    job, shards = builder.Job(source, output), builder.plan(source)
    missing = _missing(job, shards)
    # A log file gets a line now and then, a terminal a moving bar.
    every = 0.1 if sys.stderr.isatty() else 10.0
    total, to_do = (sum(shard.stop - shard.start for shard in some) for some in (shards, missing))
    with tqdm.tqdm(
        total=total, initial=total - to_do, unit="image", disable=not progress, mininterval=every, maxinterval=every
    ) as bar:
        if missing:
            engine(job, missing, bar.update)
    manifest, abouts = _finish(job, identity, shards)
    if progress:
        images, seconds = sum(about.images for about in abouts), sum(about.seconds for about in abouts)
        print(f"{images} images, {images / max(seconds, 1e-9):.0f} a second and core", file=sys.stderr)
    return manifest


def _missing(job: builder.Job, shards: Sequence[Shard]) -> list[Shard]:
    with futures.ThreadPoolExecutor(parallel.cores()) as pool:
        done = pool.map(lambda shard: job.done(shard) is not None, shards)
        return [shard for shard, is_done in zip(shards, done, strict=True) if not is_done]


def _finish(
    job: builder.Job, identity: dict[str, Any], shards: Sequence[Shard]
) -> tuple[dict[str, Any], list[ledger.About]]:
    """Writes all files but the shards; returns the manifest, and what is known of each shard."""
    folder, partial = job.output / SHARDS, job.output / PARTIAL
    abouts = []
    with ledger.whole(job.output / REPORTS, partial) as reports, ledger.whole(job.output / BOXES, partial) as boxes:
        with ledger.Total(reports, boxes) as total:
            for shard in shards:
                written = ledger.read(job.ledger(shard))
                if written is None:
                    raise OSError(f"{job.ledger(shard)} is missing or damaged; the same command makes it again")
                about, rows = written
                abouts.append(about)
                total.add(shard.split, rows)
        summary = total.summary()
    kept = {job.file(shard) for shard in shards}
    for path in {*folder.iterdir()} - kept - {pixels.beside(file) for file in kept}:
        path.unlink()
    builder.write_metadata(job.source, folder, abouts)
    files = {
        file.name: {"images": about.images, "bytes": file.bytes, "sha256": file.sha256}
        for about in abouts
        for file in (about.records, about.pixels)
    }
    manifest = identity | summary | {"shards": files, "versions": _versions()}
    _write_json(job.output / MANIFEST, manifest, partial)
    return manifest, abouts
