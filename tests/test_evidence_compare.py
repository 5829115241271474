import csv
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.evidence import compare as compare_lib
from repgls_jax.evidence import compare_page

UNION, NIH = findings_lib.UNION, findings_lib.NIH
ROOT = pathlib.Path(__file__).parent.parent
P_OF = {1: (1.0, 0.95), 0: (0.0, 0.05), -1: (0.3, 0.5, 0.8)}

Rows = dict[tuple[str, str], tuple[int, float, str]]  # (study, finding) -> state, p, cue


def write(path, rows: Rows, vocabulary=UNION, keys=None):
    columns = {name: [] for name in sidecars.EVIDENCE.names}
    for study, finding in keys or rows:
        state, p, cue = rows[study, finding]
        known = {"study_id": study, "finding": finding, "state": state, "p": p, "cue": cue, "labeller": "test"}
        for name in columns:
            text = sidecars.EVIDENCE.field(name).type == "string"
            columns[name].append(known.get(name, "" if text else 0))
    sidecars.write(path, columns, sidecars.EVIDENCE, vocabulary)
    return path


def invent(seed, studies=120, vocabulary=UNION, like: Rows | None = None) -> Rows:
    """Random rows; with ``like``, a noisy copy of it. "No Finding" is there for every study."""
    rng = np.random.default_rng(seed)
    rows: Rows = {}
    for i in range(studies):
        for finding in vocabulary.findings:
            key = f"study{i:04d}", finding
            state = int(rng.choice([-2, -1, 0, 1], p=[0.5, 0.1, 0.25, 0.15]))
            if like is not None and rng.random() < 0.8:
                state = like[key][0] if key in like else -2
            if finding == findings_lib.NO_FINDING:
                state = max(state, -1)
            if state > -2:
                rows[key] = state, float(rng.choice(P_OF[state])), f"cue:{rng.integers(4)}" if state == -1 else ""
    return rows


def pair_of(tmp_path, a: Rows, b: Rows, va=UNION, vb=UNION):
    sides = (write(tmp_path / "a.parquet", a, va), write(tmp_path / "b.parquet", b, vb))
    return compare_lib.align(*(compare_lib.load(path) for path in sides))


def codes(rows: Rows, studies, findings):
    return [compare_lib.STATES.index(rows[s, f][0]) if (s, f) in rows else 0 for s in studies for f in findings]


def test_tables_agree_with_scikit_learn_and_a_plain_count(tmp_path):
    a = invent(0)
    b = invent(1, like=a)
    result = compare_lib.compare(pair_of(tmp_path, a, b))
    studies = sorted({s for s, _ in a})
    pooled = [f for f in UNION.findings if f != findings_lib.NO_FINDING]
    for entry, findings in [*((result["findings"][f], [f]) for f in UNION.findings), (result["pooled"], pooled)]:
        x, y = codes(a, studies, findings), codes(b, studies, findings)
        np.testing.assert_array_equal(entry["confusion"], metrics.confusion_matrix(x, y, labels=range(4)))
        assert entry["kappa"] == pytest.approx(metrics.cohen_kappa_score(x, y), abs=1e-12)
        assert entry["agreement"] == pytest.approx(metrics.accuracy_score(x, y), abs=1e-12)
        keys = [(s, f) for s in studies for f in findings if (s, f) in a and (s, f) in b]
        for name, kept in (("both", keys), ("hedged", [k for k in keys if -1 in (a[k][0], b[k][0])])):
            p, q = [a[k][1] for k in kept], [b[k][1] for k in kept]
            assert entry[name]["n"] == len(kept)
            assert entry[name]["mean_difference"] == pytest.approx(np.mean(np.abs(np.subtract(p, q))), abs=1e-6)
            rank = float(stats.spearmanr(np.float32(p), np.float32(q)).statistic)
            assert entry[name]["rank_correlation"] == pytest.approx(rank, abs=1e-9)
        only = sum(u > 0 and v == 0 for u, v in zip(x, y, strict=True))
        assert entry["mentioned"]["only_first"] == only


def test_the_interval_of_one_finding_is_that_of_fleiss_cohen_and_everitt(tmp_path):
    a = invent(2)
    pair = pair_of(tmp_path, a, invent(3, like=a))
    j = 5
    entry = compare_lib.compare(pair)["findings"][UNION.findings[j]]
    d = np.array(entry["confusion"]) / entry["n"]
    r, c, k = d.sum(1), d.sum(0), entry["kappa"]
    pe = r @ c
    own = sum(d[i, i] * (1 - (r[i] + c[i]) * (1 - k)) ** 2 for i in range(4))
    cross = (1 - k) ** 2 * sum(d[i, m] * (c[i] + r[m]) ** 2 for i in range(4) for m in range(4) if i != m)
    variance = (own + cross - (k - pe * (1 - k)) ** 2) / ((1 - pe) ** 2 * entry["n"])
    assert entry["kappa_high"] - k == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)


def test_the_pooled_interval_allows_for_findings_of_one_study_going_together(tmp_path):
    # In half the studies the second file says nothing at all: the study is the unit that varies.
    a = invent(4, studies=300)
    b = {k: v for k, v in a.items() if int(k[0][5:]) % 2 or k[1] == findings_lib.NO_FINDING}
    pair = pair_of(tmp_path, a, b)
    entry = compare_lib.compare(pair)["pooled"]
    rng = np.random.default_rng(0)
    x, y = pair.state[:, :, 1:].astype(int)
    drawn = []
    for _ in range(400):
        rows = rng.integers(0, len(x), len(x))
        drawn.append(metrics.cohen_kappa_score(x[rows].ravel(), y[rows].ravel()))
    width = entry["kappa_high"] - entry["kappa_low"]
    assert width == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.15)
    naive = 2 * 1.96 * np.sqrt(entry["agreement"] * (1 - entry["agreement"]) / x.size) / (1 - entry["agreement"] / 2)
    assert width > 1.5 * naive


def test_a_study_that_a_file_never_read_is_left_out_if_the_file_can_tell(tmp_path):
    a, b = invent(5, studies=20), invent(6, studies=25)
    pair = pair_of(tmp_path, a, b)
    assert (len(pair.study_ids), pair.left_out, pair.absent) == (20, (0, 5), (0, 0))
    # Without "No Finding" a study without rows may have been read: it counts as mentioning nothing.
    quiet = {k: v for k, v in invent(7, 20, NIH).items() if k[0] != "study0003"}
    pair = pair_of(tmp_path, quiet, invent(8, 20, NIH), NIH, NIH)
    assert (len(pair.study_ids), pair.left_out, pair.absent) == (20, (0, 0), (1, 0))
    assert not pair.state[0, 3].any() and np.isnan(pair.p[0, 3]).all()
    # Of a file with and one without, only the first can lack a study for certain.
    pair = pair_of(tmp_path, a, invent(9, 25, NIH), UNION, NIH)
    assert (len(pair.study_ids), pair.left_out) == (20, (0, 5))
    assert pair.findings == tuple(f for f in UNION.findings if f in NIH.findings)


def test_differences_are_complete_and_the_largest_stand_first(tmp_path):
    a = invent(10, studies=30)
    b = invent(11, studies=30, like=a)
    rows = compare_lib.differences(pair_of(tmp_path, a, b)).to_pylist()
    keys = {(s, f) for s, _ in a for f in UNION.findings}
    expected = {k for k in keys if a.get(k, (-2, 0.0))[:2] != b.get(k, (-2, 0.0))[:2]}
    assert {(r["study_id"], r["finding"]) for r in rows} == expected and len(rows) == len(expected)
    sizes = [r["difference"] for r in rows]
    assert sizes == sorted(sizes, reverse=True)
    for r in rows:
        for side, source in (("first", a), ("second", b)):
            state, p, cue = source.get((r["study_id"], r["finding"]), (-2, None, ""))
            assert r[f"{side}_state"] == findings_lib.STATES[state] and r[f"{side}_cue"] == cue
            assert r[f"{side}_p"] == (None if p is None else pytest.approx(p, abs=1e-4))


def test_a_file_agrees_with_itself_and_the_order_of_its_rows_does_not_matter(tmp_path):
    a = invent(12, studies=15)
    first = write(tmp_path / "a.parquet", a)
    second = write(tmp_path / "b.parquet", a, keys=sorted(a, key=lambda k: k[::-1], reverse=True))
    pair = compare_lib.align(compare_lib.load(first), compare_lib.load(second))
    result = compare_lib.compare(pair)
    assert compare_lib.differences(pair).num_rows == 0
    assert [result["pooled"][k] for k in ("agreement", "kappa", "kappa_low", "kappa_high")] == pytest.approx([1] * 4)


def test_what_is_not_defined_is_none_and_the_files_stay_valid(tmp_path):
    one = {(f"s{i}", findings_lib.NO_FINDING): (1, 1.0, "") for i in range(3)}
    paths = write(tmp_path / "a.parquet", one), write(tmp_path / "b.parquet", one)
    result = compare_page.run(*paths, tmp_path / "out")
    assert result["findings"]["Edema"]["kappa"] is None
    assert result["findings"]["Edema"]["both"] == {"n": 0, "mean_difference": None, "rank_correlation": None}
    assert json.loads((tmp_path / "out/comparison.json").read_text())["studies"] == 3
    assert "n/a" in compare_page.text(result)


def test_files_that_cannot_be_compared_are_refused(tmp_path):
    a = invent(13, studies=3)
    other = {(f"x{s}", f): v for (s, f), v in a.items()}
    with pytest.raises(ValueError, match="no study"):
        pair_of(tmp_path, a, other)
    twice = [*a, next(iter(a))]
    paths = write(tmp_path / "a.parquet", a, keys=twice), write(tmp_path / "b.parquet", a)
    with pytest.raises(ValueError, match=r"a\.parquet holds a"):
        compare_lib.align(*(compare_lib.load(path) for path in paths))
    with pytest.raises(FileNotFoundError, match="none"):
        compare_lib.load(tmp_path / "none.parquet")


def test_the_command_writes_its_files_and_the_page_names_no_study(tmp_path):
    a = {(s.replace("study", "canary"), f): v for (s, f), v in invent(14, studies=10).items()}
    b = {(s.replace("study", "canary"), f): v for (s, f), v in invent(15, studies=10).items()}
    paths = [str(write(tmp_path / f"{n}.parquet", rows)) for n, rows in (("a", a), ("b", b))]
    script = ROOT / "data_prep/compare_evidence.py"
    command = [sys.executable, script, f"--first={paths[0]}", f"--second={paths[1]}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "All but No Finding" in done.stdout and "canary" not in done.stdout
    page = (tmp_path / "out/comparison.html").read_text()
    assert "canary" not in page and "<script" not in page and page.count("<svg") == 1 + len(UNION)
    with (tmp_path / "out/differences.csv").open() as file:
        assert next(csv.reader(file))[:3] == ["study_id", "finding", "difference"]
    failed = subprocess.run([*command[:2], "--first=none", *command[3:]], check=False, capture_output=True, text=True)
    assert failed.returncode == 1 and "compare_evidence: evidence file none" in failed.stderr
    failed = subprocess.run([*command[:-1], f"--output={script}"], check=False, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("compare_evidence: ") and "exists" in failed.stderr
