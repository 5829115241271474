"""Evaluation of runs, checkpoints and exports on builds: what is written, what is refused, and what is not shown."""

import io
import json
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from test_trained import weights

from repgls_jax import evaluate, trained, workflow
from repgls_jax.data import shards
from repgls_jax.evaluation import outputs, sets
from repgls_jax.exports import native
from repgls_jax.findings import CHEXPERT, NIH, Vocabulary
from repgls_jax.models import luvit
from repgls_jax.results import operating, strata
from repgls_jax.train import checkpoint
from repgls_jax.train.journal import Journal

ROOT = pathlib.Path(__file__).parents[1]
SIZE = 64
QUICK = {"batch_size": 32, "replicates": 50, "gallery": 4}
FILES = {outputs.PREDICTIONS, outputs.METRICS, outputs.TABLE, outputs.THRESHOLDS, outputs.PAGE}


def save(folder: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Two checkpoints of random weights, of which the first is the better one."""
    model = luvit.build("tiny/16", len(vocabulary))
    meta = {"vocabulary": vocabulary.name, "findings": list(vocabulary.findings), "model": luvit.describe(model)}
    meta |= {"input": luvit.input_contract(np.uint8, SIZE), "policy": {"name": "expert"}, "pretrained": None}
    kept = checkpoint.Checkpoints(folder / "checkpoints", "mean_auroc")
    for step, score in ((1, 0.8), (2, 0.7)):
        kept.save(step, {"params": weights(model, step, SIZE)}, meta, {"mean_auroc": score})
    kept.wait()
    kept.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The stages before training, of 80 studies."""
    folder = tmp_path_factory.mktemp("runs")
    config = runpy.run_path(str(ROOT / "configs" / "luvit.py"))["get_config"]("size=test,policy=expert")
    config.data.options.count = 80
    done = workflow.prepare(config, folder, Journal(stream=None))
    for name, vocabulary in (("luvit-1", CHEXPERT), ("luvit-2", NIH)):
        save(folder / name, vocabulary)
    assert done.evidence is not None
    stages = {"data": done.data.folder.name, "evidence": done.evidence.folder.name}
    (folder / "luvit-1" / "run.json").write_text(json.dumps({"config": {}, "stages": stages}))
    return folder


@pytest.fixture(scope="module")
def place(root):
    (build,) = root.glob("data-*")
    (evidence,) = root.glob("evidence-*/evidence.parquet")
    return sets.place(build, evidence)


@pytest.fixture(scope="module")
def scored(root, tmp_path_factory):
    output = tmp_path_factory.mktemp("scored")
    evaluate.run(root / "luvit-1", output, "test", QUICK, Journal(stream=None))
    return output


def read(folder: pathlib.Path) -> dict:
    return json.loads((folder / outputs.METRICS).read_text())


def probabilities(folder: pathlib.Path, name: str = "probability") -> np.ndarray:
    column = pq.read_table(folder / outputs.PREDICTIONS).column(name)
    return column.to_numpy(zero_copy_only=False).reshape(-1, len(CHEXPERT))


def test_everything_is_written_and_the_numbers_are_those_of_the_predictions(scored, root):
    assert {file.name for file in scored.iterdir()} == FILES
    results, p, y = read(scored), probabilities(scored), probabilities(scored, "label")
    assert results["split"] == "test" and results["reference"] == "truth" and results["model"]["step"] == 2
    assert {"operating", "selective", "strata", "curves", "findings", "mean"} <= set(results)
    for j, finding in enumerate(CHEXPERT.findings):
        value = results["findings"][finding]["auroc"]["value"]
        if len(np.unique(y[:, j])) == 2:
            assert value == pytest.approx(roc_auc_score(y[:, j], p[:, j]), abs=1e-6)
        else:
            assert value is None
    said = pq.read_table(scored / outputs.PREDICTIONS).column("wording").to_pylist()
    assert set(said) == set(strata.CERTAINTY)
    levels = results["strata"]["what the report says"]
    assert {level: row["labels"] for level, row in levels.items()} == {level: said.count(level) for level in levels}
    table = (scored / outputs.TABLE).read_text()
    assert "**youden**" in table and "| what the report says | hedged |" in table and "Selective risk" in table


def test_thresholds_are_chosen_on_the_validation_split(scored, root, place):
    told = json.loads((scored / outputs.THRESHOLDS).read_text())
    alignment = sets.align(CHEXPERT, shards.vocabulary(place.shards))
    held = sets.read(place, "valid", alignment)
    model = trained.load(root / "luvit-1")
    images = shards.images(place.shards, "valid", range(len(held.labels)))
    p = np.asarray(model.forward(images)[0])
    expected = operating.choose(p, held.labels, held.mask, CHEXPERT.findings)
    for rule, each in expected.items():
        for finding, value in each.items():
            assert told[rule][finding] == (None if value is None else pytest.approx(value, abs=1e-6))
    rules = read(scored)["operating"]["rules"]
    assert rules["youden"]["findings"]["Edema"]["threshold"] == told["youden"]["Edema"]


def test_the_checkpoint_asked_for_is_scored(scored, root, tmp_path):
    for which, step in (("best", 1), (1, 1)):
        output = tmp_path / str(which)
        output.mkdir()
        evaluate.run(root / "luvit-1", output, "valid", QUICK | {"checkpoint": which}, Journal(stream=None))
        results = read(output)
        assert results["model"]["step"] == step and results["split"] == "valid"
        assert "read what they give with care" in results["operating"]["thresholds"]
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
        evaluate.run(root / "luvit-1", tmp_path, "test", QUICK | {"checkpoint": 7}, Journal(stream=None))


@pytest.fixture(scope="module")
def export(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "native"
    folder.mkdir()
    model = trained.load(root / "luvit-1")
    vocabulary = {"name": "chexpert", "version": 1, "findings": list(CHEXPERT.findings)}
    parts = {"model": model.description, "vocabulary": vocabulary, "input": model.input, "source": model.source}
    parts |= {"preprocessing": model.preprocessing, "thresholds": {"youden": dict.fromkeys(CHEXPERT.findings, 0.25)}}
    native.write(folder, jax.device_get(model.params), parts)
    return folder


def test_an_export_on_a_build_scores_as_its_run_with_its_own_thresholds(scored, root, export, place, tmp_path):
    evaluate.model(export, place, tmp_path, "test", QUICK, Journal(stream=None))
    one, other = read(scored), read(tmp_path)
    assert one["findings"] == other["findings"] and one["mean"] == other["mean"]
    assert other["operating"]["thresholds"] == "stored with the model"
    assert other["operating"]["rules"]["youden"]["findings"]["Edema"]["threshold"] == 0.25
    evaluate.model(export, place, tmp_path, "test", QUICK | {"thresholds": "valid"}, Journal(stream=None))
    assert read(tmp_path)["operating"] == one["operating"]
    given = QUICK | {"thresholds": str(scored / outputs.THRESHOLDS)}
    evaluate.model(export, place, tmp_path, "test", given, Journal(stream=None))
    assert read(tmp_path)["operating"]["rules"] == one["operating"]["rules"]
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json are not JSON"):
        evaluate.model(export, place, tmp_path, "test", QUICK | {"thresholds": str(tmp_path / "bad.json")}, Journal())


def test_findings_that_cannot_be_scored_are_told(root, place, tmp_path):
    stream = io.StringIO()
    evaluate.model(root / "luvit-2", place, tmp_path, "test", QUICK, Journal(stream=stream))
    results = read(tmp_path)
    shared = [f for f in NIH.findings if f in CHEXPERT.findings]
    assert results["vocabulary"]["findings"] == shared == list(results["findings"])
    assert results["not_scored"]["no_labels"] == [f for f in NIH.findings if f not in shared]
    assert results["not_scored"]["unknown"] == [f for f in CHEXPERT.findings if f not in shared]
    said = "no labels in the data: Infiltrate, Mass"
    assert said in stream.getvalue() and said in (tmp_path / outputs.PAGE).read_text()
    rows = pq.read_table(tmp_path / outputs.PREDICTIONS)
    label = dict(zip(NIH.findings, rows.column("label").to_pylist()[: len(NIH)], strict=True))
    assert label["Mass"] is None and label["Edema"] is not None
    with pytest.raises(ValueError, match=r"have none in common"):
        sets.align(Vocabulary("a", 1, ("Mass",)), Vocabulary("b", 1, ("Edema",)))


def test_two_models_are_compared_on_the_same_images(root, export, tmp_path):
    evaluate.run(root / "luvit-1", tmp_path, "test", QUICK, Journal(stream=None), against=export)
    found = json.loads((tmp_path / outputs.COMPARISON).read_text())
    assert all(row["auroc"]["value"] in (0.0, None) for row in found["findings"].values())
    assert {file.name for file in (tmp_path / "against").iterdir()} == FILES - {outputs.PAGE}
    evaluate.run(
        root / "luvit-1", tmp_path, "test", QUICK | {"checkpoint": 1}, Journal(stream=None), against=root / "luvit-1"
    )
    config = QUICK | {"checkpoint": "latest"}
    with pytest.raises(ValueError, match="models are compared on the same findings"):
        evaluate.run(root / "luvit-1", tmp_path, "test", config, Journal(stream=None), against=root / "luvit-2")


def test_a_difference_is_first_less_second_and_delong_agrees(scored, root, tmp_path):
    """Against the other checkpoint, copied so that it is the newest of a run of its own."""
    other = trained.load(root / "luvit-1", which=1)
    folder = tmp_path / "native"
    folder.mkdir()
    vocabulary = {"name": "chexpert", "version": 1, "findings": list(CHEXPERT.findings)}
    parts = {"model": other.description, "vocabulary": vocabulary, "input": other.input, "source": other.source}
    native.write(folder, jax.device_get(other.params), parts | {"preprocessing": other.preprocessing})
    settings = QUICK | {"replicates": 400, "gallery": 0}
    evaluate.run(root / "luvit-1", tmp_path, "test", settings, Journal(stream=None), against=folder)
    found = json.loads((tmp_path / outputs.COMPARISON).read_text())
    row = found["findings"]["No Finding"]
    ours, theirs = (read(f)["findings"]["No Finding"]["auroc"]["value"] for f in (tmp_path, tmp_path / "against"))
    assert row["auroc"]["value"] == pytest.approx(ours - theirs) == pytest.approx(row["delong"]["difference"])
    assert row["auroc"]["high"] - row["auroc"]["low"] == pytest.approx(
        row["delong"]["high"] - row["delong"]["low"], rel=0.35
    )
    page = (tmp_path / outputs.PAGE).read_text()
    assert 'id="comparison"' in page and 'id="gallery"' not in page
    assert found["first"] in (tmp_path / outputs.COMPARISON_TABLE).read_text()


def test_groups_of_the_users_own(root, place, tmp_path):
    studies = [str(s) for s in shards.examples(place.shards, "test")["study_id"]]
    file = tmp_path / "groups.csv"
    lines = [f"{study},{'ward' if i % 2 else 'clinic'}" for i, study in enumerate(dict.fromkeys(studies))]
    file.write_text("\n".join(["study_id,site", *lines, "another,ward"]))
    groups = sets.read_groups(file, studies)
    labelled = sets.read(place, "test", sets.align(CHEXPERT, CHEXPERT))
    levels = sets.strata_of(labelled, groups)["site"]
    assert set(levels) == {"ward", "clinic"} and sum(of.sum() for of in levels.values()) == len(studies)
    for text, message in (
        ("study,site\n", "expected study_id and one more"),
        ("study_id\n", "expected study_id and one more"),
        ("study_id,site\nnone,x\n", "has none of the"),
        (f"study_id,site\n{studies[0]},x\n{studies[0]},y\n", "two values of 'site', line 3"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            sets.read_groups(file, studies)


def test_the_page_shows_films_and_no_identifiers_unless_asked(scored, root, place, tmp_path):
    page = (scored / outputs.PAGE).read_text()
    examples = shards.examples(place.shards, "test")
    ids = {str(v) for name in ("image_id", "study_id", "patient_id") for v in examples[name]}
    assert page.count('src="data:image/png;base64,') == 12 and "img-src data:" in page
    assert not re.findall(r'src="(?!data:image/png;base64,[A-Za-z0-9+/=]+")', page) and not re.search("https?:", page)
    words = set(re.findall(r"[\w.-]+", re.sub(r'src="[^"]*"', "", page)))
    assert not ids & words
    reports = pq.read_table(place.shards.parent / "reports.parquet")
    sentences = {text[:40] for field in ("findings", "report") for text in reports.column(field).to_pylist() if text}
    for file in scored.iterdir():
        said = str(pq.read_table(file).to_pydict()) if file.suffix == ".parquet" else file.read_text()
        assert len(sentences) > 20 and not any(sentence in said for sentence in sentences), file
    evaluate.run(root / "luvit-1", tmp_path, "test", QUICK | {"show_ids": True}, Journal(stream=None))
    shown = set(re.findall(r"[\w.-]+", re.sub(r'src="[^"]*"', "", (tmp_path / outputs.PAGE).read_text())))
    assert ids & shown


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "metrics.json"
    outputs.as_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        outputs.as_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_other_images_and_missing_data_are_refused(root, place, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a build of data_prep/build.py"):
        sets.place(tmp_path)
    settings = QUICK | {"groups": str(tmp_path / "none.csv")}
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        evaluate.model(root / "luvit-1", place, tmp_path, "test", settings, Journal(stream=None))
    with pytest.raises(FileNotFoundError, match=r"thresholds .* do not exist"):
        config = QUICK | {"thresholds": str(tmp_path / "none.json")}
        evaluate.model(root / "luvit-1", place, tmp_path, "test", config, Journal(stream=None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=x"], "--model needs --data=BUILD"),
        (["--run=/nowhere"], "error: /nowhere holds no run.json"),
    ],
)
@pytest.mark.slow
def test_the_command_ends_with_the_message(arguments, message, tmp_path):
    command = [sys.executable, "launch/evaluate.py", f"--output={tmp_path}", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode and message in ran.stdout + ran.stderr and "Traceback" not in ran.stderr
