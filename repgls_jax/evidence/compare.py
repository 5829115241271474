"""Two evidence files of the same studies, finding by finding: where two labellers agree, and where they do not.

  kappa = (po - pe) / (1 - pe), po = sum_i d_ii, pe = sum_i r_i c_i            (Cohen 1960)

with d the shares of the 4 x 4 table of states, r and c its margins. Its standard error is by the delta method on the
influence of each study, which for one finding is the formula of Fleiss, Cohen and Everitt (1969); pooled over findings,
the influences of a study's findings are added first, since they are not independent.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import stored

# Order of the confusion's rows (first file) and columns (second file).
STATES = (findings_lib.NOT_MENTIONED, findings_lib.NEGATIVE, findings_lib.UNCERTAIN, findings_lib.POSITIVE)
NAMES = tuple(findings_lib.STATES[state] for state in STATES)
_UNCERTAIN = STATES.index(findings_lib.UNCERTAIN)
_COLUMNS = ["study_id", "finding", "state", "p", "cue", "labeller", "version"]
_Z = 1.959964  # 95 %


@dataclasses.dataclass(frozen=True)
class Side:
    """One evidence file: its rows (the columns study_id, finding, state, p, cue), its findings, and who wrote it."""

    table: pa.Table
    vocabulary: findings_lib.Vocabulary
    labellers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two files on one grid of n studies and c findings.

    Attributes:
      study_ids: n ids, sorted.
      findings: c names that both vocabularies have, in the first's order.
      state: int8 [2, n, c], indices into :data:`STATES`.
      p: float32 [2, n, c], NaN where not mentioned.
      cue: int32 [2, n, c], indices into ``cues``; 0 ("") where there is none.
      cues: ids.
      left_out: (first, second), studies of one file that the other did not read.
      absent: (first, second), studies that are compared though the file has no row of them.
    """

    study_ids: pa.Array
    findings: tuple[str, ...]
    state: np.ndarray
    p: np.ndarray
    cue: np.ndarray
    cues: tuple[str, ...]
    left_out: tuple[int, int]
    absent: tuple[int, int]


def load(path: pathlib.Path) -> Side:
    """Reads an evidence file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no evidence file of this version, or damaged.
    """
    table, vocabulary = stored.read(path, _COLUMNS)
    names = table.select(["labeller", "version"]).group_by(["labeller", "version"]).aggregate([]).to_pylist()
    labellers = tuple(sorted(f"{row['labeller']} {row['version']}" for row in names))
    return Side(table.select(_COLUMNS[:5]), vocabulary, labellers)


def align(first: Side, second: Side) -> Pair:
    """Puts two files on one grid.

    The studies of either file are compared. A file whose vocabulary holds "No Finding" has a row for every study with
    text, so a study that it lacks was not read, and is left out and counted. A file without cannot tell such a study
    from one that mentions nothing: the study is compared, and its findings count as not mentioned.

    Raises:
      ValueError: the vocabularies have no finding in common, or no study is left.
    """
    sides = (first, second)
    names = tuple(f for f in first.vocabulary.findings if f in second.vocabulary.findings)
    if not names:
        raise ValueError(
            f"the files share no finding: the first holds {', '.join(first.vocabulary.findings)}, "
            f"the second {', '.join(second.vocabulary.findings)}"
        )
    seen = [pc.unique(side.table["study_id"]) for side in sides]
    ids = pc.unique(pa.chunked_array([seen[0], seen[1]]))
    has = [pc.is_in(ids, s).to_numpy(zero_copy_only=False) for s in seen]
    kept = np.ones(len(ids), bool)
    for side, there in zip(sides, has, strict=True):
        if findings_lib.NO_FINDING in side.vocabulary.findings:
            kept &= there
    if not kept.any():
        raise ValueError("no study was read for both files; compare files of the same reports")
    left_out = (int((has[0] & ~kept).sum()), int((has[1] & ~kept).sum()))
    absent = (int((kept & ~has[0]).sum()), int((kept & ~has[1]).sum()))
    ids = ids.filter(pa.array(kept))
    ids = ids.take(pc.sort_indices(ids))
    used = pc.unique(pa.chunked_array([c for side in sides for c in side.table["cue"].chunks], pa.string()))
    cues = ("", *(c for c in used.to_pylist() if c))
    dense = [_dense(side.table, ids, names, cues) for side in sides]
    state, p, cue = (np.stack(parts) for parts in zip(*dense, strict=True))
    return Pair(ids, names, state, p, cue, cues, left_out, absent)


def _dense(
    table: pa.Table, ids: pa.Array, names: Sequence[str], cues: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State index, p and cue index [n, c] of one file's rows."""

    row, col = stored.places(table["study_id"], ids), stored.places(table["finding"], pa.array(names))
    known = (row >= 0) & (col >= 0)
    at = row[known].astype(np.int64) * len(names) + col[known]
    size = len(ids) * len(names)
    state, p, cue = np.zeros(size, np.int8), np.full(size, np.nan, np.float32), np.zeros(size, np.int32)
    state[at] = stored.places(table["state"], pa.array(STATES, pa.int8()))[known]
    p[at] = table["p"].to_numpy()[known]
    cue[at] = stored.places(table["cue"], pa.array(cues))[known]
    shape = (len(ids), len(names))
    return state.reshape(shape), p.reshape(shape), cue.reshape(shape)


def kappa(counts: np.ndarray) -> tuple[float, np.ndarray]:
    """Cohen's kappa of a table [k, k] of counts, and the influence [k, k] on it of one more entry in each cell.

    NaN where both sides say one and the same thing of every study.
    """
    d = counts / counts.sum()
    r, c = d.sum(axis=1), d.sum(axis=0)
    po, pe = float(np.trace(d)), float(r @ c)
    if 1 - pe < 1e-12:
        return float("nan"), np.zeros_like(d)
    slope = (np.eye(len(d)) * (1 - pe) - (c[:, None] + r[None, :]) * (1 - po)) / (1 - pe) ** 2
    return (po - pe) / (1 - pe), slope - (d * slope).sum()


def compare(pair: Pair) -> dict[str, Any]:
    """Agreement per finding, and pooled over the findings other than "No Finding", which follows from them.

    Returns:
      {"studies": n, "left_out", "absent": [2], "states": NAMES, "findings": {name: entry}, "pooled": entry}. An entry
      holds ``n``, ``confusion`` [4][4] counts (rows: first file), ``agreement``, ``kappa`` with ``kappa_low`` and
      ``kappa_high`` (95 %), and for "mentioned" and "uncertain" how often only the first and only the second file says
      so, with the exact p-value of McNemar's test (None when pooled); ``both`` and ``hedged``: ``n``,
      ``mean_difference`` (|p - p'|) and Spearman's ``rank_correlation`` of p where both mention the finding, and where
      one of them hedges as well. None stands for what is not defined.
    """
    entries = {name: _entry(pair, [j]) for j, name in enumerate(pair.findings)}
    pooled = [j for j, name in enumerate(pair.findings) if name != findings_lib.NO_FINDING]
    return {
        "studies": len(pair.study_ids),
        "left_out": list(pair.left_out),
        "absent": list(pair.absent),
        "states": list(NAMES),
        "findings": entries,
        "pooled": _entry(pair, pooled or [0]),
    }


def _entry(pair: Pair, columns: list[int]) -> dict[str, Any]:
    a, b = pair.state[0][:, columns], pair.state[1][:, columns]
    cell = 4 * a.astype(np.int64) + b
    counts = np.bincount(cell.ravel(), minlength=16).reshape(4, 4)
    value, influence = kappa(counts)
    spread = influence.ravel()[cell].sum(axis=1)
    error = _Z * float(np.sqrt((spread**2).sum())) / cell.size
    entry: dict[str, Any] = {"n": int(cell.size), "confusion": counts.tolist()}
    entry["agreement"] = float(np.trace(counts) / cell.size)
    defined = np.isfinite(value)
    entry["kappa"] = float(value) if defined else None
    entry["kappa_low"] = max(-1.0, value - error) if defined else None
    entry["kappa_high"] = min(1.0, value + error) if defined else None
    mentioned = np.arange(4) > 0
    for name, says in (("mentioned", mentioned), ("uncertain", np.arange(4) == _UNCERTAIN)):
        only = int(counts[says][:, ~says].sum()), int(counts[~says][:, says].sum())
        single = len(columns) == 1 and sum(only) > 0
        chance = float(stats.binomtest(only[0], sum(only)).pvalue) if single else None
        entry[name] = {"only_first": only[0], "only_second": only[1], "p_value": chance}
    both = (a > 0) & (b > 0)
    hedged = both & ((a == _UNCERTAIN) | (b == _UNCERTAIN))
    for name, where in (("both", both), ("hedged", hedged)):
        entry[name] = _certainties(pair.p[0][:, columns][where], pair.p[1][:, columns][where])
    return entry


def _certainties(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Mean absolute difference and rank correlation of two arrays [m] of p."""
    n = len(first)
    gap = float(np.abs(first.astype(np.float64) - second).mean()) if n else None
    ranked = n > 2 and np.ptp(first) > 0 and np.ptp(second) > 0
    rank = float(stats.spearmanr(first, second).statistic) if ranked else None
    return {"n": n, "mean_difference": gap, "rank_correlation": rank}


def differences(pair: Pair) -> pa.Table:
    """Every (study, finding) whose state or p differs, the largest difference of p first.

    For this order a finding that is not mentioned counts as p = 0; its own p is left empty. Ties are in the order of
    study and finding. Columns: study_id, finding, difference, and of each side state, p and cue. No text.
    """
    p = np.nan_to_num(pair.p)
    gap = np.abs(p[0] - p[1])
    row, col = np.nonzero((pair.state[0] != pair.state[1]) | (gap > 1e-6))
    size = gap[row, col]
    order = np.argsort(-size, kind="stable")
    row, col = row[order], col[order]

    def named(values: Sequence[str], index: np.ndarray) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(values)).dictionary_decode()

    columns: dict[str, Any] = {"study_id": pair.study_ids.take(pa.array(row)), "finding": named(pair.findings, col)}
    columns["difference"] = np.round(size[order].astype(np.float64), 4)
    for i, side in enumerate(("first", "second")):
        own = np.round(pair.p[i][row, col].astype(np.float64), 4)
        columns[f"{side}_state"] = named(NAMES, pair.state[i][row, col])
        columns[f"{side}_p"] = pa.array(own, from_pandas=True)
        columns[f"{side}_cue"] = named(pair.cues, pair.cue[i][row, col])
    return pa.table(columns)
