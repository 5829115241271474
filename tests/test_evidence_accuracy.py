"""Scores of evidence against labels, with scikit-learn as the oracle."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from repgls_jax import sidecars
from repgls_jax.evidence import accuracy
from repgls_jax.findings import NIH, state_of

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def files(tmp_path):
    """(evidence, labels, p [n, c] with NaN where not mentioned, labels [n, c] with -1 where unknown)."""
    rng = np.random.default_rng(3)
    n, c = 300, len(NIH)
    p = np.where(rng.random((n, c)) < 0.4, rng.choice([0, 0.05, 0.3, 0.5, 0.8, 0.9, 1], (n, c)), np.nan)
    p[:, 0] = np.where(np.isnan(p[:, 0]), 0.2, p[:, 0])  # every study is in the file
    truth = rng.choice([0, 1, -1], (n, c), p=[0.6, 0.3, 0.1])
    truth[truth == 0] = np.where(rng.random((truth == 0).sum()) < 0.1, 1, 0)
    rows = [(f"s{i}", NIH.findings[j], p[i, j]) for i, j in np.argwhere(~np.isnan(p))]
    columns = dict(zip(("study_id", "finding", "p"), zip(*rows, strict=True), strict=True))
    columns["state"] = [state_of(value) for value in columns["p"]]
    for field in sidecars.EVIDENCE:
        columns.setdefault(field.name, [0 if str(field.type) == "int32" else ""] * len(rows))
    columns = {name: columns[name] for name in sidecars.EVIDENCE.names}
    sidecars.write(tmp_path / "e.parquet", columns, sidecars.EVIDENCE, NIH)
    lines = [",".join(("study_id", *NIH.findings))]
    lines += [",".join([f"s{i}", *("" if v < 0 else str(v) for v in truth[i])]) for i in range(n)] + [
        "absent" + ",1" * c
    ]
    (tmp_path / "l.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "e.parquet", tmp_path / "l.csv", p, truth


def test_scores_are_those_of_scikit_learn(files):
    evidence, labels, p, truth = files
    counts = accuracy.count(evidence, labels)
    assert counts.findings == NIH.findings
    assert counts.unread == 1
    for reading, said in enumerate((p >= 0.9, p >= 0.5)):
        totals = [x[reading] for x in (counts.hits, counts.false, counts.missed)]
        mine = accuracy.rates(*(x.sum(axis=0) for x in totals))
        for j in range(len(NIH)):
            known = truth[:, j] >= 0
            oracle = precision_recall_fscore_support(truth[known, j], said[known, j], average="binary")
            np.testing.assert_allclose(mine[:, j], oracle[:3])
        known = truth >= 0
        oracle = precision_recall_fscore_support(truth[known], said[known], average="binary")
        np.testing.assert_allclose(accuracy.rates(*(x.sum() for x in totals)), oracle[:3])


def test_the_interval_is_that_of_resampled_studies(files):
    evidence, labels, _, _ = files
    counts = accuracy.count(evidence, labels)
    low, high = accuracy.interval(counts, 2000, 0)
    per_study = [x[1].sum(axis=1) for x in (counts.hits, counts.false, counts.missed)]
    rng = np.random.default_rng(9)
    draws = [accuracy.rates(*(x[i].sum() for x in per_study)) for i in rng.integers(0, 300, (2000, 300))]
    np.testing.assert_allclose(np.stack([low, high])[:, :, 1], np.quantile(draws, (0.025, 0.975), axis=0), atol=0.01)


def test_the_script_prints_every_finding(files):
    evidence, labels, _, _ = files
    command = [sys.executable, "data_prep/score_evidence.py", f"--evidence={evidence}", f"--labels={labels}"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [name for name in (*NIH.findings, "All") if not any(s.startswith(name) for s in done.stdout.split("\n"))]
    labels.write_text("study_id,Mass\nz,1\n")
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "share no study" in done.stderr
