"""NIH ChestX-ray14: miniatures of the published folders, old and new."""

import csv
import functools
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repgls_jax import data, findings
from repgls_jax.data import images
from repgls_jax.data.nih import BOX_SIDE, NihSource
from repgls_jax.phantom import PhantomConfig, generate

SIDE = 64
# The published header splits names at commas; the older table ends its rows with one more.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
LABELS = ("No Finding", "Effusion|Infiltration", "Cardiomegaly", "Pleural_Thickening|Hernia|Mass", "No Finding")
PATIENTS = 12  # of two films each; the last three are the test set
BOX = (256.0, 128.0, 512.0, 640.5)  # x, y, width, height


@functools.cache
def film(i):
    return generate(PhantomConfig(image_size=SIDE), i)["image"]


def name(i):
    return f"{i // 2 + 1:08d}_{i % 2:03d}.png"


def lines(old=False):
    for i in range(2 * PATIENTS):
        age = f"{30 + i:03d}Y" if old else 30 + i
        row = (name(i), LABELS[i % 5], i % 2, i // 2 + 1, age, "FM"[i % 2], ("PA", "AP")[i % 2], 2500, 2048, 0.1, 0.1)
        yield ",".join(map(str, row)) + "," * old


def make(root, old=False):
    folders = [root / f"images_{k:03d}" / "images" for k in (1, 2)] if old else [root / "images"] * 2
    for i in range(2 * PATIENTS):
        folders[i % 2].mkdir(parents=True, exist_ok=True)
        Image.fromarray(film(i)).save(folders[i % 2] / name(i))
    table = root / f"Data_Entry_2017{'' if old else '_v2020'}.csv"
    table.write_text("\n".join([HEADER + "," * old, *lines(old)]) + "\n")
    test = 2 * (PATIENTS - 3)
    (root / "train_val_list.txt").write_text("\n".join(map(name, range(test))))
    (root / "test_list.txt").write_text("\r\n".join(map(name, range(test, 2 * PATIENTS))) + "\r\n\n")
    end = ",,," * old
    boxes = [f"{name(i)},{finding},{','.join(map(str, BOX))}{end}" for i, finding in ((1, "Infiltrate"), (20, "Mass"))]
    (root / "BBox_List_2017.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *boxes]))
    return root


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def records(source):
    return {
        r["image_id"]: r for split, n in source.splits().items() for r in (source.record(split, i) for i in range(n))
    }


@pytest.mark.parametrize("old", [False, True])
def test_a_miniature_becomes_its_films_labels_and_boxes(tmp_path, old):
    source = pickle.loads(pickle.dumps(NihSource(source=make(tmp_path / "nih", old), image_size=SIDE)))  # noqa: S301
    assert source.splits()["test"] == 6 and source.splits()["train"] + source.splits()["valid"] == 18
    assert source.parameters()["left_out"] == {}
    found = records(source)
    assert len(found) == 2 * PATIENTS
    for i in range(2 * PATIENTS):
        record = found[name(i).removesuffix(".png")]
        assert (record["image"] == film(i)).all()
        assert (record["patient_id"], record["view"]) == (str(i // 2 + 1), ("PA", "AP")[i % 2])
        assert (record["sex"], record["age"], record["has_report"]) == ("FM"[i % 2], 30 + i, False)
        positive = {findings.NIH.findings[k] for k in np.flatnonzero(record["labels"] == 1)}
        assert positive == {findings.canonical(label) for label in LABELS[i % 5].split("|")} - {"No Finding"}
        assert (record["labels"] >= 0).all() and record["observed"].all()
        assert len(record.get("boxes", ())) == (i in (1, 20))
    assert [box[0] for box in found[name(1)[:-4]]["boxes"]] == ["Infiltrate"]


def test_boxes_follow_the_film_to_the_stored_image(tmp_path):
    data.build("nih", tmp_path / "out", source=make(tmp_path / "nih"), image_size=32)
    boxes = pq.read_table(tmp_path / "out" / "boxes.parquet").to_pylist()
    x, y, width, height = (value * 32 / BOX_SIDE for value in BOX)
    expected = {"x0": x, "y0": y, "x1": x + width, "y1": y + height}
    assert boxes == [
        {"image_id": name(i)[:-4], "finding": finding} | expected for i, finding in ((1, "Infiltrate"), (20, "Mass"))
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(60, 300), st.integers(60, 300), st.integers(48, 96), st.data())
def test_the_placement_is_where_the_pixels_went(tmp_path_factory, width, height, image_size, draw):
    x0, y0 = draw.draw(st.integers(0, width // 2 - 1)), draw.draw(st.integers(0, height // 2 - 1))
    x1, y1 = draw.draw(st.integers(x0 + width // 3, width)), draw.draw(st.integers(y0 + height // 3, height))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    path = tmp_path_factory.mktemp("film") / "f.png"
    Image.fromarray(pixels).save(path)
    bright = np.argwhere(images.read(path, image_size, 1) > 127)
    scale, left, top = images.placement(width, height, image_size)
    found = np.array([*bright.min(0), *(bright.max(0) + 1)])
    box = np.array([y0 * scale + top, x0 * scale + left, y1 * scale + top, x1 * scale + left])
    assert np.abs(found - box).max() <= 1.5


def test_valid_is_some_patients_of_train_val_and_follows_the_seed(tmp_path):
    root = make(tmp_path / "nih")
    chosen = {}
    for seed in range(4):
        source = NihSource(source=root, image_size=SIDE, seed=seed, fractions=(0.6, 0.3, 0.1))
        of = {s: {source.record(s, i)["patient_id"] for i in range(n)} for s, n in source.splits().items()}
        assert len(of["valid"]) == 3 and len(of["train"]) == 6 and of["test"] == {"10", "11", "12"}
        assert not of["valid"] & of["train"]
        chosen[seed] = frozenset(of["valid"])
    assert len(set(chosen.values())) > 1


def test_other_vocabularies_get_what_the_data_set_can_say(tmp_path):
    record = NihSource(source=make(tmp_path / "nih"), image_size=SIDE, findings="union").record("test", 2)  # film 20
    states = dict(zip(findings.UNION.findings, record["labels"], strict=True))
    assert states["No Finding"] == 1 and states["Hernia"] == 0 and states["Support Devices"] == -2
    assert record["observed"].sum() == len(findings.NIH) + 1
    assert "boxes" in record
    source = NihSource(source=tmp_path / "nih", image_size=SIDE, findings="chexpert")
    assert "boxes" not in source.record("test", 2)  # of a finding that this vocabulary lacks


def test_what_is_left_out_is_counted(tmp_path):
    root = make(tmp_path / "nih")
    (root / "images" / name(0)).unlink()
    Image.fromarray(film(0)).save(root / "images" / "00000099_000.png")
    edit(root / "train_val_list.txt", f"{name(1)}\n", "00000098_000.png\n")
    edit(root / "BBox_List_2017.csv", name(20), "00000097_000.png")
    left_out = NihSource(source=root, views="PA").parameters()["left_out"]
    assert left_out == {
        "boxes of a film without a row": 1,
        "file without a row": 1,
        "image not there": 1,
        "in no list": 1,
        "listed, but not in the table": 1,
        "view AP": 11,
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("Data_Entry_2017_v2020.csv", name(3), "../../../secret.png", r"'Image Index', 1 values \(row 4: '\.\./"),
        ("Data_Entry_2017_v2020.csv", name(3), name(2), r"'Image Index', 1 values \(row 4: .* no value twice"),
        ("Data_Entry_2017_v2020.csv", name(3), "00000099_000.png", r"'Patient ID', 1 values \(row 4: '2'\)"),
        ("Data_Entry_2017_v2020.csv", "Cardiomegaly", "Cardiomegalia", "1 values .row 3: 'Cardiomegalia'"),
        ("Data_Entry_2017_v2020.csv", "Cardiomegaly", "No Finding|Mass", "1 values .row 3: 'No Finding"),
        ("Data_Entry_2017_v2020.csv", "Patient Age", "Age", "not exactly one column Patient Age"),
        ("train_val_list.txt", name(3), "rubbish", "18 lines, 1 of which are no names"),
        ("train_val_list.txt", name(3), name(2), "1 stand twice in the lists"),
        ("test_list.txt", name(23), name(3), "1 stand twice in the lists"),
        ("BBox_List_2017.csv", "640.5", "1640.5", r"1 rows \(row 1\) that are no boxes"),
        ("BBox_List_2017.csv", "640.5", "nan", r"1 rows \(row 1\) that are no boxes"),
        ("BBox_List_2017.csv", "Infiltrate", "Doubt", r"1 rows \(row 1\) that are no boxes"),
        ("BBox_List_2017.csv", ",640.5", "", r"1 rows \(row 1\) that are no boxes"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_with_their_rows(tmp_path, file, old, new, message):
    root = make(tmp_path / "nih")
    edit(root / file, old, new)
    with pytest.raises(ValueError, match=message):
        NihSource(source=root)


def test_a_patient_in_two_lists_is_refused(tmp_path):
    root = make(tmp_path / "nih")
    edit(root / "train_val_list.txt", f"{name(3)}\n", "")
    with (root / "test_list.txt").open("a") as file:
        file.write(name(3))
    with pytest.raises(ValueError, match="1 patients are in more than one split: 2"):
        NihSource(source=root)


def test_impossible_ages_are_unknown(tmp_path):
    root = make(tmp_path / "nih", old=True)
    edit(root / "Data_Entry_2017.csv", "033Y", "411Y")
    source = NihSource(source=root, image_size=SIDE)
    assert records(source)[name(3)[:-4]]["age"] == -1


def test_the_table_may_be_quoted_as_csv_writes_it(tmp_path):
    root = make(tmp_path / "nih")
    path = root / "Data_Entry_2017_v2020.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    assert sum(NihSource(source=root).splits().values()) == 2 * PATIENTS
