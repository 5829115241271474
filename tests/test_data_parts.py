"""Columns, labels and splits of a table, without any file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repgls_jax import findings
from repgls_jax.data import columns, labels, rows, splits
from repgls_jax.data.source import SPLITS


def test_columns_of_known_data_sets_are_recognised():
    nih = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"]
    nih.append("View Position")
    used = columns.resolve(nih, {}, findings.NIH)
    assert used.roles == {
        "image": "Image Index",
        "labels": "Finding Labels",
        "patient": "Patient ID",
        "view": "View Position",
        "sex": "Patient Gender",
        "age": "Patient Age",
    }
    assert used.unused == ("Follow-up #",)
    chexpert = ["Path", "subject_id", "No Finding", "Enlarged Cardiomediastinum", "Effusion", "pleural_other"]
    used = columns.resolve(chexpert, {}, findings.CHEXPERT)
    assert used.labels["Pleural Effusion"] == "Effusion"
    assert used.labels["Pleural Other"] == "pleural_other"


@pytest.mark.parametrize(
    ("cell", "years"),
    [
        *(("58", 58), ("58.0", 58), ("058Y", 58), ("0", 0), ("120", 120), ("023M", 1), ("11m", 0), ("800D", 2)),
        *(("104 W", 1), ("", -1), ("121", -1), ("411Y", -1), ("-3", -1), ("old", -1), ("5e3", -1), ("1" * 5000, -1)),
    ],
)
def test_ages_are_completed_years_or_unknown(cell, years):
    assert rows.age(cell) == years


def test_sexes_are_letters_or_unknown():
    assert [rows.sex(cell) for cell in ("F", "f", "Female", "FEMALE")] == ["F"] * 4
    assert [rows.sex(cell) for cell in ("M", "male")] == ["M"] * 2
    assert [rows.sex(cell) for cell in ("", "O", "U", "Fe", "1", "Unknown", "nan", "mf")] == [""] * 8


def test_given_columns_win_over_recognised_ones_and_blank_switches_off():
    names = ["filename", "image224", "patientid", "report"]
    used = columns.resolve(names, {"image": "image224", "report": ""}, findings.CHEXPERT)
    assert used.roles == {"image": "image224", "patient": "patientid"}
    assert used.unused == ("filename", "report")


@pytest.mark.parametrize("given", [{"patient": "study_id"}, {"patient": "study_id", "study": "study_id"}])
def test_a_study_can_stand_for_a_patient_when_said_so(given):
    used = columns.resolve(["image", "study_id"], given, findings.CHEXPERT)
    assert used.roles == {"image": "image", "patient": "study_id", "study": "study_id"}


@pytest.mark.parametrize(
    ("names", "chosen", "message"),
    [
        (["patient_id"], {}, r"no column for the role 'image'.*columns are: patient_id"),
        (
            ["image", "x"],
            {},
            r"no column for the role 'patient'.*splits must not share patients.*columns are: image, x",
        ),
        (["image", "path", "patient"], {}, r"several columns fit 'image': image, path.*columns are: image, path"),
        (["image", "patient"], {"image": "img"}, r"column 'img', which is not there.*columns are: image, patient"),
        (["image", "patient"], {"pacient": "patient"}, r"role 'pacient' is unknown; expected one of image, patient"),
        (["image", "patient", "report", "findings"], {}, r"both a whole report \('report'\) and its sections"),
        (["image", "patient", "labels", "Edema"], {}, r"list column 'labels' and to columns per finding \(Edema\)"),
        (["image", "patient", "Effusion", "Pleural Effusion"], {}, r"several columns fit 'Pleural Effusion'"),
        (["image", "patient", "patient"], {}, r"columns named twice: patient"),
    ],
)
def test_columns_that_do_not_fit_are_refused(names, chosen, message):
    with pytest.raises(ValueError, match=message):
        columns.resolve(names, chosen, findings.CHEXPERT)


def test_label_columns_keep_the_four_states():
    cells = ["1.0", "0", "-1.0", "", "-2", "nan"]
    states = labels.from_columns({"Edema": cells}, {"Edema": "edema"}, 6, findings.CHEXPERT)
    assert states.dtype == np.int8
    assert states[:, findings.CHEXPERT.index("Edema")].tolist() == [1, 0, -1, -2, -2, -2]
    assert (np.delete(states, findings.CHEXPERT.index("Edema"), axis=1) == findings.NOT_MENTIONED).all()


@pytest.mark.parametrize("bad", ["2", "0.5", "yes", "inf", "1e999"])
def test_a_label_outside_the_states_names_value_row_and_column(bad):
    with pytest.raises(ValueError, match=rf"label '{bad}' in row 2, column 'oedema'"):
        labels.from_columns({"Edema": ["1", bad]}, {"Edema": "oedema"}, 2, findings.CHEXPERT)


def test_listed_findings_are_positive_and_the_others_negative():
    cells = ["Effusion|Infiltration", "No Finding", ""]
    states = labels.from_lists(cells, "Finding Labels", findings.NIH)
    positive = {findings.NIH.findings[k] for k in np.flatnonzero(states[0] == 1)}
    assert positive == {"Pleural Effusion", "Infiltrate"}
    assert (states[0] >= 0).all()
    assert (states[1] == 0).all()
    assert (states[2] == findings.NOT_MENTIONED).all()
    no_finding = labels.from_lists(["No Finding", "Edema"], "l", findings.CHEXPERT)[:, 0]
    assert no_finding.tolist() == [1, 0]


def test_listed_names_outside_the_vocabulary_are_refused_unless_ignored():
    cells = ["Hernia|Edema", "Hernia", "Gnome"]
    with pytest.raises(ValueError, match=r"'Gnome' \(1 rows\), 'Hernia' \(2 rows\)"):
        labels.from_lists(cells, "l", findings.CHEXPERT)
    states = labels.from_lists(cells, "l", findings.CHEXPERT, ignore=["hiatal hernia", "Gnome"])
    assert (states == 1).sum() == 1
    with pytest.raises(ValueError, match="ignore names Edema, which the vocabulary 'chexpert' holds"):
        labels.from_lists(cells, "l", findings.CHEXPERT, ignore=["edema"])
    with pytest.raises(ValueError, match=r"row 1, column 'l' lists 'No Finding' beside findings"):
        labels.from_lists(["No Finding|Edema"], "l", findings.CHEXPERT)


@given(
    patients=st.lists(st.text(min_size=1, max_size=4), min_size=3, max_size=60).filter(lambda p: len(set(p)) >= 3),
    seed=st.integers(0, 2**31),
    train=st.floats(0.05, 0.9),
)
def test_hashed_splits_give_every_patient_one_split_and_leave_none_empty(patients, seed, train):
    fractions = (train, (1 - train) / 3, 2 * (1 - train) / 3)
    assigned = splits.by_hash(patients, fractions, seed)
    assert set(assigned) == set(patients)
    assert set(assigned.values()) == set(SPLITS)
    assert splits.by_hash(patients[::-1], fractions, seed) == assigned


def test_hashed_splits_follow_the_fractions_and_stay_when_patients_are_added():
    patients = [f"p{i}" for i in range(4000)]
    assigned = splits.by_hash(patients, (0.7, 0.1, 0.2), seed=3)
    share = {s: list(assigned.values()).count(s) / 4000 for s in SPLITS}
    assert share == pytest.approx({"train": 0.7, "valid": 0.1, "test": 0.2}, abs=0.03)
    more = splits.by_hash([*patients, "new"], (0.7, 0.1, 0.2), seed=3)
    assert {p: more[p] for p in patients} == assigned
    assert splits.by_hash(patients, (0.7, 0.1, 0.2), seed=4) != assigned


def test_splits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="2 patients cannot fill the splits train, valid, test"):
        splits.by_hash(["a", "b", "a"], (0.7, 0.1, 0.2), 0)
    with pytest.raises(ValueError, match=r"split fractions are \(0.5, 0.5, 0.5\)"):
        splits.by_hash("abc", (0.5, 0.5, 0.5), 0)
    with pytest.raises(ValueError, match=r"split 'holdout' in row 2, column 'fold'"):
        splits.from_column(["a", "b"], ["train", "holdout"], "fold")


def test_given_splits_take_any_official_spelling_and_refuse_shared_patients():
    values = ["Train", "validate", "val", "TEST"]
    assert list(splits.from_column("abcd", values, "split").values()) == ["train", "valid", "valid", "test"]
    patients = [f"p{i}" for i in range(7)] * 2
    with pytest.raises(ValueError, match=r"7 patients are in more than one split .*p0, p1, p2, p3, p4, \.\.\."):
        splits.from_column(patients, ["train"] * 7 + ["test"] * 7, "split")


def test_a_missing_validation_split_is_taken_from_training_and_stays():
    given = {f"p{i}": "test" if i % 5 == 0 else "train" for i in range(100)}
    made = splits.with_valid(given, (0.7, 0.1, 0.2), 0)
    assert {p for p, s in made.items() if s == "test"} == {p for p, s in given.items() if s == "test"}
    assert list(made.values()).count("valid") == 10
    assert made == splits.with_valid(given, (0.7, 0.1, 0.2), 0) != splits.with_valid(given, (0.7, 0.1, 0.2), 1)
    assert splits.with_valid(made, (0.7, 0.1, 0.2), 3) == made
