"""What reads reports: the backends, one protocol and one dict.

A backend is made from a vocabulary and its settings, a frozen dataclass that pickles, so that every worker process
can make its own.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from repgls_jax import findings as findings_lib
from repgls_jax.reports import engine as engine_lib
from repgls_jax.reports.resolve import Evidence


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Why a report has no evidence; it is quarantined.

    Attributes:
      reason: one line, without any of the report's text.
    """

    reason: str


class Backend(Protocol):
    """Reads reports. The same reports give the same answers, whatever stands beside them in a call.

    Attributes:
      labeller: name of the backend, for the provenance column.
      version: what it would take to repeat the reading: package version, lexicon digest or model and revision.
      prompt_hash: first 16 hexadecimal digits of the SHA-256 of everything that is prompted, "" without a prompt.
      chunk: reports that :meth:`read` takes at a time; also what a kill may cost.
    """

    labeller: str
    version: str
    prompt_hash: str
    chunk: int

    def read(self, reports: Sequence[Mapping[str, str]]) -> list[list[Evidence] | Fault]:
        """What each report says: its evidence, at most one piece a finding, or why it could not be read."""
        ...


@dataclasses.dataclass(frozen=True)
class LexiconSettings:
    """Settings of the lexicon backend.

    Attributes:
      override: a table of cues calibrated on a site's own labels (see :mod:`repgls_jax.evidence.calibrate`), or None.
    """

    override: pathlib.Path | None = None


class LexiconBackend:
    """The rule engine as a backend."""

    labeller = "lexicon"
    prompt_hash = ""
    chunk = 2_000

    def __init__(self, vocabulary: findings_lib.Vocabulary, settings: LexiconSettings) -> None:
        self._engine = engine_lib.Engine(vocabulary)
        self.version = self._engine.version

    def read(self, reports: Sequence[Mapping[str, str]]) -> list[list[Evidence] | Fault]:
        return [self._engine.read(report) for report in reports]


# Name -> (settings class, function of (vocabulary, settings) that makes the backend).
BACKENDS: dict[str, tuple[type, Callable[[findings_lib.Vocabulary, Any], Backend]]] = {
    "lexicon": (LexiconSettings, LexiconBackend),
}
