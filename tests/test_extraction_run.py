"""Extraction from files: the side-car, counts, quarantine, several processes, and no report text anywhere else."""

import csv
import pathlib
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.extraction import run as extract_lib
from repgls_jax.extraction import source

ROOT = pathlib.Path(__file__).parents[1]
CANARY = "zebrafinch"


def write_csv(path: pathlib.Path, rows: list[tuple[str, ...]], header=("study_id", "findings", "impression")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_csv_and_parquet_give_the_same_evidence(tmp_path):
    rows = [(f"s{i}", f"Possible effusion, case {i} of 20 cases.\nNo edema.", "Cardiomegaly.") for i in range(20)]
    write_csv(tmp_path / "r.csv", rows)
    columns = dict(zip(("study_id", "findings", "impression"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, "report": [None] * 20}), tmp_path / "r.parquet")
    tables = []
    for name in ("r.csv", "r.parquet"):
        counts = extract_lib.extract(tmp_path / name, tmp_path / f"{name}.out", findings_lib.UNION)
        assert counts == {
            "reports": 20,
            "rows": 80,
            "empty": 0,
            "truncated": 0,
            "quarantined": 0,
            "positive": 20,
            "negative": 40,
            "uncertain": 20,
        }
        tables.append(sidecars.read(tmp_path / f"{name}.out", sidecars.EVIDENCE, findings_lib.UNION))
    assert tables[0].equals(tables[1])
    row = next(r for r in tables[0].to_pylist() if r["finding"] == "Pleural Effusion")
    text = rows[0][1]
    assert text[row["start"] : row["end"]] == "Possible effusion, case 0 of 20 cases."
    assert text[row["mention"] :].startswith("effusion")
    assert (row["state"], row["cue"], row["section"], row["field"]) == (-1, "possible:possible", "findings", "findings")


def test_batches_and_workers_change_nothing(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "r.csv", [(f"s{i}", "No mass." if i % 3 else "Mass.", "") for i in range(50)])
    extract_lib.extract(path, tmp_path / "one", findings_lib.NIH)
    monkeypatch.setattr(source, "BATCH", 7)
    extract_lib.extract(path, tmp_path / "two", findings_lib.NIH, workers=2)
    assert pq.read_table(tmp_path / "one").equals(pq.read_table(tmp_path / "two"))
    assert pq.ParquetFile(tmp_path / "two").num_row_groups == 8


def test_bad_rows_are_counted_and_listed_without_text(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes(
        b"study_id,findings,impression\n"
        b"a,No mass.,\n"
        + f"a,{CANARY},\n".encode()
        + f",{CANARY},\n".encode()
        + f"b,{CANARY} \xff\n".encode("latin-1")
        + b"c,,\nd\n"
    )
    lines: list[str] = []
    counts = extract_lib.extract(path, tmp_path / "o", findings_lib.UNION, log=lines.append)
    assert (counts["reports"], counts["quarantined"], counts["empty"]) == (3, 3, 2)
    listed = (tmp_path / "o.quarantine.csv").read_text()
    assert [part in listed for part in ("more than once", "empty", "UTF-8", CANARY)] == [True, True, True, False]
    assert not any(CANARY in line for line in lines)
    assert {r["study_id"] for r in pq.read_table(tmp_path / "o").to_pylist()} == {"a"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", b"", "is empty"),
        ("r.csv", b"study_id,findings\n", "no readable report"),
        ("r.csv", b"id,findings\na,b\n", "has the columns"),
        ("r.csv", b"study_id,text\na,b\n", "has the columns"),
        ("r.txt", b"study_id,findings\na,b\n", "expected .csv or .parquet"),
        ("r.parquet", b"not parquet at all", "not a Parquet file"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        extract_lib.extract(tmp_path / name, tmp_path / "out", findings_lib.UNION)
    assert not list(tmp_path.glob("out*"))


def test_missing_file_and_unknown_backend(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        extract_lib.extract(tmp_path / "r.csv", tmp_path / "o", findings_lib.UNION)
    with pytest.raises(ValueError, match="unknown"):
        extract_lib.extract(tmp_path / "r.csv", tmp_path / "o", findings_lib.UNION, backend="oracle")


def test_an_oversized_field_is_an_error_without_its_text(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "MAX_FIELD", 100)
    path = write_csv(tmp_path / "r.csv", [("a", CANARY * 50, "")])
    with pytest.raises(ValueError, match="line") as error:
        extract_lib.extract(path, tmp_path / "o", findings_lib.UNION)
    assert CANARY not in str(error.value)


def test_the_script_end_to_end(tmp_path):
    path = write_csv(tmp_path / "r.csv", [("a", f"Possible mass. {CANARY}", "")])
    command = [
        sys.executable,
        "data_prep/extract_uncertainty.py",
        f"--reports={path}",
        f"--output={tmp_path / 'o.parquet'}",
    ]
    command += ["--backend=lexicon", "--findings=union"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    states = {r["finding"]: (r["state"], round(r["p"], 3)) for r in pq.read_table(tmp_path / "o.parquet").to_pylist()}
    assert states == {"Mass": (-1, 0.5), "Lung Lesion": (-1, 0.5), "No Finding": (-1, 0.5)}
