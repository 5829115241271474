"""Which reports to show, and with which evidence: files in, :class:`~repgls_jax.evidence.view.Study` out."""

import itertools
import pathlib
from collections.abc import Sequence

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import stored as stored_lib
from repgls_jax.evidence import view
from repgls_jax.extraction import source
from repgls_jax.reports import engine as engine_lib


def typed(text: str) -> source.Report:
    """A text typed by hand, as a report."""
    return {"study_id": "typed", "report": text}


def choose(path: pathlib.Path, study_id: str | None, limit: int) -> list[source.Report]:
    """One report of a file, or its first ones.

    Args:
      path: see :class:`repgls_jax.extraction.source.Source`.
      study_id: the report to find; None takes the first ``limit``.
      limit: most reports to take.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be read, holds no report, or none of that study.
    """
    found = (r for r in source.Source(path).reports() if study_id is None or r["study_id"] == study_id)
    chosen = list(itertools.islice(found, limit if study_id is None else 1))
    if not chosen:
        what = "no readable report" if study_id is None else f"no readable report of the study {study_id!r}"
        raise ValueError(f"reports file {path} has {what}; expected at least one")
    return chosen


def live(reports: Sequence[source.Report], vocabulary: findings_lib.Vocabulary) -> list[view.Study]:
    """The reports as the rule engine reads them now."""
    engine = engine_lib.Engine(vocabulary)
    return [view.live(report, engine) for report in reports]


def stored(reports: Sequence[source.Report], path: pathlib.Path) -> list[view.Study]:
    """The reports with their rows of an evidence file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no evidence file of this version, or was made from other texts.
    """
    rows = stored_lib.rows_of(path, [report["study_id"] for report in reports])
    return [view.stored(report, rows[report["study_id"]], f"evidence file {path}") for report in reports]
