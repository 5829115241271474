"""What a corpus says: counts over an evidence file.

Columns are read in batches and held as codes, at most some 120 bytes a row while they are counted, so that millions
of rows fit; the text of reports is nowhere in such a file, and nothing of a single study comes out.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import stored

MAX_ROWS = 50_000_000  # about 6 GB
BINS = 20  # of p on [0, 1]
MOST_CUES = 500  # in the statistics; the others are counted together
_MOST_SECTIONS = 20
_TOP_FINDINGS = 3  # named beside a cue
_BLOCK = 65_536  # rows, or studies, at a time
_STATES = {findings_lib.STATES[s]: s for s in (findings_lib.POSITIVE, findings_lib.UNCERTAIN, findings_lib.NEGATIVE)}


@dataclasses.dataclass(frozen=True)
class Rows:
    """The columns of an evidence file as codes, n rows.

    Attributes:
      vocabulary: the findings.
      study: int32 [n], in [0, studies).
      studies: studies that have a row.
      finding: int32 [n], index into the vocabulary.
      state: int8 [n], 1, 0 or -1.
      p: float32 [n], [0, 1].
      cue, section: int32 [n], indices into ``cues`` and ``sections``.
      cues, sections: their names.
      made_by: (labeller, version, prompt hash, rows) of every reader of the file.
    """

    vocabulary: findings_lib.Vocabulary
    study: np.ndarray
    studies: int
    finding: np.ndarray
    state: np.ndarray
    p: np.ndarray
    cue: np.ndarray
    cues: list[str]
    section: np.ndarray
    sections: list[str]
    made_by: list[tuple[str, str, str, int]]


def read(path: pathlib.Path) -> Rows:
    """Reads and checks an evidence file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no evidence file of this version, has no row or too many, holds an impossible value, or a
        (study, finding) pair more than once.
    """
    file, vocabulary = stored.open_file(path)
    total = file.metadata.num_rows
    if not 0 < total <= MAX_ROWS:
        raise ValueError(f"evidence file {path} has {total:,} rows; expected 1 to {MAX_ROWS:,}")
    texts = ("study_id", "finding", "cue", "section", "labeller", "version", "prompt_hash")
    parts: dict[str, list[pa.Array]] = {name: [] for name in (*texts, "state", "p")}
    for batch in file.iter_batches(_BLOCK, columns=list(parts)):
        table = stored.typed(pa.Table.from_batches([batch]), list(parts), path)
        for name, chunks in parts.items():
            column = table[name].combine_chunks()
            if column.null_count:
                raise ValueError(f"evidence file {path} has rows without {name}; the file is damaged, extract again")
            chunks.append(column.dictionary_encode() if name in texts else column)
    codes = {name: _codes(parts.pop(name)) for name in texts}
    state, p = (np.concatenate([chunk.to_numpy() for chunk in parts[name]]) for name in ("state", "p"))
    if not stored.possible(state, p):
        raise ValueError(f"evidence file {path} has a state beside -1, 0 and 1, or a p beside [0, 1]; extract again")
    if len(codes["section"][1]) > _MOST_SECTIONS:
        raise ValueError(f"evidence file {path} has over {_MOST_SECTIONS} sections; extract again")
    (study, names), (finding, findings) = codes["study_id"], codes["finding"]
    finding = np.array([vocabulary.index(name) for name in findings.to_pylist()], np.int32)[finding]
    (cue, cues), (section, sections) = codes["cue"], codes["section"]
    said = (cue, cues.to_pylist(), section, sections.to_pylist(), _made_by(codes))
    rows = Rows(vocabulary, study, len(names), finding, state, p, *said)
    if np.count_nonzero(states(rows) != findings_lib.NOT_MENTIONED) != total:
        raise ValueError(f"evidence file {path} holds a (study_id, finding) pair more than once; extract again")
    return rows


def _codes(chunks: list[pa.Array]) -> tuple[np.ndarray, pa.Array]:
    """int32 codes of a column of texts, and the texts."""
    column = pa.chunked_array(chunks).unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])
    return codes.astype(np.int32, copy=False), column.chunk(0).dictionary


def _made_by(codes: dict[str, tuple[np.ndarray, pa.Array]]) -> list[tuple[str, str, str, int]]:
    (labeller, labellers), (version, versions), (prompt, prompts) = (
        codes[name] for name in ("labeller", "version", "prompt_hash")
    )
    sizes = (len(labellers), len(versions), len(prompts))
    triples, counts = np.unique(np.ravel_multi_index((labeller, version, prompt), sizes), return_counts=True)
    return [
        (labellers[i].as_py(), versions[j].as_py(), prompts[k].as_py(), int(count))
        for i, j, k, count in zip(*np.unravel_index(triples, sizes), counts, strict=True)
    ]


def states(rows: Rows) -> np.ndarray:
    """int8 [studies, c] label states."""
    dense = np.full((rows.studies, len(rows.vocabulary)), findings_lib.NOT_MENTIONED, np.int8)
    dense[rows.study, rows.finding] = rows.state
    return dense


def share(k: int, n: int) -> dict[str, Any]:
    """k of n, with Wilson's 95 % interval; None where n is 0."""
    if n == 0:
        return {"k": k, "n": n, "share": None, "low": None, "high": None}
    ends = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return {"k": k, "n": n, "share": k / n, "low": float(ends.low), "high": float(ends.high)}


def bins(p: np.ndarray) -> np.ndarray:
    """The bin of each p: k holds [k / BINS, (k + 1) / BINS), the last one 1 as well."""
    # The rounding keeps float32 0.7 in the bin that starts at 0.7.
    return np.minimum(np.floor(np.round(p.astype(np.float64) * BINS, 4)), BINS - 1).astype(np.int64)


def _said(rows: Rows) -> np.ndarray:
    """bool [n]: words of the report say it; False for what follows by rule from other findings."""
    return ~np.array([cue.startswith("rule:") for cue in rows.cues])[rows.cue]


def _cross(first: np.ndarray, m: int, second: np.ndarray, n: int) -> np.ndarray:
    """int64 [m, n]: how often each pair of codes stands together."""
    return np.bincount(first.astype(np.int64) * n + second, minlength=m * n).reshape(m, n)


def _by_state(state: np.ndarray, codes: np.ndarray, n: int) -> np.ndarray:
    """int64 [n, 3]: counts by code and state, in the order positive, uncertain, negative."""
    return np.stack([np.bincount(codes[state == value], minlength=n) for value in _STATES.values()], axis=1)


def _findings(rows: Rows, total: int) -> dict[str, dict[str, Any]]:
    c = len(rows.vocabulary)
    counts = _by_state(rows.state, rows.finding, c)
    histogram = _cross(rows.finding, c, bins(rows.p), BINS)
    sections = _cross(rows.finding, c, rows.section, len(rows.sections))
    zero = np.bincount(rows.finding[rows.p == 0], minlength=c)
    one = np.bincount(rows.finding[rows.p == 1], minlength=c)
    found = {}
    for k, name in enumerate(rows.vocabulary.findings):
        positive, uncertain, negative = map(int, counts[k])
        mentioned = positive + uncertain + negative
        found[name] = {
            "positive": positive,
            "uncertain": uncertain,
            "negative": negative,
            "not mentioned": total - mentioned,
            "mentioned": share(mentioned, total),
            "hedged": share(uncertain, positive + uncertain),
            "prevalence": share(positive, positive + negative),
            "negatives_per_positive": negative / positive if positive else None,
            "p_is_0": int(zero[k]),
            "p_is_1": int(one[k]),
            "p_histogram": histogram[k].tolist(),
            "sections": dict(zip(rows.sections, sections[k].tolist(), strict=True)),
        }
    return found


def _cues(rows: Rows) -> dict[str, Any]:
    """The most frequent cues, "" being bare mentions; what follows by rule has no cue."""
    said = _said(rows)
    counts = np.bincount(rows.cue[said], minlength=len(rows.cues))
    order = sorted(np.flatnonzero(counts), key=lambda k: (-counts[k], rows.cues[k]))[:MOST_CUES]
    place = np.full(len(rows.cues), len(order))
    place[order] = np.arange(len(order))
    cue = place[rows.cue]
    by_state = _by_state(rows.state, cue, len(order) + 1)
    by_finding = _cross(cue, len(order) + 1, rows.finding, len(rows.vocabulary))
    sums = np.bincount(cue, rows.p.astype(np.float64), len(order) + 1)
    listed = []
    for i, k in enumerate(order):
        n = int(counts[k])
        top = np.argsort(-by_finding[i], kind="stable")[:_TOP_FINDINGS]
        names = {rows.vocabulary.findings[j]: int(by_finding[i, j]) for j in top if by_finding[i, j]}
        states_of = dict(zip(_STATES, by_state[i].tolist(), strict=True))
        listed.append({"cue": rows.cues[k], "n": n, **states_of, "p_mean": sums[i] / n, "findings": names})
    rest = int(counts.sum() - counts[order].sum())
    return {"distinct": int(np.count_nonzero(counts)), "rows": int(counts.sum()), "rest": rest, "listed": listed}


def _co_occurrence(rows: Rows, dense: np.ndarray, total: int) -> dict[str, Any]:
    """Findings that are positive in the same study; "No Finding" is left out, as it follows from the others."""
    kept = [k for k, name in enumerate(rows.vocabulary.findings) if name != findings_lib.NO_FINDING]
    both = np.zeros((len(kept), len(kept)), np.int64)
    for at in range(0, len(dense), _BLOCK):
        positive = (dense[at : at + _BLOCK, kept] == findings_lib.POSITIVE).astype(np.float64)  # exact, and fast
        both += (positive.T @ positive).astype(np.int64)
    alone = np.diag(both)
    with np.errstate(divide="ignore", invalid="ignore"):
        given = both / alone[:, None]
        lift = both * total / (alone[:, None] * alone[None, :]).astype(np.float64)
    return {
        "findings": [rows.vocabulary.findings[k] for k in kept],
        "both": both.tolist(),
        "column_given_row": _or_none(given),
        "lift": _or_none(lift),
    }


def _or_none(values: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in values]


def describe(path: pathlib.Path, studies: int | None = None) -> dict[str, Any]:
    """The statistics of an evidence file.

    Args:
      path: evidence file.
      studies: reports that were read, where it is known; an evidence file has no row of a report without evidence.

    Returns:
      A dictionary that JSON can hold. Shares of findings come with Wilson's 95 % interval: ``mentioned`` of all
      studies; ``hedged``, the uncertain of the positive and uncertain; ``prevalence``, the positive of the positive
      and negative. Totals leave out "No Finding".

    Raises:
      FileNotFoundError, ValueError: see :func:`read`; or ``studies`` is smaller than the file's number of studies.
    """
    rows = read(path)
    if studies is not None and studies < rows.studies:
        raise ValueError(f"studies is {studies:,}, but {path} has evidence of {rows.studies:,}; expected at least that")
    total = rows.studies if studies is None else studies
    dense = states(rows)
    own = [k for k, name in enumerate(rows.vocabulary.findings) if name != findings_lib.NO_FINDING]
    silent = int(np.count_nonzero((dense[:, own] == findings_lib.NOT_MENTIONED).all(axis=1)))
    findings = _findings(rows, total)
    pooled = [findings[rows.vocabulary.findings[k]] for k in own]
    positive, uncertain = (sum(entry[name] for entry in pooled) for name in ("positive", "uncertain"))
    said = _said(rows)
    sections = _by_state(rows.state[said], rows.section[said], len(rows.sections))
    return {
        "rows": len(rows.state),
        "studies": {
            "total": total,
            "total_is_given": studies is not None,
            "with_rows": rows.studies,
            "without_rows": total - rows.studies,
            "without_finding": silent + total - rows.studies,
        },
        "vocabulary": dataclasses.asdict(rows.vocabulary),
        "made_by": [dict(zip(("labeller", "version", "prompt_hash", "rows"), m, strict=True)) for m in rows.made_by],
        "uncertain": uncertain,
        "positive": positive,
        "findings": findings,
        "sections": {
            name: dict(zip(_STATES, sections[k].tolist(), strict=True)) for k, name in enumerate(rows.sections)
        },
        "cues": _cues(rows),
        "co_occurrence": _co_occurrence(rows, dense, total),
    }
