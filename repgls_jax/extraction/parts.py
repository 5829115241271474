"""The parts of an unfinished run: what a kill leaves, and the same command goes on from.

``<output>.parts/<run>/00000.parquet`` ... hold the evidence of one chunk of consecutive reports each, ``run.json``
beside them says what read the reports, and the folder's name is its digest: a run with other settings has a folder of
its own, so that one wrong flag costs nothing. A part is complete or absent, and names the reports that it was read
from, so that it is used again for those and no others. :meth:`Folder.join` makes the side-car of them.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars

_PART = b"repgls_part"
_FORM = 1  # raised when parts are written differently, so that old ones are not taken for new


@dataclasses.dataclass(frozen=True)
class Part:
    """What a part says of itself.

    Attributes:
      digest: of the reports it was read from, see :func:`digest_of`.
      counts: see :func:`repgls_jax.extraction.run.extract`.
      faults: (study_id, reason) of every report without evidence.
    """

    digest: str
    counts: dict[str, int]
    faults: list[tuple[str, str]]


def digest_of(study_ids: Sequence[str], hashes: Sequence[str]) -> str:
    """SHA-256 over the ids and the hashes of some reports, in order: 64 hexadecimal digits."""
    text = json.dumps([list(study_ids), list(hashes)])
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def alone(output: pathlib.Path) -> Iterator[None]:
    """Holds the lock of ``output``, which the system lets go of when the process ends, however it ends.

    Raises:
      ValueError: another process holds it.
    """
    path = output.with_name(f".{output.name}.lock")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing {output}; wait for it, or name another output") from error
        yield


class Folder:
    """The folder of one run's parts.

    Attributes:
      path: ``<output>.parts/<run>``.
    """

    def __init__(
        self,
        output: pathlib.Path,
        vocabulary: findings_lib.Vocabulary,
        identity: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        """Opens the folder, with the parts that the same run has left there.

        Args:
          output: the side-car to be.
          vocabulary: findings of the parts.
          identity: what reads the reports, as JSON values.
          say: told when runs of another identity have left parts.
        """
        self._output = output
        self._schema = sidecars.with_vocabulary(sidecars.EVIDENCE, vocabulary)
        named = {"name": vocabulary.name, "version": vocabulary.version, "findings": [*vocabulary.findings]}
        record = json.dumps({"form": _FORM, **identity, "vocabulary": named}, indent=1)
        self._parent = output.with_name(output.name + ".parts")
        self.path = self._parent / hashlib.sha256(record.encode()).hexdigest()[:16]
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "run.json").write_text(record)
        others = sum(path != self.path for path in self._parent.iterdir())
        if others:
            say(f"extract: {self._parent} holds parts of {others} unfinished runs with other settings; left alone")

    def file(self, number: int) -> pathlib.Path:
        """Where part ``number`` stands."""
        return self.path / f"{number:05d}.parquet"

    def find(self, number: int, digest: str) -> Part | None:
        """Part ``number`` if it is there and was read from the reports of that digest."""
        try:
            schema = pq.read_schema(self.file(number))
        except (FileNotFoundError, pa.ArrowInvalid):  # the latter: cut off by a failing disk
            return None
        stored = (schema.metadata or {}).get(_PART)
        if stored is None or not schema.equals(self._schema):
            return None
        part = json.loads(stored)
        if part["digest"] != digest:
            return None
        return Part(part["digest"], part["counts"], [(study, reason) for study, reason in part["faults"]])

    def join(self, count: int, unread: Iterable[str]) -> None:
        """Writes the side-car from parts 0 to ``count`` - 1, a row group each, whole or not at all.

        Args:
          count: of parts.
          unread: ids of the studies whose report could not be read, see :func:`repgls_jax.sidecars.unread`.
        """
        schema = sidecars.with_unread(self._schema, unread)
        partial = self._output.with_name(self._output.name + ".partial")
        try:
            with pq.ParquetWriter(partial, schema) as writer:
                for number in range(count):
                    table = pq.read_table(self.file(number))
                    if table.num_rows:
                        writer.write_table(table.replace_schema_metadata(schema.metadata))
            partial.replace(self._output)
        finally:
            partial.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes this run's parts; those that a kill leaves are complete, and used again."""
        shutil.rmtree(self.path)
        with contextlib.suppress(OSError):  # parts of other runs stand there
            self._parent.rmdir()


def write(
    path: pathlib.Path, columns: Mapping[str, Sequence[Any]], part: Part, vocabulary: findings_lib.Vocabulary
) -> None:
    """Writes a part whole or not at all.

    Args:
      path: from :meth:`Folder.file`.
      columns: of :data:`repgls_jax.sidecars.EVIDENCE`.
      part: what it says of itself.
      vocabulary: findings that ``columns["finding"]`` is drawn from.
    """
    schema = sidecars.with_vocabulary(sidecars.EVIDENCE, vocabulary)
    metadata = {**schema.metadata, _PART: json.dumps(dataclasses.asdict(part)).encode()}
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.table(dict(columns), schema=schema.with_metadata(metadata)), partial)
    partial.replace(path)
