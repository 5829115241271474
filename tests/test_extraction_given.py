"""Evidence made beforehand: taken for the reports that it was made of, refused for others."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repgls_jax import sidecars
from repgls_jax.extraction import given
from repgls_jax.extraction import run as extract_lib
from repgls_jax.findings import CHEXPERT, NIH

TEXTS = {"a": "Possible edema.", "b": "No effusion. Cardiomegaly.", "c": " ", "d": "Likely pneumonia."}


@pytest.fixture
def files(tmp_path):
    """Reports of a build, what the lexicon reads of them and of one other, and where to write."""
    reports, evidence = tmp_path / "reports.parquet", tmp_path / "evidence.parquet"
    write(reports, TEXTS)
    whole = tmp_path / "whole.parquet"
    write(whole, {"other": "Edema.", **TEXTS})
    extract_lib.extract(whole, evidence, CHEXPERT)
    return evidence, reports, tmp_path / "taken.parquet"


def write(path, texts):
    pq.write_table(pa.table({"study_id": list(texts), "report": list(texts.values())}), path)


def test_the_rows_of_the_builds_reports_are_taken(files):
    _, reports, output = files
    counts = given.take(*files, CHEXPERT)
    alone = output.with_name("alone.parquet")
    extract_lib.extract(reports, alone, CHEXPERT)
    taken, ours = (sidecars.read(path, sidecars.EVIDENCE, CHEXPERT) for path in (output, alone))
    assert taken.equals(ours)
    assert counts == {"reports": 4, "rows": len(ours), "silent": 1, "unread": 0}


def test_reports_that_could_not_be_read_stay_unread(files):
    evidence, _, output = files
    table = sidecars.read(evidence, sidecars.EVIDENCE, CHEXPERT)
    kept = table.filter(pa.compute.not_equal(table["study_id"], "d"))
    rows = {name: kept[name] for name in sidecars.EVIDENCE.names}
    sidecars.write(evidence, rows, sidecars.EVIDENCE, CHEXPERT, unread=["d", "elsewhere"])
    assert given.take(*files, CHEXPERT)["unread"] == 1
    assert sidecars.unread(sidecars.read(output, sidecars.EVIDENCE, CHEXPERT)) == {"d"}


def test_other_texts_other_findings_and_a_part_of_the_reports_are_refused(files):
    evidence, reports, output = files
    write(reports, TEXTS | {"b": "No  effusion. Cardiomegaly."})
    with pytest.raises(ValueError, match=r"made from other texts: 3 of its 7 rows") as caught:
        given.take(*files, CHEXPERT)
    assert "effusion" not in str(caught.value)
    write(reports, {f"z{i}": text for i, text in enumerate(TEXTS.values())})
    with pytest.raises(ValueError, match="is about 0 of the 4 reports"):
        given.take(*files, CHEXPERT)
    with pytest.raises(ValueError, match=r"(?s)holds the findings.*--findings=nih"):
        given.take(evidence, reports, output, NIH)
    assert not output.exists()
