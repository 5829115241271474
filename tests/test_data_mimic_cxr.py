"""MIMIC-CXR: miniatures of the published folders, as JPG and as DICOM, with reports in a folder and in the archive."""

import csv
import functools
import gzip
import pickle
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom import uid

from repgls_jax import data, findings
from repgls_jax.data.mimic import LABELS, METADATA, PATIENTS, SPLIT, MimicSource
from repgls_jax.data.mimic_reports import ARCHIVE
from repgls_jax.data.source import Quarantined
from repgls_jax.extraction.source import Source as Reports
from repgls_jax.phantom import PhantomConfig, generate

pytestmark = pytest.mark.filterwarnings(r"ignore:::pydicom\.")
SIDE = 64
CANARY = "Quibblewort effusion"
SPLITS = ("train", "train", "train", "validate", "test", "test")
# Views of the films of every study: two frontal ones, a lateral one, and one that nobody noted.
VIEWS = ("PA", "AP", "LATERAL", "")
EFFUSION, OPACITY = (findings.CHEXPERT.index(name) for name in ("Pleural Effusion", "Lung Opacity"))


@functools.cache
def film(i):
    return generate(PhantomConfig(image_size=SIDE), i)["image"]


def studies():
    """(patient, study, split): six patients, the first of them with two studies."""
    rows = [(f"1{p}000032", f"5{p}41426{k}", split) for p, split in enumerate(SPLITS) for k in range(1 + (p == 0))]
    return dict(enumerate(rows))


def dicom_id(study, view):
    return f"{study}-{view:08x}-aaaaaaaa-bbbbbbbb-0123456{view}"


def name(patient, study, film_id="", suffix=""):
    folder = f"files/p{patient[:2]}/p{patient}/s{study}"
    return f"{folder}/{film_id}{suffix}" if film_id else f"{folder}.txt"


def table(path, rows, packed=False):
    with gzip.open(f"{path}.gz", "wt") if packed else path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def write_dicom(path, image, i):
    """Twelve bits; every other film has its greys the other way round."""
    ds = pydicom.Dataset()
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PatientName = 1, 0, CANARY
    ds.Rows, ds.Columns = image.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PhotometricInterpretation = f"MONOCHROME{1 + i % 2}"
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    stored = np.rint(image.astype(float) * 4095 / 255).astype("<u2")
    ds.PixelData = (stored if i % 2 else 4095 - stored).tobytes()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.save_as(path, enforce_file_format=True)


def make(root, suffix=".jpg", archive=False, packed=False):
    """The folder of the data set; the film of study i and view v is that of the phantom's study 4 i + v."""
    metadata, split, labels = [], [], []
    texts = {}
    for i, (patient, study, part) in studies().items():
        texts[name(patient, study)] = f"FINDINGS: {CANARY} in study {study}.\nIMPRESSION: None."
        given = {"subject_id": patient, "study_id": study, "Pleural Effusion": ("1.0", "0.0", "-1.0", "")[i % 4]}
        labels.append(given | {"Lung Opacity": ""})
        for v, view in enumerate(VIEWS):
            ids = {"dicom_id": dicom_id(study, v), "subject_id": patient, "study_id": study}
            metadata.append(ids | {"ViewPosition": view, "Rows": SIDE, "StudyDate": "21800506"})
            split.append(ids | {"split": part})
            path = root / name(patient, study, ids["dicom_id"], suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".dcm":
                write_dicom(path, film(4 * i + v), i + v)
            else:
                Image.fromarray(film(4 * i + v)).save(path, quality=100)
    table(root / METADATA, metadata, packed)
    table(root / SPLIT, split, packed)
    table(root / LABELS["chexpert"], labels, packed)
    table(root / LABELS["negbio"], [row | {"Lung Opacity": "-1.0"} for row in labels])
    write_reports(root, texts, archive)
    return root


def write_reports(root, texts, archive):
    if archive:
        with zipfile.ZipFile(root / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as file:
            for path, text in texts.items():
                file.writestr(path, text)
        return
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def change(root, file, edit):
    """Applies ``edit`` to the rows of a table."""
    with (root / file).open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    table(root / file, edit(rows) or rows)


def records(source):
    return [source.record(split, i) for split, n in source.splits().items() for i in range(n)]


@pytest.mark.parametrize(
    ("suffix", "archive", "packed"), [(".jpg", False, True), (".dcm", True, False), (".dcm", False, False)]
)
def test_a_miniature_becomes_its_films_labels_and_reports(tmp_path, suffix, archive, packed):
    root = make(tmp_path / "mimic", suffix, archive, packed)
    source = pickle.loads(pickle.dumps(MimicSource(source=root, image_size=SIDE)))  # noqa: S301
    assert source.splits() == {"train": 8, "valid": 2, "test": 4}
    assert source.parameters()["left_out"] == {"view LATERAL": 7, "view unknown": 7}
    assert source.parameters()["images"] == suffix[1:] and source.parameters()["studies_without_report"] == 0
    found = {record["image_id"]: record for record in records(source)}
    for i, (patient, study, _) in studies().items():
        for v in range(2):
            record = found.pop(dicom_id(study, v))
            error = np.abs(record["image"].astype(int) - film(4 * i + v))
            assert error.max() <= (1 if suffix == ".dcm" else 8)
            assert (record["patient_id"], record["study_id"], record["view"]) == (patient, study, VIEWS[v])
            assert record["report"].startswith(f"FINDINGS: {CANARY} in study {study}.") and record["has_report"]
            assert record["labels"][EFFUSION] == (1, 0, -1, -2)[i % 4]
            assert record["observed"].sum() == (i % 4 != 3)
    assert not found


def test_a_build_joins_with_what_is_extracted_from_the_same_reports(tmp_path):
    root = make(tmp_path / "mimic", archive=True)
    manifest = data.build("mimic_cxr", tmp_path / "out", source=root, image_size=SIDE)
    assert manifest["counts"]["train"] == {"images": 8, "studies": 4, "patients": 3, "reports": 4}
    built = {row["study_id"]: row["report"] for row in pq.read_table(tmp_path / "out" / "reports.parquet").to_pylist()}
    assert built == {row["study_id"]: row["report"] for row in Reports(root / ARCHIVE).reports()}


@pytest.mark.parametrize(
    ("views", "n"),
    [("all", 28), ("lateral", 7), (("frontal", "unknown"), 21), ("PA", 7), ("pa,lateral", 14)],
)
def test_views_are_chosen(tmp_path, views, n):
    root = make(tmp_path / "mimic")
    assert sum(MimicSource(source=root, image_size=SIDE, views=views).splits().values()) == n


def test_a_view_that_no_film_has_is_refused(tmp_path):
    root = make(tmp_path / "mimic")
    with pytest.raises(ValueError, match=r"no film has the views SWIMMERS.*PA \(7\).*unknown \(7\)"):
        MimicSource(source=root, views="SWIMMERS")
    with pytest.raises(ValueError, match="views is ''"):
        MimicSource(source=root, views="")


def test_labels_of_two_origins_are_never_mixed(tmp_path):
    root = make(tmp_path / "mimic")
    tested = [study for _, study, split in studies().values() if split == "test"]
    table(
        root / LABELS["radiologist"], [{"study_id": tested[0], "Airspace Opacity": "0.0", "Pleural Effusion": "-1.0"}]
    )
    source = MimicSource(source=root, image_size=SIDE, labels="negbio", test_labels="radiologist")
    of = {record["study_id"]: record["labels"] for record in records(source)}
    assert of[tested[0]][OPACITY] == 0 and of[tested[0]][EFFUSION] == -1
    assert (of[tested[1]] == findings.NOT_MENTIONED).all()
    assert all(states[OPACITY] == -1 for study, states in of.items() if study not in tested)
    none = MimicSource(source=root, image_size=SIDE, labels="none")
    assert not any(record["observed"].any() for record in records(none))


def test_findings_that_the_tables_lack_are_not_mentioned(tmp_path):
    source = MimicSource(source=make(tmp_path / "mimic"), image_size=SIDE, findings="union")
    states = records(source)[0]["labels"]
    assert len(states) == len(findings.UNION) and states[findings.UNION.index("Pleural Effusion")] == 1
    assert states[findings.UNION.index("Hernia")] == findings.NOT_MENTIONED


def test_what_is_not_there_is_counted(tmp_path):
    root = make(tmp_path / "mimic")
    patient, study, _ = studies()[0]
    (root / name(patient, study, dicom_id(study, 0), ".jpg")).unlink()
    (root / name(patient, study)).unlink()
    change(root, SPLIT, lambda rows: rows[:-4])  # the last study, of the test set
    source = MimicSource(source=root, image_size=SIDE)
    assert source.splits() == {"train": 7, "valid": 2, "test": 2}
    left_out = source.parameters()["left_out"]
    assert left_out == {"image not there": 1, "no split": 4, "view LATERAL": 6, "view unknown": 6}
    assert source.parameters()["studies_without_report"] == 1
    assert [record["has_report"] for record in records(source)].count(False) == 1
    assert MimicSource(source=root, reports="none").parameters()["reports"] == "none"
    for path in root.glob("files/*/*/*/*.jpg"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="none of the 12 films is there; the first would be"):
        MimicSource(source=root)


def test_sex_and_age_come_from_the_table_of_patients(tmp_path):
    root = make(tmp_path / "mimic")
    people = [
        {"subject_id": p, "gender": "FM"[i % 2], "anchor_age": 50 + i, "anchor_year": 2178}
        for i, p in enumerate(dict.fromkeys(patient for patient, *_ in studies().values()))
    ]
    table(root / PATIENTS, people[:-1], packed=True)
    of = {record["patient_id"]: (record["sex"], record["age"]) for record in records(MimicSource(source=root))}
    assert of == {p["subject_id"]: ("FM"[i % 2], 52 + i) for i, p in enumerate(people[:-1])} | {
        people[-1]["subject_id"]: ("", -1)
    }


def split_one_patient(rows):
    rows[0]["split"] = "test"


def spoil(column, value, *at):
    def edit(rows):
        for i in at:
            rows[i][column] = value

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (SPLIT, split_one_patient, "1 patients are in more than one split: 10000032"),
        (SPLIT, spoil("split", "maybe", 2, 5), r"column 'split', 2 values \(row 3: 'maybe', row 6: 'maybe'\)"),
        (SPLIT, lambda rows: rows.append(rows[3]), r"column 'dicom_id', 1 values \(row 29: .*no value twice"),
        (METADATA, spoil("study_id", "../../../etc", 1), r"column 'study_id', 1 values \(row 2: '../../../etc'\)"),
        (METADATA, spoil("dicom_id", "x" * 500, 1), r"column 'dicom_id', 1 values \(row 2: 'x{20}'\)"),
        (METADATA, spoil("subject_id", "19999999", 1), "1 studies have more than one subject_id"),
        (METADATA, lambda rows: [{"dicom_id": 1}], "not exactly one column subject_id, study_id, ViewPosition"),
        (LABELS["chexpert"], spoil("Pleural Effusion", "0.5", 4), r"'Pleural Effusion', 1 values \(row 5: '0.5'\)"),
        (LABELS["chexpert"], lambda rows: [row | {"effusion": ""} for row in rows], "3 columns named after findings"),
        (LABELS["chexpert"], lambda rows: [{"study_id": 1}], "0 columns named after findings"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_with_their_rows(tmp_path, file, edit, message):
    root = make(tmp_path / "mimic")
    change(root, file, edit)
    with pytest.raises(ValueError, match=message):
        MimicSource(source=root)


def test_damaged_tables_are_refused_without_what_is_in_them(tmp_path):
    root = make(tmp_path / "mimic", packed=True)
    path = root / f"{METADATA}.gz"
    whole = path.read_bytes()
    ragged = b"dicom_id,subject_id,study_id,ViewPosition\n" + CANARY.encode() + b",\n"
    damaged = (whole[:-20], whole[:50] + b"\0\0\0" + whole[53:], b"", b"dicom_id\n")
    for content in (*damaged, gzip.compress(b"dicom_id\n"), gzip.compress(ragged)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="table") as caught:
            MimicSource(source=root)
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize("options", [{"labels": "stanford"}, {"test_labels": "x"}, {"images": "png"}])
def test_unknown_options_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="expected labels from chexpert, negbio, radiologist, none"):
        MimicSource(source=tmp_path, **options)


def test_a_missing_table_is_named(tmp_path):
    root = make(tmp_path / "mimic")
    with pytest.raises(FileNotFoundError, match=r"test-set-labeled.csv, nor that as .gz; or take other labels="):
        MimicSource(source=root, test_labels="radiologist")
    with pytest.raises(FileNotFoundError, match=r"data folder .* does not exist"):
        MimicSource(source=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"reports .* do not exist"):
        MimicSource(source=root, reports="nowhere.zip")


def test_a_film_or_report_outside_of_the_folder_is_set_aside(tmp_path):
    root = make(tmp_path / "mimic")
    (tmp_path / "secret.txt").write_text(CANARY)
    Image.fromarray(film(0)).save(tmp_path / "secret.jpg")
    (patient, study, _), (other, its_study, _) = studies()[0], studies()[3]
    link = root / name(patient, study, dicom_id(study, 0), ".jpg")
    text = root / name(other, its_study)
    for path, target in ((link, "secret.jpg"), (text, "secret.txt")):
        path.unlink()
        path.symlink_to(tmp_path / target)
    found = records(MimicSource(source=root, image_size=SIDE))
    aside = [(entry.item, entry.reason) for entry in found if isinstance(entry, Quarantined)]
    assert len(found) - len(aside) == 11
    assert {reason for _, reason in aside} == {
        "the path leads out of the data folder",
        "the report: the path leads out of the data folder",
    }
    assert CANARY not in str(aside)


def spoiled_archives(path):
    """The archive with the first report spoiled, way by way, and what is said of it."""
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
        start = archive.infolist()[0].header_offset
    data = start + 30 + len(next(iter(members)))
    yield good[: data + 5] + bytes([good[data + 5] ^ 255]) + good[data + 6 :], "cannot be unpacked"
    yield good[:start] + b"ZZZZ" + good[start + 4 :], "cannot be unpacked: damaged"
    central = good.index(b"PK\1\2")
    yield good[: central + 8] + b"\1" + good[central + 9 :], "encrypted"
    yield good[: central + 10] + b"\x0c" + good[central + 11 :], "another method"
    for text, reason in ((b"\xff\xfe" + CANARY.encode(), "not UTF-8"), (b" " * 2**23, "longer than 4194304 bytes")):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, (member, content) in enumerate(members.items()):
                archive.writestr(member, content if i else text)
        yield path.read_bytes(), reason


def test_a_report_that_cannot_be_read_takes_only_its_own_films_along(tmp_path):
    root = make(tmp_path / "mimic", archive=True)
    for content, reason in list(spoiled_archives(root / ARCHIVE)):
        (root / ARCHIVE).write_bytes(content)
        found = records(MimicSource(source=root, image_size=SIDE))
        aside = [entry for entry in found if isinstance(entry, Quarantined)]
        assert len(aside) == 2 and len(found) == 14
        assert all(reason in entry.reason and studies()[0][1] in entry.item for entry in aside)
        assert CANARY not in str(aside)


def test_archives_that_are_none_are_refused(tmp_path):
    root = make(tmp_path / "mimic", archive=True)
    whole = (root / ARCHIVE).read_bytes()
    for content, message in ((whole[:-30], "no readable .zip"), (b"", "no readable .zip")):
        (root / ARCHIVE).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            MimicSource(source=root)
    for names in (["readme.txt"], ["a/s50000000.txt", "b/s50000000.txt"]):
        write_reports(root, dict.fromkeys(names, "x"), archive=True)
        with pytest.raises(ValueError, match=r"hold 0 files|hold 1 studies twice, such as s50000000"):
            MimicSource(source=root)


def test_another_order_of_the_tables_joins_the_same_rows(tmp_path):
    root = make(tmp_path / "mimic")
    before = {r["image_id"]: r for r in records(MimicSource(source=root, image_size=SIDE))}
    change(root, SPLIT, lambda rows: rows[::-1])
    change(root, LABELS["chexpert"], lambda rows: rows[::-1])
    after = {r["image_id"]: r for r in records(MimicSource(source=root, image_size=SIDE))}
    assert before.keys() == after.keys()
    for image_id, record in before.items():
        assert (record["labels"] == after[image_id]["labels"]).all()
        assert record["report"] == after[image_id]["report"]
