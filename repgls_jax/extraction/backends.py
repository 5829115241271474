"""What reads reports: the backends, one protocol and one dict.

A backend is made from a vocabulary and its settings, a frozen dataclass of plain values, so that every worker process
can make its own.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from repgls_jax import findings as findings_lib
from repgls_jax.reports import engine as engine_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import override as override_lib
from repgls_jax.reports.resolve import Evidence

# Name -> "module:settings class:backend class". Named rather than imported: a model's module needs libraries that the
# package does without. A backend of one's own is given in the same form instead of a name.
BACKENDS: dict[str, str] = {
    "lexicon": "repgls_jax.extraction.backends:LexiconSettings:LexiconBackend",
    "qwen": "repgls_jax.extraction.qwen:QwenSettings:QwenBackend",
    "server": "repgls_jax.extraction.server:ServerSettings:ServerBackend",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Why a report has no evidence; it is quarantined.

    Attributes:
      reason: one line, without any of the report's text.
    """

    reason: str


class Backend(Protocol):
    """Reads reports. The same reports give the same answers, whatever stands beside them in a call.

    Its settings class may have ``needs_device = True``: each of several worker processes is then given one GPU, before
    the backend's module is imported.

    Attributes:
      labeller: name of the backend, for the provenance column.
      version: what it would take to repeat the reading: package version, lexicon digest or model and revision, and
        every setting that changes an answer. An interrupted run is continued with what is of the same version.
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

    def cuts(self, report: Mapping[str, str]) -> bool:
        """Whether the report is so long that only a part of it is read."""
        ...


@dataclasses.dataclass(frozen=True)
class LexiconSettings:
    """Settings of the lexicon backend.

    Attributes:
      lexicon_override: a table of cues calibrated on a site's own labels, or None; see
        :mod:`repgls_jax.evidence.calibrate`.
    """

    lexicon_override: pathlib.Path | None = None


class LexiconBackend:
    """The rule engine as a backend."""

    labeller = "lexicon"
    prompt_hash = ""
    chunk = 2_000

    def __init__(self, vocabulary: findings_lib.Vocabulary, settings: LexiconSettings) -> None:
        lexicon = lexicon_lib.load()
        path = settings.lexicon_override
        override = None if path is None else override_lib.load(path, lexicon)
        self._engine = engine_lib.Engine(vocabulary, lexicon, override)
        self.version = self._engine.version

    def read(self, reports: Sequence[Mapping[str, str]]) -> list[list[Evidence] | Fault]:
        return [self._engine.read(report) for report in reports]

    def cuts(self, report: Mapping[str, str]) -> bool:
        return any(len(report.get(field) or "") > engine_lib.MAX_CHARS for field in engine_lib.FIELDS)


def load(backend: str) -> tuple[type, Callable[[findings_lib.Vocabulary, Any], Backend]]:
    """The settings class of a backend and the class that makes it.

    Args:
      backend: key in :data:`BACKENDS`, or a value of that form.

    Raises:
      ValueError: the backend is unknown, or a library that it needs is not installed.
    """
    place = BACKENDS.get(backend, backend)
    if place.count(":") != 2:
        raise ValueError(
            f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}, or module:Settings:Backend"
        )
    name, settings, maker = place.split(":")
    try:
        module = importlib.import_module(name)
        return getattr(module, settings), getattr(module, maker)
    except ModuleNotFoundError as error:
        remedy = "pip install 'repgls-jax[labels]'" if backend in BACKENDS else "it must be on the import path"
        raise ValueError(f"backend {backend} needs the module {error.name}, which is not there; {remedy}") from error
    except AttributeError as error:
        raise ValueError(f"backend {backend}: {error}; expected module:Settings:Backend") from error


def settings_of(backend: str, values: Mapping[str, Any]) -> Any:
    """The settings of a backend from named values.

    Raises:
      ValueError: the backend is unknown, takes no setting of that name, or needs one that is not given; every fault
        is named.
    """
    kind, _ = load(backend)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    problems = [f"{name} is not a setting of it" for name in values if name not in fields]
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            problems.append(f"{name} is missing")
    if problems:
        raise ValueError(f"backend {backend}: {'; '.join(problems)}; it takes {', '.join(fields)}")
    return kind(**values)


def make(backend: str, vocabulary: findings_lib.Vocabulary, settings: Any = None) -> Backend:
    """Makes a backend.

    Args:
      backend: key in :data:`BACKENDS`, or a value of that form.
      vocabulary: findings to give evidence for.
      settings: an instance of the backend's settings class; None takes its defaults.

    Raises:
      ValueError: the backend is unknown, or its settings are wrong or missing.
    """
    _, maker = load(backend)
    return maker(vocabulary, settings_of(backend, {}) if settings is None else settings)
