"""Words of reports and ids of patients stay where they are needed, through the whole chain.

Reports carry a canary sentence, and patients and studies have canaries for names. After data, evidence, RGN, training,
evaluation, saliency, export and prediction every byte that was left or printed is searched, inside Parquet, archives,
arrays, pictures and pictures in pages too.

Where a canary may stand, and why:

  data           reports.parquet and the shards hold what they were made for: words and ids, where they were made
  evidence, rgn  the side-cars are keyed by study: its id, no patient's and no word
  evaluation     predictions.parquet names the patient and the study of each film, for who scores by patient
"""

import base64
import io
import pathlib
import re
import zipfile

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_workflow import config

from repgls_jax import phantom, trained, workflow
from repgls_jax.exports import job
from repgls_jax.predict import inputs
from repgls_jax.predict import run as predict
from repgls_jax.saliency import explain
from repgls_jax.train.journal import Journal

WORDS, PATIENT, STUDY = b"zyzzyvas nest here", b"quetzalpatient", b"xylophagestudy"
FILMS = 48


def table(folder: pathlib.Path) -> pathlib.Path:
    """Films of the phantom with reports and ids that carry canaries, one of them broken."""
    folder.mkdir()
    rows = []
    for i in range(FILMS):
        study = phantom.generate(phantom.PhantomConfig(), i)
        Image.fromarray(study["image"]).save(folder / f"{i}.png")
        text = " ".join(study[field] for field in ("findings", "impression", "report"))
        report = f"Possible pneumonia, {WORDS.decode()}. {text} Likely effusion where {WORDS.decode()}."
        ids = {"patient": f"{PATIENT.decode()}{i // 2}", "study": f"{STUDY.decode()}{i}"}
        rows.append({"image": f"{i}.png", **ids, "report": report})
    (folder / "5.png").write_bytes(b"no image")
    pa.csv.write_csv(pa.Table.from_pylist(rows), folder / "films.csv")
    return folder


def contents(name: str, content: bytes) -> bytes:
    """Everything that a file says, also what is packed in it."""
    said = [content]
    if content[:4] == b"PAR1":
        file = pq.ParquetFile(io.BytesIO(content))
        said += [str(file.read().to_pydict()).encode(), str(file.schema_arrow.metadata).encode()]
    elif content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            said += [contents(member, archive.read(member)) for member in archive.namelist()]
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        picture = Image.open(io.BytesIO(content))
        picture.load()
        said += [str(picture.info).encode(), picture.tobytes()]
    elif name.endswith((".html", ".md", ".json")):
        packed = re.findall(rb"base64,([A-Za-z0-9+/=]+)", content)
        said += [contents("", base64.b64decode(part)) for part in packed]
    return b"\n".join(said).lower()


def found(folder: pathlib.Path) -> dict[str, set[bytes]]:
    """File -> canaries in it or in its name."""
    there = {}
    for file in (f for f in folder.rglob("*") if f.is_file()):
        said = contents(file.name, file.read_bytes()) + file.name.encode()
        there[file.relative_to(folder).as_posix()] = {c for c in (WORDS, PATIENT, STUDY) if c in said}
    return {name: canaries for name, canaries in there.items() if canaries}


def test_the_search_finds_what_is_hidden(tmp_path):
    hidden = {"a.parquet": io.BytesIO(), "b.npz": io.BytesIO(), "c.png": io.BytesIO()}
    pq.write_table(pa.table({"x": [PATIENT.decode()] * 99}), hidden["a.parquet"], compression="zstd")
    np.savez_compressed(hidden["b.npz"], names=np.array([STUDY] * 99))
    text = PngInfo()
    text.add_text("note", WORDS.decode(), zip=True)
    Image.new("L", (4, 4)).save(hidden["c.png"], "PNG", pnginfo=text)
    for name, file in hidden.items():
        (tmp_path / name).write_bytes(file.getvalue())
    (tmp_path / "d.html").write_bytes(
        b'src="data:image/png;base64,' + base64.b64encode(hidden["c.png"].getvalue()) + b'"'
    )
    (tmp_path / STUDY.decode()).write_text("")
    wanted = {"a.parquet": {PATIENT}, "b.npz": {STUDY}, "c.png": {WORDS}, "d.html": {WORDS}, STUDY.decode(): {STUDY}}
    assert found(tmp_path) == wanted


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return table(tmp_path_factory.mktemp("source") / "films")


@pytest.mark.slow
def test_words_and_ids_stay_where_they_are_needed(source, tmp_path, capfd, monkeypatch):
    said: list[str] = []
    stream = io.StringIO()
    chain = workflow.run(config(f"size=test,data=table,source={source}"), tmp_path / "runs", Journal(stream=stream))
    folders = {name: stage.folder for name, stage in chain.items()}
    model = trained.load(folders["luvit"])
    for name in ("explain", "predict"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
    settings = explain.Settings(limit=4, draw=2, batch_size=4, replicates=0, methods=("attention",))
    explain.run(model, folders["data"] / "set", folders["explain"], settings, said.append)
    folders["export"] = tmp_path / "export"
    # Compared elsewhere, by tests/test_exports.py.
    monkeypatch.setattr(job.compare, "compare", lambda *_: {"max_difference": {"none": 0.0}})
    job.run(folders["luvit"], folders["export"], ["native", "stablehlo"], Journal(stream=stream))
    exported = predict.load(str(folders["export"]))
    paths, _ = inputs.find([str(source)])
    frame = predict.frame_of(exported, "youden", None)
    for end in ("csv", "json", "parquet"):
        pictures = folders["predict"] / "pictures" if end == "csv" else None
        output = folders["predict"] / f"out.{end}"
        predict.run(exported, paths[:4], output, frame, said.append, pictures, batch_size=4)

    printed = capfd.readouterr()
    told = (printed.out + printed.err + stream.getvalue() + "\n".join(said)).lower().encode()
    assert b"luvit" in told and not [c for c in (WORDS, PATIENT, STUDY) if c in told]
    weights = b"".join(
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model.params)
    ).lower()  # compressed on disk
    assert not [c for c in (WORDS, PATIENT, STUDY) if c in weights]
    where = {name: found(folder) for name, folder in folders.items()}
    assert set(where) >= {"data", "evidence", "rgn", "luvit", "evaluation", "explain", "export", "predict"}
    assert where["data"]["set/reports.parquet"] >= {WORDS, STUDY}
    assert not any(WORDS in canaries for name in where if name != "data" for canaries in where[name].values())
    assert where["evidence"] == {"evidence.parquet": {STUDY}} and where["rgn"] == {"rates.parquet": {STUDY}}
    assert where["evaluation"] == {"predictions.parquet": {PATIENT, STUDY}}
    for name in ("luvit", "explain", "export", "predict"):
        assert where[name] == {}, name
    everywhere = found(tmp_path)  # what lies beside the stages too
    known = {folder.relative_to(tmp_path).as_posix() for folder in folders.values()}
    assert not [file for file in everywhere if not any(file.startswith(f"{folder}/") for folder in known)]
