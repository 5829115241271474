"""Miniatures of the published folder layouts, around films whose files are given: each function writes one, and returns
the paths of its tables. And what stands in a film's place that is none."""

import csv
import dataclasses
import os
import pathlib

import hostile_files as files

GOOD_EVERY = 5  # every patient's first film is good


@dataclasses.dataclass
class Film:
    """Film ``n``: what is written for it, whether it is good, and whether it must be refused."""

    n: int
    content: bytes
    good: bool = True
    must: bool = False
    path: pathlib.Path = pathlib.Path()
    image_id: str = ""

    @property
    def patient(self):
        return self.n // GOOD_EVERY

    @property
    def split(self):
        return ("train", "valid", "test")[self.patient % 3]


def write(film, path, image_id):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(film.content)
    film.path, film.image_id = path, image_id


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_table(root, films):
    rows = []
    for film in films:
        write(film, root / f"f{film.n}.png", f"f{film.n}.png")
        report = f"{files.CANARY} of {film.n}, none."
        rows.append(
            {"image": film.image_id, "patient": film.patient, "split": film.split, "Edema": 1, "report": report}
        )
    return [table(root / "t.csv", rows)]


def as_nih(root, films):
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for film in films:
        stem = f"{film.patient + 1:08d}_{film.n % GOOD_EVERY:03d}"
        write(film, root / "images" / f"{stem}.png", stem)
        row = {"Image Index": f"{stem}.png", "Finding Labels": "Mass|Edema", "Follow-up #": 0}
        row |= {"Patient ID": film.patient + 1, "Patient Age": 40, "Patient Gender": "F", "View Position": "PA"}
        rows.append(row)
        lists["test_list.txt" if film.split == "test" else "train_val_list.txt"].append(f"{stem}.png")
    boxes = [f"{films[0].path.name},Mass,100,100,200,200,,,"]
    (root / "BBox_List_2017.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *boxes]) + "\n")
    for name, names in lists.items():
        (root / name).write_text("\n".join(names) + "\n")
    return [table(root / "Data_Entry_2017_v2020.csv", rows), root / "BBox_List_2017.csv", *(root / n for n in lists)]


def as_chexpert(root, films):
    rows = {split: [] for split in ("train", "valid", "test")}
    for film in films:
        name = f"{film.split}/patient{film.patient:05d}/study1/view{film.n % GOOD_EVERY + 1}_frontal"
        write(film, root / f"{name}.jpg", name)
        row = {"Path": f"CheXpert-v1.0-small/{name}.jpg", "Sex": "Male", "Age": 40, "Frontal/Lateral": "Frontal"}
        rows[film.split].append(row | {"AP/PA": "AP", "Edema": "1.0", "Fracture": ""})
    return [table(root / f"{split}.csv", some) for split, some in rows.items()]


def as_mimic(root, films):
    metadata, split, labels = [], [], {}
    for film in films:
        patient, study, name = f"1{film.patient:07d}", f"5{film.patient:07d}", f"{film.n:08x}" + "-00000000" * 4
        folder = root / "files" / "p10" / f"p{patient}"
        write(film, folder / f"s{study}" / f"{name}.jpg", name)
        (folder / f"s{study}.txt").write_text(f"FINDINGS: {files.CANARY} of {film.patient}.")
        ids = {"dicom_id": name, "subject_id": patient, "study_id": study}
        metadata.append(ids | {"ViewPosition": "PA", "StudyDate": "21800506"})
        split.append(ids | {"split": {"valid": "validate"}.get(film.split, film.split)})
        labels[study] = {"subject_id": patient, "study_id": study, "Edema": "1.0", "Fracture": ""}
    names = ("metadata", "split", "chexpert")
    return [
        table(root / f"mimic-cxr-2.0.0-{n}.csv", r)
        for n, r in zip(names, (metadata, split, [*labels.values()]), strict=True)
    ]


def xml(number, ids):
    listed = "".join(f'<parentImage id="{i}"/>' for i in ids)
    text = f'<Abstract><AbstractText Label="FINDINGS">{files.CANARY} of {number}.</AbstractText></Abstract>'
    return f'<eCitation><uId id="CXR{number}"/>{text}<MeSH><major>normal</major></MeSH>{listed}</eCitation>'.encode()


def as_openi(root, films):
    rows, ids = [], {}
    for film in films:
        number, view = film.patient + 1, film.n % GOOD_EVERY
        name = f"CXR{number}_IM-{number:04d}-{view + 1}001"
        write(film, root / "NLMCXR_png" / f"{name}.png", name)
        rows.append({"uid": number, "filename": f"{name[3:]}.dcm.png", "projection": "Frontal"})
        ids.setdefault(number, []).append(name)
    (root / "ecgen-radiology").mkdir()
    for number, names in ids.items():
        (root / "ecgen-radiology" / f"{number}.xml").write_bytes(xml(number, names))
    return [table(root / "indiana_projections.csv", rows)]


LAYOUTS = {"table": as_table, "nih": as_nih, "chexpert": as_chexpert, "mimic_cxr": as_mimic, "openi": as_openi}
OPTIONS = {"mimic_cxr": {"images": "jpg"}}


def misplace(rng, film, root):
    """Puts something else than a plain file below the folder in a film's place."""
    path, outside = film.path, root / "outside"
    path.unlink()
    way = rng.integers(7)
    if way == 0:
        path.mkdir()
    elif way == 1:
        os.mkfifo(path)
    else:
        outside.mkdir(exist_ok=True)
        (outside / "film.png").write_bytes(film.content)
        targets = (outside / "film.png", "/dev/zero", "/etc/passwd", path, "../" * 30 + "etc/hostname")
        path.symlink_to(targets[way - 2])


NAMES = (
    "../outside/film.png", "/etc/passwd", "/dev/zero", "images/../../outside/film.png", "a\0b.png", "\x1b[31m.png",
    "..", ".", "/", "~/.png", "file:///etc/passwd", "http://127.0.0.1/a.png", "\\\\host\\a.png", "C:\\a.png",
    "x" * 5000, "a/" * 2000 + "b.png", "\u202egnp.png", "\ufffe", "f0.png/x", "%2e%2e/film.png", "-", "$(reboot)",
)  # fmt: skip
