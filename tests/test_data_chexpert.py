"""CheXpert: miniatures of the published folders, whole and in batches."""

import csv
import functools
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from repgls_jax import data, findings
from repgls_jax.data.chexpert import ChexpertSource
from repgls_jax.phantom import PhantomConfig, generate

SIDE = 64
NAME = "CheXpert-v1.0-small"
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", "Lung Opacity", "Pleural Effusion")
FILMS = {
    "train": ["patient00001/study1/view1_frontal", "patient00001/study1/view2_lateral",
              "patient00001/study2/view1_frontal", "patient00002/study1/view1_frontal"],
    "valid": ["patient64541/study1/view1_frontal"],
    "test": ["patient64741/study1/view1_frontal", "patient64742/study1/view1_frontal"],
}  # fmt: skip


@functools.cache
def film(i):
    return generate(PhantomConfig(image_size=SIDE), i)["image"]


def films():
    return [(split, name) for split, names in FILMS.items() for name in names]


def rows(split):
    for i, (of, name) in enumerate(films()):
        if of == split:
            lateral = name.endswith("lateral")
            labels = (("", "1.0")[i % 2], ("1.0", "0.0", "-1.0", "")[i % 4], "")
            people = (("Female", "Male", "Unknown")[i % 3], f"{40 + i}")
            view = ("Lateral", "") if lateral else ("Frontal", ("AP", "PA", "")[i % 3])
            yield dict(zip(COLUMNS, (f"{NAME}/{split}/{name}.jpg", *people, *view, *labels), strict=True))


def write(path, lines):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)


def make(root):
    for i, (split, name) in enumerate(films()):
        path = root / split / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film(i)).save(path, quality=100)
    for split in FILMS:
        write(root / f"{split}.csv", list(rows(split)))
    return root


def records(source):
    return {
        r["image_id"]: r for split, n in source.splits().items() for r in (source.record(split, i) for i in range(n))
    }


def test_a_miniature_becomes_its_films_and_labels(tmp_path):
    source = pickle.loads(pickle.dumps(ChexpertSource(source=make(tmp_path / NAME), image_size=SIDE, views="all")))  # noqa: S301
    assert source.splits() == {"train": 4, "valid": 1, "test": 2}
    found = records(source)
    for i, (split, name) in enumerate(films()):
        record = found.pop(f"{split}/{name}")
        assert np.abs(record["image"].astype(int) - film(i)).max() <= 8
        patient, study, file = name.split("/")
        assert (record["patient_id"], record["study_id"]) == (patient, f"{patient}/{study}")
        expected = "LATERAL" if "lateral" in file else ("AP", "PA", "FRONTAL")[i % 3]
        assert (record["view"], record["sex"], record["age"]) == (expected, ("F", "M", "")[i % 3], 40 + i)
        states = dict(zip(findings.CHEXPERT.findings, record["labels"], strict=True))
        assert (states.pop("No Finding"), states.pop("Lung Opacity")) == ((-2, 1)[i % 2], (1, 0, -1, -2)[i % 4])
        assert set(states.values()) == {-2} and not record["has_report"]
    assert not found


def test_lateral_films_are_left_out_and_counted(tmp_path):
    manifest = data.build("chexpert", tmp_path / "out", source=make(tmp_path / NAME), image_size=SIDE)
    assert manifest["source"]["left_out"] == {"view LATERAL": 1}
    assert manifest["counts"]["train"] == {"images": 3, "studies": 3, "patients": 2, "reports": 0}


def test_the_folder_above_and_the_batches_hold_the_same_films(tmp_path):
    root = make(tmp_path / NAME)
    whole = records(ChexpertSource(source=root, image_size=SIDE))
    above = tmp_path / "above"
    shutil.copytree(root, above / NAME)
    batches = tmp_path / "batches"
    first = batches / "CheXpert-v1.0 batch 1 (validate & csv)"
    for split in ("valid", "test"):
        shutil.copytree(root / split, first / split)
    for split in FILMS:
        shutil.copy(root / f"{split}.csv", above)
        shutil.copy(root / f"{split}.csv", first)
    for k, patient in enumerate(sorted((root / "train").iterdir())):
        shutil.copytree(patient, batches / f"CheXpert-v1.0 batch {k + 2} (train {k + 1})" / patient.name)
    for folder in (above, batches):
        found = records(ChexpertSource(source=folder, image_size=SIDE))
        assert found.keys() == whole.keys()
        assert all((found[key]["image"] == whole[key]["image"]).all() for key in whole)


@pytest.mark.parametrize("name", ["test_labels.csv", "groundtruth.csv"])
def test_the_test_set_may_have_paths_and_labels_alone(tmp_path, name):
    root = make(tmp_path / NAME)
    write(root / name, [{"Path": row["Path"].removeprefix(f"{NAME}/"), "Lung Opacity": "1"} for row in rows("test")])
    (root / "test.csv").unlink()
    source = ChexpertSource(source=root, image_size=SIDE)
    record = source.record("test", 1)
    assert source.splits()["test"] == 2
    assert (record["view"], record["sex"], record["age"], record["labels"].max()) == ("FRONTAL", "", -1, 1)
    (root / name).unlink()
    assert ChexpertSource(source=root, image_size=SIDE).splits() == {"train": 3, "valid": 1}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Path", f"{NAME}/train/../../etc/passwd", r"column 'Path', 1 values \(row 2: '"),
        ("Path", f"/train/{FILMS['train'][0]}.jpg", "column 'Path', 1 values"),
        ("Path", f"{NAME}/train/{FILMS['train'][0]}.jpg", r"1 values \(row 2: .* no value twice"),
        ("Path", f"{NAME}/valid/{FILMS['valid'][0]}.jpg", "a path below train/"),
        ("Path", f"{NAME}/train/{FILMS['valid'][0]}.jpg", "1 patients are in more than one split: patient64541"),
        ("Pleural Effusion", "2", r"column 'Pleural Effusion', 1 values \(row 2: '2'\)"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, column, value, message):
    root = make(tmp_path / NAME)
    lines = list(rows("train"))
    lines[1][column] = value
    write(root / "train.csv", lines)
    with pytest.raises(ValueError, match=message):
        ChexpertSource(source=root, views="all")


def test_films_that_are_not_there_are_counted(tmp_path):
    root = make(tmp_path / NAME)
    shutil.rmtree(root / "train" / "patient00002")
    source = ChexpertSource(source=root)
    assert source.splits()["train"] == 2 and source.parameters()["left_out"]["image not there"] == 1
    (root / "valid.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no valid\.csv"):
        ChexpertSource(source=root)
