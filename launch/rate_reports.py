"""Rates for reports alone, without films: evidence, RGN, rates.parquet, how they are spread, and codes beside them.

    python launch/rate_reports.py --reports=NLMCXR_reports.tgz --findings=nih --output=rates
    python launch/rate_reports.py --reports=NLMCXR_reports.tgz --findings=nih --labels=codes.csv --output=rates

Reads the rule engine's evidence, trains the RGN of configs/rgn.py on four fifths of the reports (by a hash of the
study) and writes the rates of all. With --labels (study_id and a column of 0 and 1 for each finding) it tells how often
a reader's codes are on the label's side, by the rate's size. Writes rates.json and, with labels, rates.svg; neither
holds text. reports.parquet, beside them, is a copy of the reports: keep the folder where they are kept.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags, logging
from ml_collections import config_flags

from repgls_jax import findings as findings_lib
from repgls_jax import rates as rates_lib
from repgls_jax import sidecars
from repgls_jax.data import splits
from repgls_jax.evidence import labels as labels_lib
from repgls_jax.evidence import rate_check, reliability
from repgls_jax.extraction import run as extract_lib
from repgls_jax.extraction import source
from repgls_jax.reports import engine
from repgls_jax.train import rgn
from repgls_jax.train.journal import Journal

_CONFIG = config_flags.DEFINE_config_file("config", "configs/rgn.py", "whose section rgn is used", lock_config=False)
_REPORTS = flags.DEFINE_string("reports", None, "table, folder or archive of reports", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "folder to write to", required=True)
_FINDINGS = flags.DEFINE_enum("findings", "chexpert", sorted(findings_lib.VOCABULARIES), "vocabulary")
_LABELS = flags.DEFINE_string("labels", "", "CSV of a reader's codes")
_SHOWN = 12  # rows printed of a table


def main(argv: list[str]) -> None:
    """Runs extraction and RGN, and sums up."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    folder, journal = pathlib.Path(_OUTPUT.value), Journal()
    vocabulary = findings_lib.vocabulary(_FINDINGS.value)
    folder.mkdir(parents=True, exist_ok=True)
    evidence_path, reports_path = folder / "evidence.parquet", folder / "reports.parquet"
    try:
        extract_lib.extract(pathlib.Path(_REPORTS.value), evidence_path, vocabulary)
        _write_reports(pathlib.Path(_REPORTS.value), reports_path)
        summary = rgn.run(_CONFIG.value.rgn, vocabulary, reports_path, evidence_path, folder, journal, "")
        evidence = sidecars.read(evidence_path, sidecars.EVIDENCE, vocabulary)
        told = rate_check.joined(sidecars.read(folder / "rates.parquet", sidecars.RATES, vocabulary), evidence)
        result: dict[str, Any] = {
            "summary": summary,
            "findings": rate_check.described(told["finding"].tolist(), told["rate"]),
            "cues": rate_check.described([cue or "(bare)" for cue in told["cue"].tolist()], told["rate"]),
        }
        if _LABELS.value:
            result["labels"] = _beside(told, pathlib.Path(_LABELS.value), folder)
    except (ValueError, OSError) as error:
        sys.exit(f"rate_reports: {error}")
    (folder / "rates.json").write_text(json.dumps(result, indent=1))
    for name in ("findings", "cues"):
        print(f"{name:44} {'n':>6}  {'mean r':>7}  {'5 %':>6} {'50 %':>6} {'95 %':>6}")
        for row in result[name][:_SHOWN]:
            low, _, middle, _, high = row["quantiles"]
            print(f"{row['name']:44} {row['n']:6,}  {row['mean']:7.3f}  {low:6.3f} {middle:6.3f} {high:6.3f}")
    for name, rows in result.get("labels", {}).get("by_confidence", {}).items():
        print(f"{name}: |r|, n, confidence, codes that agree [95 % interval]")
        for row in rows:
            span = f"{row['low']:.2f}-{row['high']:.2f}"
            share = f"{row['agree']:.3f} [{row['from']:.3f}, {row['to']:.3f}]"
            print(f"  {span} {row['n']:6,}  {row['confidence']:.3f}  {share}")
    for name, score in result.get("labels", {}).get("scores", {}).items():
        print(f"{name}: " + "  ".join(f"{k} {v:.4f} [{a:.4f}, {b:.4f}]" for k, (v, a, b) in score.items()))


def _write_reports(path: pathlib.Path, target: pathlib.Path) -> None:
    """The reports as the RGN reads them, each with its split."""
    rows = list(source.Source(path).reports())
    split = splits.by_hash([row["study_id"] for row in rows], (0.8, 0.1, 0.1), 0)
    columns = {name: [row.get(name, "") for row in rows] for name in ("study_id", *engine.FIELDS)}
    columns["split"] = [split[row["study_id"]] for row in rows]
    pq.write_table(pa.table(columns), target)


def _beside(told: dict[str, np.ndarray], path: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """The rates, and the expert's, beside codes."""
    ids, names, values, _ = labels_lib.read(path)
    row_of, column_of = {s: i for i, s in enumerate(ids)}, {f: j for j, f in enumerate(names)}
    at = [(row_of.get(s, -1), column_of.get(f, -1)) for s, f in zip(told["study_id"], told["finding"], strict=True)]
    code = np.array([values[i, j] if i >= 0 and j >= 0 else -1 for i, j in at])
    use = code >= 0
    p, code = told["p"][use].astype(np.float64), code[use]
    y, expert = rates_lib.expert_rates(p)
    sets = {"expert": expert, "RGN": told["rate"][use]}
    rows = {name: rate_check.by_confidence(rate, code == y) for name, rate in sets.items()}
    hedged = (p > 0.1) & (p < 0.9)
    scores = {}
    for where, some in (("all mentions", np.ones(len(p), bool)), ("hedged mentions", hedged)):
        # Below 0 or above 1 a target is no probability: negative rates are read as certain.
        targets = [np.clip((1 - r[some]) * y[some] + r[some] / 2, 0, 1) for r in sets.values()]
        study = np.unique(told["study_id"][use][some], return_inverse=True)[1]
        found, brier, ece = reliability.score(targets, code[some], study)
        for name, one in zip(sets, found, strict=True):
            pairs = {"Brier": one.brier, "ECE": one.ece}
            scores[f"{name}, {where} ({int(some.sum())})"] = {k: (v.value, v.low, v.high) for k, v in pairs.items()}
        gaps = {"Brier": brier, "ECE": ece}
        scores[f"RGN less expert, {where}"] = {k: (v.value, v.low, v.high) for k, v in gaps.items()}
    (folder / "rates.svg").write_text(rate_check.figure(list(rows.items())))
    return {"mentions": int(use.sum()), "by_confidence": rows, "scores": scores}


if __name__ == "__main__":
    app.run(main)
