"""Evidence that was made beforehand, taken for the reports of a build: of those very texts, or not at all."""

import pathlib

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.extraction import source
from repgls_jax.extraction.workers import report_hash

_COVERED = 0.5  # share of the reports; evidence of fewer was made from a part of them


def take(
    evidence: pathlib.Path, reports: pathlib.Path, output: pathlib.Path, vocabulary: findings_lib.Vocabulary
) -> dict[str, int]:
    """Copies the rows that are about the reports of a build.

    Args:
      evidence: side-car that data_prep/extract_uncertainty.py wrote, with whichever backend.
      reports: ``reports.parquet`` of the build.
      output: side-car to write.
      vocabulary: the build's.

    Returns:
      Counts: reports, rows, silent (reports of which the evidence says nothing, so that every finding counts as not
      mentioned) and unread (reports that its labeller could not read).

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no evidence, of other findings, of other texts, or of less than half of the reports.
    """
    advice = f"give what data_prep/extract_uncertainty.py makes of {reports} with --findings={vocabulary.name}"
    try:
        table = sidecars.read(evidence, sidecars.EVIDENCE, vocabulary)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from None
    hashes = {report["study_id"]: report_hash(report) for report in source.Source(reports).reports()}
    ours = [hashes.get(study) for study in table["study_id"].to_pylist()]
    pairs = list(zip(ours, table["report_hash"].to_pylist(), strict=True))
    known = np.array([mine is not None for mine in ours], bool)
    rows = table.filter(known)
    said, unread = set(rows["study_id"].to_pylist()), sidecars.unread(table) & hashes.keys()
    differ = sum(mine not in (None, made) for mine, made in pairs)
    if differ:
        raise ValueError(
            f"evidence file {evidence} was made from other texts: {differ:,} of its {len(rows):,} rows on this data "
            f"point into them; {advice}"
        )
    if len(said | unread) < _COVERED * len(hashes):
        raise ValueError(
            f"evidence file {evidence} is about {len(said | unread):,} of the {len(hashes):,} reports of this data; "
            f"the others would count as mentioning nothing. Expected evidence of all; {advice}"
        )
    columns = {name: rows[name] for name in sidecars.EVIDENCE.names}
    sidecars.write(output, columns, sidecars.EVIDENCE, vocabulary, unread)
    silent = len(hashes) - len(said | unread)
    return {"reports": len(hashes), "rows": len(rows), "silent": silent, "unread": len(unread)}
