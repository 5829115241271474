"""Films through a model into a table: right, in order, whatever else lies there, and nothing lost."""

import csv
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from dicom_files import film as dicom_film
from PIL import Image
from test_trained import META, SIZE, make_run

from repgls_jax import trained
from repgls_jax.data import images
from repgls_jax.exports import native, reference, stablehlo
from repgls_jax.findings import CHEXPERT
from repgls_jax.models import luvit
from repgls_jax.predict import inputs, tables
from repgls_jax.predict import run as predict

ROOT = pathlib.Path(__file__).parents[1]
THRESHOLDS = {"youden": dict.fromkeys(CHEXPERT.findings, 0.5) | {"Edema": None, "Fracture": 0.0}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "luvit-1"
    make_run(folder, luvit.build("tiny/16", len(CHEXPERT)))
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Parts native and stablehlo with thresholds, and a reference of noise."""
    folder = tmp_path_factory.mktemp("export")
    model = trained.load(run)
    noise = np.random.default_rng(1).integers(0, 256, (120, SIZE, SIZE, 1), np.uint8)
    vocabulary = {"name": "chexpert", "version": 1, "findings": list(CHEXPERT.findings)}
    parts = {"model": model.description, "vocabulary": vocabulary, "input": META["input"], "source": model.source}
    parts |= {"preprocessing": {"fit": "pad"}, "thresholds": THRESHOLDS, "reference": reference.make(noise)}
    for name in ("native", "stablehlo"):
        (folder / name).mkdir()
    native.write(folder / "native", jax.device_get(model.params), parts)
    stablehlo.write(folder / "stablehlo", model.model, model.params, {k: v for k, v in parts.items() if k != "model"})
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Seven films of several kinds, two files that are none, and one of another kind."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50), np.uint8)).save(folder / f"{i}.png")
    (folder / "deeper").mkdir()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "deeper" / "colour.JPG")
    Image.fromarray(rng.integers(0, 2**16, (40, 40), np.uint16)).save(folder / "deeper" / "deep.png")
    (folder / "deeper" / "IM0001").write_bytes(dicom_film(rng.integers(0, 4096, (48, 24), np.uint16), 12))
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "text.dcm").write_text("no film")
    (folder / "notes.txt").write_text("no film either")
    return folder


def say(said: list[str]):
    return said.append


def table(model, paths, output, said=None, **options):
    frame = predict.frame_of(model, "youden", None)
    return predict.run(model, paths, output, frame, say([] if said is None else said), **options)


def test_films_are_found_once_in_order_and_the_rest_is_counted(films):
    found, left_out = inputs.find([str(films / "3.png"), str(films)])
    names = [p.relative_to(films).as_posix() for p in found]
    assert names == ["3.png", "0.png", "1.png", "2.png", "broken.png", "text.dcm"] + [
        f"deeper/{n}" for n in ("IM0001", "colour.JPG", "deep.png")
    ]
    assert left_out == 1
    with pytest.raises(FileNotFoundError, match=r"nowhere, .*neither"):
        inputs.find([str(films / "nowhere"), str(films), str(films / "neither")])
    with pytest.raises(ValueError, match=r"no film in .*expected files ending in \.png"):
        inputs.find([])


def test_the_tables_say_what_the_model_says(exported, films, tmp_path):
    model = predict.load(str(exported))
    paths, _ = inputs.find([str(films)])
    said: list[str] = []
    counts = [table(model, paths, tmp_path / f"out{end}", said, batch_size=3) for end in tables.WRITERS]
    assert counts == [{"films": 7, "skipped": 2, "warned": counts[0]["warned"]}] * 3
    assert sum("skipped: " in line for line in said) == 6
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    good = [p for p in paths if p.name not in ("broken.png", "text.dcm")]
    assert [row["file"] for row in rows[:: len(CHEXPERT)]] == [str(p) for p in good]
    stacked = np.stack([images.read(p, SIZE, 10.0)[..., None] for p in good])
    probability, rate = model.forward(stacked)
    np.testing.assert_allclose([row["probability"] for row in rows], np.ravel(probability), atol=1e-6)
    np.testing.assert_allclose([row["rate"] for row in rows], np.ravel(rate), atol=1e-6)
    for row in rows:
        assert row["threshold"] == THRESHOLDS["youden"][row["finding"]]
        assert row["call"] == (None if row["finding"] == "Edema" else row["probability"] >= row["threshold"])
    with (tmp_path / "out.csv").open(newline="") as file:
        for theirs, ours in zip(csv.DictReader(file), rows, strict=True):
            assert np.float32(theirs["probability"]) == np.float32(ours["probability"])
            assert np.float32(theirs["rate"]) == np.float32(ours["rate"]) and theirs["warning"] == ours["warning"]
            assert theirs["call"] == {None: "", True: "1", False: "0"}[ours["call"]]
    skipped = list(csv.DictReader((tmp_path / "out.csv.skipped.csv").read_text().splitlines()))
    assert [row["file"] for row in skipped] == [str(films / name) for name in ("broken.png", "text.dcm")]
    assert all(row["reason"].startswith("not a readable PNG") for row in skipped)
    told = json.loads((tmp_path / "out.json").read_text())
    flat = [(f["file"], n, v["call"]) for f in told["films"] for n, v in f["findings"].items()]
    assert flat == [(row["file"], row["finding"], row["call"]) for row in rows]
    assert told["model"]["source"]["step"] == 2 and not list(tmp_path.glob("*.partial"))


def test_a_program_and_another_batch_size_say_the_same(exported, films, tmp_path):
    paths, _ = inputs.find([str(films)])
    said: list[str] = []
    table(predict.load(str(exported)), paths, tmp_path / "a.parquet", said, batch_size=7)
    table(predict.load(str(exported / "stablehlo")), paths, tmp_path / "b.parquet", batch_size=2)
    a, b = (pq.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert a.drop_columns(["probability", "rate"]) == b.drop_columns(["probability", "rate"])
    for name in ("probability", "rate"):
        np.testing.assert_allclose(a[name].to_numpy(), b[name].to_numpy(), atol=1e-6)
    assert any("aspect" in line for line in said if "IM0001" in line)  # half as wide as noise in squares
    with pytest.raises(ValueError, match="no weights to draw overlays by"):
        table(predict.load(str(exported / "stablehlo")), paths, tmp_path / "c.csv", overlays=tmp_path / "o")


def test_a_run_without_thresholds_calls_nothing_unless_they_are_given(run, films, tmp_path):
    model = predict.load(str(run), "best")
    said: list[str] = []
    table(model, [films / "0.png"], tmp_path / "out.parquet", said)
    assert pq.read_table(tmp_path / "out.parquet")["call"].null_count == len(CHEXPERT)
    assert "none is checked" in said[0]
    (tmp_path / "t.json").write_text(json.dumps(THRESHOLDS))
    assert predict.frame_of(model, "youden", tmp_path / "t.json").thresholds[:2] == (0.5, 0.5)
    with pytest.raises(ValueError, match="rule 'f1' has no thresholds; expected one of youden"):
        predict.frame_of(model, "f1", tmp_path / "t.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ValueError, match=r"t\.json is not JSON"):
        predict.frame_of(model, "youden", tmp_path / "t.json")


def test_broken_off_nothing_that_was_done_is_lost(exported, films, tmp_path, monkeypatch):
    model = predict.load(str(exported))
    paths = [films / f"{i}.png" for i in range(4)]
    for end, writer in tables.WRITERS.items():
        output = tmp_path / f"out{end}"
        output.write_text("of before")
        whole = predict.predict
        calls = iter([0, 1])

        def stop(*args, calls=calls, whole=whole):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return whole(*args)

        monkeypatch.setattr(predict, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            table(model, paths, output, batch_size=1)
        monkeypatch.setattr(predict, "predict", whole)
        assert output.read_text() == "of before" and writer is tables.writer_for(output)
        partial = output.with_name(output.name + ".partial")
        if end == ".parquet":
            found = pq.read_table(partial)["file"].to_pylist()
        elif end == ".json":
            found = [film["file"] for film in json.loads(partial.read_text())["films"]]
        else:
            found = [row["file"] for row in csv.DictReader(partial.read_text().splitlines())]
        assert list(dict.fromkeys(found)) == [str(p) for p in paths[:2]]


def test_a_model_of_16_bits_is_given_16_bits(films):
    contract = luvit.input_contract(np.uint16, SIZE)
    read = inputs.reader(contract, {"fit": "crop"}, None)
    film = read(films / "deeper" / "deep.png")
    assert film.image.dtype == np.uint16 and film.said == ""
    np.testing.assert_array_equal(film.image[..., 0], images.read(films / "deeper" / "deep.png", SIZE, 9.0, 16, "crop"))
    with pytest.raises(ValueError, match="has fit 'stretch'; expected pad or crop"):
        inputs.reader(contract, {"fit": "stretch"}, None)


def test_a_batch_that_is_all_bad_and_a_name_that_is_no_text(exported, tmp_path):
    names = [b"\xff\xfe.png", b"b.png"]
    paths = [pathlib.Path(str(tmp_path.joinpath(n.decode("utf-8", "surrogateescape")))) for n in names]
    for path in paths:
        path.write_bytes(b"")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "c.png")
    (tmp_path / "c.png").rename(paths[0])
    said: list[str] = []
    counts = table(predict.load(str(exported)), paths[::-1], tmp_path / "out.csv", said, batch_size=1)
    assert counts == {"films": 1, "skipped": 1, "warned": 1}
    assert "\\udcff\\udcfe.png,No Finding," in (tmp_path / "out.csv").read_text()


def test_the_command(exported, films, tmp_path):
    command = [sys.executable, "launch/predict.py", f"--model={exported}", str(films)]
    command += [f"--output={tmp_path / 'new' / 'out.csv'}", f"--overlays={tmp_path / 'pictures'}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 3, ended.stderr
    assert "7 films in" in ended.stderr and "2 skipped" in ended.stderr and "1 others" in ended.stderr
    assert len((tmp_path / "new" / "out.csv").read_text().splitlines()) == 1 + 7 * len(CHEXPERT)
    drawn = sorted((tmp_path / "pictures").iterdir())
    assert [p.name for p in drawn][:2] == ["000000_0.png", "000001_1.png"] and len(drawn) == 7
    assert all(Image.open(p).format == "PNG" for p in drawn)
    bad = subprocess.run(
        [sys.executable, "launch/predict.py", f"--model={tmp_path}", str(films), f"--output={tmp_path / 'out.txt'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    assert r"ending that is unknown; expected .csv, .json, .parquet" in bad.stderr
