"""Statistics of a corpus: exact counts against plain Python, intervals against the formula, and the files written."""

import collections
import json
import math
import pathlib
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repgls_jax import sidecars
from repgls_jax.evidence import describe, describe_page
from repgls_jax.findings import CHEXPERT, NO_FINDING, UNION

ROOT = pathlib.Path(__file__).parents[1]
CANARY = "zebrafinch"
STATES = {1: "positive", -1: "uncertain", 0: "negative"}
SPARE = {"field": "findings", "labeller": "lexicon", "version": "1", "prompt_hash": "", "report_hash": "0"}
PLACES = ("start", "end", "mention", "mention_end", "cue_start", "cue_end")


def random_rows(seed, studies=150, vocabulary=UNION):
    """Rows of a random corpus in random order; many studies lack many findings."""
    draw = random.Random(seed)
    rows = []
    for i in range(studies):
        for finding in vocabulary.findings:
            if draw.random() < 0.3:
                state = draw.choice([1, 0, 0, -1])
                p = {1: draw.choice([1.0, 0.9]), 0: draw.choice([0.0, 0.05, 0.1])}.get(state, draw.choice([0.3, 0.7]))
                cue = "rule:no-finding" if finding == NO_FINDING else draw.choice(["", "a:b", "c:d", "e:f"])
                section = draw.choice(["findings", "impression"])
                rows.append((f"{CANARY}{i}", finding, state, p, cue, section))
    draw.shuffle(rows)
    return rows


def write(path, rows, vocabulary=UNION):
    columns = dict(zip(("study_id", "finding", "state", "p", "cue", "section"), zip(*rows, strict=True), strict=True))
    columns = {name: list(values) for name, values in columns.items()}
    columns |= {name: [0] * len(rows) for name in PLACES} | {name: [value] * len(rows) for name, value in SPARE.items()}
    sidecars.write(path, columns, sidecars.EVIDENCE, vocabulary)
    return path


def wilson(k, n, z=1.959963984540054):
    """Wilson (1927), the interval in closed form."""
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return centre - half, centre + half


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_plain_python(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(describe, "_BLOCK", 17)
    rows = random_rows(seed)
    found = describe.describe(write(tmp_path / "e.parquet", rows), studies=200)
    ids = {row[0] for row in rows}
    assert found["rows"] == len(rows) and found["studies"]["with_rows"] == len(ids)
    named = {row[0] for row in rows if row[1] != NO_FINDING}
    assert found["studies"]["without_rows"] == 200 - len(ids)
    assert found["studies"]["without_finding"] == 200 - len(named)
    states = collections.Counter((row[1], STATES[row[2]]) for row in rows)
    for finding, entry in found["findings"].items():
        mine = [row for row in rows if row[1] == finding]
        for state in STATES.values():
            assert entry[state] == states[finding, state]
        assert entry["not mentioned"] == 200 - len(mine)
        claims, hedged = entry["positive"] + entry["uncertain"], entry["hedged"]
        assert (hedged["k"], hedged["n"]) == (entry["uncertain"], claims)
        assert (hedged["low"], hedged["high"]) == pytest.approx(wilson(entry["uncertain"], claims))
        assert entry["prevalence"]["share"] == entry["positive"] / (entry["positive"] + entry["negative"])
        assert entry["negatives_per_positive"] == entry["negative"] / entry["positive"]
        bins = collections.Counter(min(int(row[3] * 20 + 1e-9), 19) for row in mine)
        assert entry["p_histogram"] == [bins[k] for k in range(20)]
        assert entry["p_is_0"] == sum(row[3] == 0 for row in mine) and entry["p_is_1"] == sum(
            row[3] == 1 for row in mine
        )
        assert entry["sections"] == {s: sum(row[5] == s for row in mine) for s in found["sections"]}
    said = [row for row in rows if row[1] != NO_FINDING]
    assert found["uncertain"] == sum(row[2] == -1 for row in said)
    for section, entry in found["sections"].items():
        assert entry == {name: sum(row[5] == section and row[2] == s for row in said) for s, name in STATES.items()}


@pytest.mark.parametrize("seed", range(2))
def test_cues_and_company_are_those_of_plain_python(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(describe, "_BLOCK", 23)
    rows = random_rows(seed)
    found = describe.describe(write(tmp_path / "e.parquet", rows))
    said = [row for row in rows if not row[4].startswith("rule:")]
    counts = collections.Counter(row[4] for row in said)
    assert {cue["cue"]: cue["n"] for cue in found["cues"]["listed"]} == counts
    assert [cue["n"] for cue in found["cues"]["listed"]] == sorted(counts.values(), reverse=True)
    for cue in found["cues"]["listed"]:
        mine = [row for row in said if row[4] == cue["cue"]]
        assert {name: cue[name] for name in STATES.values()} == {
            n: sum(r[2] == s for r in mine) for s, n in STATES.items()
        }
        assert cue["p_mean"] == pytest.approx(np.mean([row[3] for row in mine]))
        top = collections.Counter(row[1] for row in mine)
        assert list(cue["findings"].values()) == [n for _, n in top.most_common(3)]
        assert all(top[name] == n for name, n in cue["findings"].items())
    positive = collections.defaultdict(set)
    for row in rows:
        if row[2] == 1:
            positive[row[1]].add(row[0])
    together, total = found["co_occurrence"], len({row[0] for row in rows})
    assert NO_FINDING not in together["findings"]
    for i, a in enumerate(together["findings"]):
        for j, b in enumerate(together["findings"]):
            both = len(positive[a] & positive[b])
            assert together["both"][i][j] == both
            assert together["column_given_row"][i][j] == pytest.approx(both / len(positive[a]))
            lift = both * total / len(positive[a]) / len(positive[b])
            assert together["lift"][i][j] == pytest.approx(lift)


def test_the_page_shows_every_mention_once(tmp_path):
    rows = random_rows(3)
    found = describe.describe(write(tmp_path / "e.parquet", rows))
    for name, entry in found["findings"].items():
        ps = [row[3] for row in rows if row[1] == name]
        inner = [sum(k / 10 <= round(p, 3) < (k + 1) / 10 for p in ps if 0 < p < 1) for k in range(10)]
        assert describe_page._bands(entry) == [ps.count(0), *inner, ps.count(1)]
    rows = [(f"{cue}{i}", "Edema", -1 if i < hedged else 1, 0.5, cue, "findings") for cue, hedged, n in (("a", 3, 5),
            ("b", 2, 5), ("c", 1, 2), ("d", 0, 4), ("e", 4, 4)) for i in range(n)]  # fmt: skip
    tables = describe_page._cue_tables(describe.describe(write(tmp_path / "e.parquet", rows)))
    assert [{row["cue"] for row in table["rows"]} for table in tables] == [{"a", "e"}, {"b", "c", "d"}]


def test_rare_cues_are_counted_together(tmp_path, monkeypatch):
    monkeypatch.setattr(describe, "MOST_CUES", 2)
    rows = [(f"s{i}", "Edema", 1, 1.0, "abbbcccdd"[i], "findings") for i in range(9)]
    cues = describe.describe(write(tmp_path / "e.parquet", rows))["cues"]
    assert [(cue["cue"], cue["n"]) for cue in cues["listed"]] == [("b", 3), ("c", 3)]
    assert (cues["distinct"], cues["rows"], cues["rest"]) == (4, 9, 3)


def test_float32_certainties_fall_into_the_bin_they_name():
    p = np.arange(0, 101, dtype=np.float64).astype(np.float32) / np.float32(100)
    assert describe.bins(p).tolist() == [min(i // 5, 19) for i in range(101)]


def test_what_cannot_be_true_is_refused(tmp_path):
    rows = random_rows(0, 20, CHEXPERT)
    path = write(tmp_path / "e.parquet", rows, CHEXPERT)
    with pytest.raises(ValueError, match="studies is 3"):
        describe.describe(path, studies=3)
    with pytest.raises(ValueError, match="more than once"):
        describe.describe(write(tmp_path / "twice.parquet", [*rows, rows[0]], CHEXPERT))
    with pytest.raises(ValueError, match="p beside"):
        describe.describe(write(tmp_path / "p.parquet", [(*rows[0][:3], 1.5, *rows[0][4:])], CHEXPERT))
    with pytest.raises(ValueError, match="p beside"):
        describe.describe(write(tmp_path / "nan.parquet", [(*rows[0][:3], math.nan, *rows[0][4:])], CHEXPERT))
    with pytest.raises(ValueError, match="'Gout'"):
        describe.describe(write(tmp_path / "f.parquet", [("s", "Gout", 1, 1.0, "", "findings")], CHEXPERT))
    with pytest.raises(ValueError, match="rows without cue"):
        describe.describe(write(tmp_path / "n.parquet", [("s", "Edema", 1, 1.0, None, "findings")], CHEXPERT))
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="has 0 rows"):
        describe.describe(tmp_path / "empty.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="lacks the columns"):
        describe.describe(tmp_path / "other.parquet")


def test_one_row_and_no_positive_still_give_a_page(tmp_path):
    for rows in ([("s", "Edema", 0, 0.0, "", "findings")], [("s", NO_FINDING, 1, 1.0, "rule:no-finding", "findings")]):
        statistics = describe.describe(write(tmp_path / "e.parquet", rows))
        assert "n/a" in describe_page.render(statistics) and "n/a" in describe_page.text(statistics)
        json.dumps(statistics, allow_nan=False)


def test_percentages_never_round_some_to_none_or_all():
    shown = {0: "0", 0.0004: "<0.1", 0.012: "1.2", 0.12: "12", 0.9996: "99.9", 0.998: "99.8", 1: "100"}
    assert {value: describe_page.short(value) for value in shown} == shown


@pytest.mark.slow
def test_the_command_writes_numbers_and_no_identifier(tmp_path):
    rows = [*random_rows(1), ("last", "Hernia", 1, 1.0, "<img src=x>", "<b>findings")]
    path = write(tmp_path / "e.parquet", rows)
    script = str(ROOT / "data_prep" / "describe_evidence.py")
    arguments = [sys.executable, script, f"--evidence={path}", f"--output={tmp_path / 'out'}", "--studies=200"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    written = {file.name: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert sorted(written) == ["statistics.html", "statistics.json"]
    assert CANARY not in done.stdout + done.stderr + "".join(written.values())
    page = written["statistics.html"]
    assert "<img" not in page and "<b>" not in page and "&lt;img src=x&gt;" in page
    assert "<script" not in page and "http:" not in page and "https:" not in page
    statistics = json.loads(written["statistics.json"])
    assert statistics == json.loads(json.dumps(describe.describe(path, studies=200)))
    edema = statistics["findings"]["Edema"]
    line = next(line for line in done.stdout.splitlines() if line.startswith("Edema"))
    assert line.split()[1:4] == [str(edema[name]) for name in STATES.values()]
