"""How well an evidence file agrees with labels of presence, finding by finding.

Two readings of the evidence are scored: what the wording asserts (state positive), and what it holds more likely than
not (p >= 1/2). A labelled study that was read and does not mention a finding counts as a negative reading of it.
"""

import dataclasses
import pathlib

import numpy as np
import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import labels as labels_lib
from repgls_jax.evidence import sheet, stored

READINGS = ("asserted", "p >= .5")


@dataclasses.dataclass(frozen=True)
class Counts:
    """What agrees and what does not; n studies, c findings.

    Attributes:
      findings: c names, of findings that have labels.
      present: int [c], labels that say present.
      known: int [c], labels that say anything.
      hits, false, missed: bool [2, n, c] for each of :data:`READINGS`: present and read so, absent and read as
        present, present and not read so.
      unread: labelled studies that the evidence file does not have.
    """

    findings: tuple[str, ...]
    present: np.ndarray
    known: np.ndarray
    hits: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    unread: int


def count(evidence: pathlib.Path, labels: pathlib.Path) -> Counts:
    """Holds an evidence file against a label file (see :func:`repgls_jax.evidence.labels.read`).

    Raises:
      FileNotFoundError, ValueError: a file is missing or malformed, or they share no study or no finding.
    """
    table, vocabulary = stored.read(evidence, ["study_id", "finding", "state", "p"])
    ids, names, values, _ = labels_lib.read(labels)
    # "No Finding" follows from the others, and label files mean different things by it.
    columns = [j for j, name in enumerate(names) if name in vocabulary.findings and name != findings_lib.NO_FINDING]
    names, values = tuple(names[j] for j in columns), values[:, columns]
    row = stored.places(table["study_id"], pa.array(ids, pa.string()))
    col = stored.places(table["finding"], pa.array(names, pa.string()))
    was_read = np.zeros(len(ids), bool)
    was_read[row[row >= 0]] = True
    if not was_read.any() or not names:
        raise ValueError(f"{evidence} and {labels} share no study or no finding; expected files of the same studies")
    said = np.zeros((len(READINGS), *values.shape), bool)
    use = (row >= 0) & (col >= 0)
    said[0, row[use], col[use]] = table["state"].to_numpy()[use] == findings_lib.POSITIVE
    said[1, row[use], col[use]] = table["p"].to_numpy()[use] >= 0.5
    values, said = values[was_read], said[:, was_read]
    present, absent = values == 1, values == 0
    return Counts(
        names,
        present.sum(axis=0),
        (values >= 0).sum(axis=0),
        said & present,
        said & absent,
        ~said & present,
        int((~was_read).sum()),
    )


def rates(hits: np.ndarray, false: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 from counts of any one shape: float64 [3, ...], NaN where there is nothing to divide."""
    with np.errstate(invalid="ignore"):
        return np.stack([hits / (hits + false), hits / (hits + missed), 2 * hits / (2 * hits + false + missed)])


def interval(counts: Counts, replicates: int, seed: int) -> np.ndarray:
    """95 % percentile intervals of the pooled rates, over draws of studies: float64 [2 bounds, 3 rates, 2 readings]."""
    sums = np.stack([x.sum(axis=2) for x in (counts.hits, counts.false, counts.missed)]).astype(np.float64)
    n = sums.shape[2]
    rng = np.random.default_rng(seed)
    draws = [rates(*(sums @ rng.multinomial(n, np.full(n, 1 / n)))) for _ in range(replicates)]
    return np.nanquantile(draws, (0.025, 0.975), axis=0)


def text(counts: Counts, replicates: int = 1000, seed: int = 0) -> str:
    """The scores as a table for the terminal; all findings together with intervals over studies."""
    head = ["Finding", "Labels", "Present"]
    for reading in READINGS:
        head += [f"P, {reading}", "R", "F1"]
    by_finding = rates(*(x.sum(axis=1) for x in (counts.hits, counts.false, counts.missed)))
    rows = [
        [name, f"{counts.known[j]:,}", f"{counts.present[j]:,}"]
        + [_cell(by_finding[k, r, j]) for r in range(len(READINGS)) for k in range(3)]
        for j, name in enumerate(counts.findings)
    ]
    pooled = rates(*(x.sum(axis=(1, 2)) for x in (counts.hits, counts.false, counts.missed)))
    known, present = counts.known.sum(), counts.present.sum()
    rows.append(["All", f"{known:,}", f"{present:,}"] + [_cell(pooled[k, r]) for r in range(2) for k in range(3)])
    low, high = interval(counts, replicates, seed)
    lines = [sheet.ruled(head, rows)]
    for r, reading in enumerate(READINGS):
        spans = [f"{name} {sheet.between(low[k, r], high[k, r])}" for k, name in enumerate(("P", "R", "F1"))]
        lines.append(f"All, {reading}, 95 % over {counts.hits.shape[1]:,} studies: {', '.join(spans)}")
    if counts.unread:
        lines.append(f"{counts.unread:,} labelled studies are not in the evidence and are left out.")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.3f}"
