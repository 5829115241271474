"""A folder of images and a table, from files to records."""

import csv
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repgls_jax import data, findings
from repgls_jax.data import shards
from repgls_jax.data.source import Quarantined
from repgls_jax.data.table import TableSource

SECRET = "Small left effusion is suspected."


def make(folder, rows, images=True):
    """A data set of 20 x 30 images; rows are dicts with at least ``image``."""
    folder.mkdir(exist_ok=True)
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    for i, row in enumerate(rows if images else []):
        path = folder / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30), 10 + i, np.uint8)).save(path)
    return folder


def patients(n, **more):
    """n rows, one patient each."""
    return [{"image": f"i{k}.png", "patient": f"0{k}", **more} for k in range(n)]


def records(source):
    return [source.record(split, i) for split, n in source.splits().items() for i in range(n)]


def test_records_carry_what_the_table_says(tmp_path):
    rows = patients(6, report="", Effusion="", view="PA")
    rows[1] |= {"report": f'  {SECRET}\nSecond line, "quoted".', "Effusion": "-1"}
    source = TableSource(source=make(tmp_path / "d", rows), image_size=16)
    found = {record["image_id"]: record for record in records(source)}
    assert len(found) == 6
    record = found["i1.png"]
    assert (record["patient_id"], record["study_id"], record["view"]) == ("01", "i1", "PA")
    assert record["report"] == f'{SECRET}\nSecond line, "quoted".'
    assert record["has_report"] and not found["i0.png"]["has_report"]
    assert record["labels"][findings.CHEXPERT.index("Pleural Effusion")] == findings.UNCERTAIN
    assert record["observed"].sum() == 1 and found["i0.png"]["observed"].sum() == 0
    assert record["image"].max() == 11


def test_parquet_and_csv_give_the_same_records(tmp_path):
    rows = patients(5, Edema="1")
    made = make(tmp_path / "d", rows)
    other = tmp_path / "other"
    make(other, rows)
    (other / "t.csv").unlink()
    columns = {name: [row[name] for row in rows] for name in rows[0]} | {"Edema": [1.0, 1.0, None, float("nan"), 0.0]}
    pq.write_table(pa.table(columns), other / "t.parquet")
    ours, theirs = records(TableSource(source=made)), records(TableSource(source=other))
    k = findings.CHEXPERT.index("Edema")
    by_id = {record["image_id"]: record for record in theirs}
    assert [by_id[f"i{i}.png"]["labels"][k] for i in range(5)] == [1, 1, -2, -2, 0]
    for a in ours:
        np.testing.assert_array_equal(a["image"], by_id[a["image_id"]]["image"])
        assert a["patient_id"] == by_id[a["image_id"]]["patient_id"]


def test_images_of_a_study_share_its_one_report(tmp_path):
    rows = [row | {"study": f"s{k // 2}", "patient": f"p{k // 2}", "report": ""} for k, row in enumerate(patients(8))]
    rows[3]["report"] = SECRET
    source = TableSource(source=make(tmp_path / "d", rows))
    texts = {record["image_id"]: record["report"] for record in records(source)}
    assert texts["i2.png"] == texts["i3.png"] == SECRET and not texts["i0.png"]
    manifest = data.build_source(source, tmp_path / "out")
    assert sum(split["reports"] for split in manifest["counts"].values()) == 1
    assert pq.read_table(tmp_path / "out" / "reports.parquet").to_pylist()[0]["study_id"] == "s1"


def test_subfolders_keep_study_ids_apart(tmp_path):
    rows = [row | {"image": f"p{k}/view.png"} for k, row in enumerate(patients(3))]
    assert {r["study_id"] for r in records(TableSource(source=make(tmp_path / "d", rows)))} == {
        "p0/view",
        "p1/view",
        "p2/view",
    }


def _with(k, **change):
    def rows():
        made = patients(4, report="", study="")
        for i, row in enumerate(made):
            row["study"] = f"s{i}"
        made[k] |= change
        return made

    return rows


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (_with(0), {"table": "none.csv"}, "table .*none.csv does not exist"),
        (_with(0), {"findings": "chexpart"}, "vocabulary 'chexpart' is unknown"),
        (_with(0), {"image_size": 0}, "image_size is 0"),
        (_with(0), {"max_megapixels": 1000}, "max_megapixels is 1000"),
        (_with(0), {"ignore": "Hernia"}, "ignore is the text 'Hernia'; expected a list"),
        (_with(2, patient=" "), {}, "row 3 has no patient: column 'patient' is blank"),
        (_with(2, image="i1.png"), {}, r"1 images stand in several rows that differ \(column 'image'\): i1.png"),
        (_with(2, study="s1"), {}, r"1 studies have several patients \(column 'study'\): s1"),
        (_with(1, image="i0.jpg", study=""), {"columns": {"study": ""}}, "image names differ only by their suffix"),
    ],
)
def test_faulty_tables_are_refused(tmp_path, rows, options, message):
    folder = make(tmp_path / "d", rows(), images=False)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TableSource(source=folder, **options)


def test_differing_reports_of_a_study_are_refused_without_quoting_them(tmp_path):
    rows = [row | {"study": "s", "patient": "p", "report": f"{SECRET} {k}"} for k, row in enumerate(patients(2))]
    with pytest.raises(ValueError, match=r"1 studies have differing texts \(report\) \(column 'study'\): s") as caught:
        TableSource(source=make(tmp_path / "d", rows, images=False))
    assert SECRET not in str(caught.value)


def test_a_ragged_csv_is_refused_without_quoting_it(tmp_path):
    (tmp_path / "t.csv").write_text(f"image,patient,report\na.png,1,x\nb.png,2,y,{SECRET},{SECRET}\n")
    with pytest.raises(ValueError, match=r"Row #3: Expected 3 columns, got 5") as caught:
        TableSource(source=tmp_path)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_tables_that_are_none_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        TableSource(source=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"should hold one table .*found: none"):
        TableSource(source=tmp_path)
    (tmp_path / "a.csv").write_text("image,patient\n")
    with pytest.raises(ValueError, match=r"has no rows; its columns are: image, patient"):
        TableSource(source=tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"found: a.csv, b.parquet; name one"):
        TableSource(source=tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        TableSource(source=tmp_path, table="b.parquet")
    (tmp_path / "c.csv").write_bytes(b"image,patient\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="cannot be read"):
        TableSource(source=tmp_path, table="c.csv")


def test_repeated_rows_count_once(tmp_path):
    rows = patients(4)
    made = make(tmp_path / "d", rows + rows[:2])
    source = TableSource(source=made)
    assert len(records(source)) == 4
    assert source.parameters()["rows"] == 6 and source.parameters()["duplicate_rows"] == 2


def test_bad_images_and_long_reports_are_quarantined_with_reason_and_the_build_goes_on(tmp_path):
    rows = patients(40, report="short")
    rows[6]["report"] = SECRET * 20
    folder = make(tmp_path / "d", rows)
    (folder / "i1.png").write_bytes((folder / "i1.png").read_bytes()[:40])
    (folder / "i2.png").write_text("prose")
    (folder / "i3.png").unlink()
    outside = tmp_path / "outside.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(outside)
    (folder / "i4.png").unlink()
    (folder / "i4.png").symlink_to(outside)
    manifest = data.build("table", tmp_path / "out", source=folder, max_report_bytes=300, seed=1)
    reasons = {item["item"]: item["reason"] for item in manifest["quarantine"]["items"]}
    assert set(reasons) == {"i1.png", "i2.png", "i3.png", "i4.png", "i6.png"}
    assert manifest["quarantine"]["count"] == 5
    assert "not a readable" in reasons["i1.png"] and "not a readable" in reasons["i2.png"]
    assert "no such file" in reasons["i3.png"] and "leads out" in reasons["i4.png"]
    assert reasons["i6.png"] == "the report has more than 300 bytes"
    assert sum(split["images"] for split in manifest["counts"].values()) == 35
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert SECRET.encode() not in everything


def test_a_split_without_a_usable_image_is_an_error(tmp_path):
    folder = make(tmp_path / "d", patients(5), images=False)
    with pytest.raises(ValueError, match=r"no usable image; all \d were quarantined \(\d x no such file"):
        data.build("table", tmp_path / "out", source=folder)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    folder = make(tmp_path / "d", patients(3, report="eins\nzwei"))
    text = (folder / "t.csv").read_text(encoding="utf-8")
    (folder / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert {record["report"] for record in records(TableSource(source=folder))} == {"eins\nzwei"}


def test_given_splits_are_kept(tmp_path):
    rows = [row | {"split": ["train", "validate"][k % 2]} for k, row in enumerate(patients(6))]
    source = TableSource(source=make(tmp_path / "d", rows))
    assert source.splits() == {"train": 3, "valid": 3}
    manifest = data.build_source(source, tmp_path / "out")
    assert list(manifest["counts"]) == ["train", "valid"]
    with pytest.raises(ValueError, match=r"split 'test' is not in .*expected one of train, valid"):
        shards.examples(tmp_path / "out" / "shards", "test")


def test_sex_and_age_are_kept_and_what_cannot_be_read_is_counted(tmp_path):
    rows = patients(6, Sex="F", **{"Patient Age": "061Y"})
    rows[1] |= {"Sex": "male", "Patient Age": "7"}
    rows[2] |= {"Sex": "", "Patient Age": ""}
    rows[3] |= {"Sex": "?", "Patient Age": "411Y"}
    source = TableSource(source=make(tmp_path / "d", rows))
    found = {record["image_id"]: (record["sex"], record["age"]) for record in records(source)}
    assert [found[f"i{k}.png"] for k in range(4)] == [("F", 61), ("M", 7), ("", -1), ("", -1)]
    assert source.parameters()["unread"] == {"sex": 1, "age": 1}
    data.build_source(source, tmp_path / "out")
    stored = shards.examples(tmp_path / "out" / "shards", "train")
    assert stored["age"].dtype == np.int16
    for k, image_id in enumerate(stored["image_id"]):
        assert (stored["sex"][k], stored["age"][k]) == found[image_id]


def test_records_come_in_any_order_and_from_a_pickled_copy(tmp_path):
    source = TableSource(source=make(tmp_path / "d", patients(9)))
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - dumped just now
    there = [(split, i) for split, n in source.splits().items() for i in range(n)]
    back = {place: copy.record(*place) for place in reversed(there)}
    for place in there:
        record = source.record(*place)
        assert record["image_id"] == back[place]["image_id"]
        np.testing.assert_array_equal(record["image"], back[place]["image"])


@settings(max_examples=25, deadline=None)
@given(
    owners=st.lists(st.integers(0, 9), min_size=3, max_size=40).filter(lambda o: len(set(o)) >= 3), seed=st.integers(0)
)
def test_no_patient_is_in_two_splits(tmp_path_factory, owners, seed):
    rows = [{"image": f"i{k}.png", "patient": f"p{owner}"} for k, owner in enumerate(owners)]
    source = TableSource(source=make(tmp_path_factory.mktemp("t"), rows, images=False), seed=seed)
    seen = {}
    assert sum(source.splits().values()) == len(rows)
    for split in source.splits():
        for i in range(source.splits()[split]):
            record = source.record(split, i)
            assert isinstance(record, Quarantined)  # the images were not made: only the table is looked at
            owner = rows[int(record.item[1:-4])]["patient"]
            assert seen.setdefault(owner, split) == split
    assert set(source.splits()) == {"train", "valid", "test"}
