"""Labels to calibrate on, from a site's own file; and the mentions of an evidence file that have one."""

import csv
import pathlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import calibrate, stored
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import override as override_lib

_VALUES = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": -1}
_SHOWN = 20  # faults that a message lists
MAX_FIELD = 100_000  # characters of one cell
_LEXICON = "+lexicon."  # what stands before the lexicon's digest in a version


def read(path: pathlib.Path) -> tuple[list[str], tuple[str, ...], np.ndarray, list[str]]:
    """Reads a label file: a CSV with study_id and a column for each finding.

    Values are 1 (present), 0 (absent) or blank (unknown). Columns are named by a finding's name or one of its aliases;
    others are passed over.

    Returns:
      (n study ids, c findings, int8 [n, c] in {1, 0, -1 for unknown}, names of the columns passed over).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: study_id or every finding is missing, a column or a study stands twice, a row is shorter or longer
        than the header, or a value is not one of the three; the message lists faults by line and column and holds no
        value.
    """
    if not path.exists():
        raise FileNotFoundError(f"labels {path} does not exist; give a CSV with study_id and a column for each finding")
    previous = csv.field_size_limit(MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)  # a quote that is never closed would swallow the rows behind it
            head = next(rows, [])
            at, others = _columns(head, path)
            ids, values, faults = [], [], []
            for row in rows:
                if not row:
                    continue
                if len(row) != len(head):
                    faults.append(f"line {rows.line_num}, {len(row)} cells under {len(head)} names")
                    continue
                ids.append(row[head.index("study_id")])
                values.append([_VALUES.get(row[i].strip(), -2) for i in at.values()])
                wrong = [name for name, value in zip(at, values[-1], strict=True) if value == -2]
                faults += [f"line {rows.line_num}, {name}" for name in wrong]
    except UnicodeDecodeError as error:
        raise ValueError(f"labels {path} is not UTF-8; save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"labels {path}: {error}; write it as plain CSV") from error
    finally:
        csv.field_size_limit(previous)
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError(
            f"labels {path} cannot be used at {'; '.join(faults[:_SHOWN])}{more}; "
            "write 1, 0 or blank under every finding, blank for what is unknown or uncertain"
        )
    if len(set(ids)) != len(ids) or not ids:
        raise ValueError(
            f"labels {path} has {len(ids)} rows of {len(set(ids))} studies; expected one row for each study"
        )
    return ids, tuple(at), np.array(values, np.int8), others


def _columns(head: list[str], path: pathlib.Path) -> tuple[dict[str, int], list[str]]:
    """Finding -> column, and the names of other columns."""
    at: dict[str, int] = {}
    others = []
    for i, name in enumerate(head):
        finding = findings_lib.canonical(name)
        if finding in at:
            raise ValueError(f"labels {path} has two columns for {finding}; keep one")
        if finding in findings_lib.UNION.findings:
            at[finding] = i
        elif name != "study_id":
            others.append(name)
    if head.count("study_id") != 1 or not at:
        raise ValueError(
            f"labels {path} has {len(head)} columns, {head.count('study_id')} of them study_id, {len(at)} of findings; "
            "expected one study_id and one for each finding, by name: rename the column of ids"
        )
    return at, others


def join(
    evidence: pathlib.Path, labels: pathlib.Path, lexicon: lexicon_lib.Lexicon
) -> tuple[calibrate.Mentions, dict[str, object]]:
    """The mentions of an evidence file whose finding has a label, "No Finding" (which follows from them) left out.

    Cues that are not in the lexicon (a model's levels) stand for the mean p of their mentions, all of which count as
    plain.

    Returns:
      The mentions, and counts: ``studies`` (read and labelled), ``labelled_only``, ``read_only``, ``mentions``,
      ``unlabelled`` (mentions without a label), ``silent`` and ``silent_present`` (labels of read studies whose report
      does not mention the finding, and how many are 1), and ``passed_over``, the columns that are no finding.

    Raises:
      FileNotFoundError, ValueError: a file is missing or malformed, the evidence is already calibrated or of another
        lexicon, or no mention has a label.
    """
    table, _ = stored.read(evidence, ["study_id", "finding", "state", "p", "cue", "version"])
    versions = pc.unique(table["version"]).to_pylist()
    if any(override_lib.VERSION in version for version in versions):
        raise ValueError(f"evidence {evidence} was made with an override; calibrate what the wording alone expresses")
    if any(_LEXICON in version and f"{_LEXICON}{lexicon.digest}" not in version for version in versions):
        raise ValueError(f"evidence {evidence} was made with another lexicon than this version's; extract again")
    ids, findings, values, passed_over = read(labels)
    columns = [j for j, name in enumerate(findings) if name != findings_lib.NO_FINDING]
    if not columns:
        raise ValueError(f"labels {labels} have only {findings_lib.NO_FINDING}, which no cue speaks of; name findings")
    findings, values = tuple(findings[j] for j in columns), values[:, columns]
    row = stored.places(table["study_id"], pa.array(ids, pa.string()))
    col = stored.places(table["finding"], pa.array(findings, pa.string()))
    known = (row >= 0) & (col >= 0)
    label = np.where(known, values[row, col], -1)
    use = label >= 0
    if not use.any():
        raise ValueError(f"no mention of {evidence} has a label in {labels}; expected files of the same studies")
    read_rows = np.unique(row[row >= 0])
    silent = values[read_rows].copy()
    silent[np.searchsorted(read_rows, row[known]), col[known]] = -1
    mentions = _mentions(table.filter(pa.array(use)), row[use], col[use], findings, label[use], lexicon)
    counted: dict[str, object] = {
        "studies": len(read_rows),
        "labelled_only": len(ids) - len(read_rows),
        "read_only": len(pc.unique(table["study_id"])) - len(read_rows),
        "mentions": int(use.sum()),
        "unlabelled": int((known & ~use).sum()),
        "silent": int((silent >= 0).sum()),
        "silent_present": int((silent == 1).sum()),
        "passed_over": passed_over,
    }
    return mentions, counted


def _mentions(
    table: pa.Table,
    study: np.ndarray,
    finding: np.ndarray,
    findings: tuple[str, ...],
    present: np.ndarray,
    lexicon: lexicon_lib.Lexicon,
) -> calibrate.Mentions:
    p = np.round(table["p"].to_numpy().astype(np.float64), 6)
    names = pc.unique(table["cue"])
    texts = names.to_pylist()
    code = stored.places(table["cue"], names)
    # Few distinct (cue, p): the rows of the table are named once for each.
    pairs, index = np.unique(np.stack([code.astype(np.float64), p]), axis=1, return_inverse=True)
    keys = [override_lib.key(texts[int(c)], value) for c, value in pairs.T.tolist()]
    own: dict[str, float] = override_lib.own_p(lexicon)
    first = len(own)
    ids = {name: i for i, name in enumerate(dict.fromkeys([*own, *keys]))}
    cue = np.array([ids[key] for key in keys])[index.ravel()]
    total, n = np.bincount(cue, p, minlength=len(ids)), np.bincount(cue, minlength=len(ids))
    stands_for = np.array([own.get(name, total[i] / max(n[i], 1)) for name, i in ids.items()])
    cues = calibrate.Cues(tuple(ids), tuple(_category(name, lexicon.cues) for name in ids), stands_for)
    plain = (np.abs(p - stands_for[cue]) < 1e-6) | (cue >= first)
    hedged = table["state"].to_numpy() == findings_lib.UNCERTAIN
    return calibrate.Mentions(cues, cue, finding, findings, study, p, plain, hedged, present.astype(np.int8))


def _category(name: str, cues: Mapping[str, lexicon_lib.Cue]) -> str:
    """A bare mention and a model's levels are categories of their own; the lexicon's cues know theirs."""
    if name in cues:
        return cues[name].category
    return name if name in override_lib.BARE_P else name.partition(":")[0]
