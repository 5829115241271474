"""The main job as a user runs it, small: all stages, reuse, a table of one's own, a kill, and bad input."""

import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from repgls_jax import checks, evaluate, phantom, sidecars, workflow
from repgls_jax.data import shards
from repgls_jax.findings import CHEXPERT
from repgls_jax.results import metrics
from repgls_jax.train import checkpoint, refine, sharding, verified
from repgls_jax.train.journal import Journal

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ["data", "evidence", "rgn", "luvit", "evaluation"]
CANARY = "zyzzyva"


def config(arguments: str, file: str = "luvit.py"):
    return runpy.run_path(str(ROOT / "configs" / file))["get_config"](arguments)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def done(root):
    return workflow.run(config("size=test"), root, Journal(stream=None))


def test_every_stage_leaves_what_it_promises(done):
    assert list(done) == STAGES
    assert pq.read_table(done["evidence"].folder / "evidence.parquet").num_rows == done["evidence"].summary["rows"]
    rates = pq.read_table(done["rgn"].folder / "rates.parquet").column("rate").to_numpy()
    assert len(rates) == done["rgn"].summary["rates"] and np.all(np.abs(rates) < 1)
    results = json.loads((done["evaluation"].folder / "metrics.json").read_text())
    assert results["reference"] == "truth" and set(results["mean"]) == set(metrics.METRICS)
    page = (done["evaluation"].folder / "report.html").read_text()
    assert "Pneumothorax" in page
    predictions = pq.read_table(done["evaluation"].folder / "predictions.parquet")
    assert predictions.num_rows == done["data"].summary["test"] * len(CHEXPERT)


def test_a_second_run_reuses_everything_and_another_policy_only_trains_anew(done, root):
    again = workflow.run(config("size=test"), root, Journal(stream=None))
    assert all(stage.reused for stage in again.values())
    other = workflow.run(config("size=test,policy=permuted"), root, Journal(stream=None))
    assert {name: stage.reused for name, stage in other.items()} == {
        "data": True,
        "evidence": True,
        "luvit": False,
        "evaluation": False,
    }
    rgn = workflow.run(config("size=test", "rgn.py"), root, Journal(stream=None))
    assert list(rgn) == STAGES[:3] and rgn["rgn"].reused


def contents(file: pathlib.Path) -> str:
    """All that a file says: Parquet is compressed, so its cells are read."""
    if file.suffix == ".parquet":
        return str(pq.read_table(file).to_pydict())
    return file.read_bytes().decode("utf-8", "replace")


def test_evidence_made_beforehand_takes_the_place_of_reading(done, root, tmp_path):
    reports, given = done["data"].folder / "set" / "reports.parquet", tmp_path / "evidence.parquet"
    extract = [sys.executable, "data_prep/extract_uncertainty.py", f"--reports={reports}", f"--output={given}"]
    subprocess.run([*extract, "--findings=chexpert"], cwd=ROOT, check=True, capture_output=True)
    settings = config("size=test,policy=expert")
    settings.extract.evidence = str(given)
    checks.check(settings)
    prepared = workflow.prepare(settings, root, Journal(stream=None))
    ours = sidecars.read(done["evidence"].folder / "evidence.parquet", sidecars.EVIDENCE, CHEXPERT)
    assert prepared.evidence_table().equals(ours) and prepared.evidence.key != done["evidence"].key
    assert prepared.evidence.summary["reports"] == done["data"].summary["reports"]
    settings.extract.evidence = str(tmp_path / "none.parquet")
    with pytest.raises(FileNotFoundError, match=r"none\.parquet is not there"):
        checks.check(settings)


def test_report_text_stays_where_it_is(done):
    reports = pq.read_table(done["data"].folder / "set" / "reports.parquet")
    sentences = {text[:40] for field in ("findings", "report") for text in reports.column(field).to_pylist() if text}
    assert len(sentences) > 100
    for file in (f for name in STAGES[1:] for f in done[name].folder.rglob("*") if f.is_file()):
        said = contents(file)
        assert not any(sentence in said for sentence in sentences), file
    records = shards.Records(done["data"].folder / "set" / "shards", "train")
    for i in range(len(records)):
        texts = [value for value in records[i].values() if isinstance(value, str)]
        assert texts and not any(len(text) > 20 for text in texts)


def table(folder: pathlib.Path, n: int = 60) -> pathlib.Path:
    """A user's folder: phantom films as PNG, a CSV with a note for each, two broken images."""
    folder.mkdir()
    rows = []
    for i in range(n):
        study = phantom.generate(phantom.PhantomConfig(), i)
        Image.fromarray(study["image"]).save(folder / f"{i}.png")
        note = " ".join(study[f] for f in ("findings", "impression", "report")) + f" {CANARY}."
        rows.append({"image": f"{i}.png", "patient": study["patient_id"], "notes of the case": note})
    for i in (3, 9):
        (folder / f"{i}.png").write_bytes(b"not an image")
    pa.csv.write_csv(pa.Table.from_pylist(rows), folder / "films.csv")
    return folder


def test_a_table_of_ones_own(tmp_path, capsys):
    source = table(tmp_path / "mine")
    settings = config(f"size=test,data=table,source={source},epochs=4")
    settings.data.options.columns.report = "notes of the case"
    chain = workflow.run(settings, tmp_path / "runs", Journal())
    assert list(chain) == STAGES
    assert chain["data"].summary["quarantined"] == 2
    with pytest.raises(ValueError, match=r"'oracle' needs belief, which only simulated data has; choose one of u_ones"):
        workflow.run(config(f"size=test,data=table,source={source},policy=oracle"), tmp_path / "none", Journal())
    keys = set()
    for change in ("", ",findings=union", ",image_size=80"):  # what differs must not be taken for the same
        other = config(f"size=test,data=table,source={source}{change}")
        other.data.options.columns.report = "notes of the case"
        keys.add(workflow.prepare_data(other, tmp_path / "runs", Journal(stream=None)).key)
    (source / "9.png").write_bytes((source / "8.png").read_bytes())
    mended = workflow.prepare_data(settings, tmp_path / "runs", Journal(stream=None))
    assert len(keys | {mended.key}) == 4 and mended.summary["quarantined"] == 1
    results = json.loads((chain["evaluation"].folder / "metrics.json").read_text())
    assert "wording" in results["reference"]
    assert "report=notes of the case" in (chain["evaluation"].folder / "report.html").read_text()
    seen = capsys.readouterr()
    assert CANARY not in seen.out + seen.err
    for stage in STAGES[1:]:
        for file in (f for f in chain[stage].folder.rglob("*") if f.is_file()):
            assert CANARY not in contents(file), file


def run(*arguments: str, **changes: str) -> subprocess.Popen:
    env = os.environ | {"XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"} | changes
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def final_state(folder: pathlib.Path) -> dict:
    kept = checkpoint.Checkpoints(folder / "checkpoints")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = jax.device_get(kept.restore_params(mesh))
    kept.close()
    return state


@pytest.mark.slow
def test_killed_and_started_again_ends_bitwise_the_same(done, root, tmp_path):
    """SIGKILL in the middle of training, in a real process; the rest is the user's own command."""
    command = ["launch/train.py", "--config=configs/luvit.py:size=test,epochs=5", "--config.train.checkpoint_every=4"]
    for name in STAGES[:3]:  # the stages before are shared
        (tmp_path / done[name].folder.name).symlink_to(done[name].folder)
    first = run(*command, f"--workdir={tmp_path}")
    journals: list[pathlib.Path] = []
    for _ in range(1200):
        journals = [*tmp_path.glob("luvit-*/journal.jsonl")]
        if journals and any(e["step"] >= 14 for e in Journal(journals[0]).read("train")):
            break
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    told = Journal(journals[0]).read("train")
    killed = journals[0].parent
    assert 14 <= told[-1]["step"] < 29 and not (killed / "stage.json").exists()
    second = run(*command, f"--workdir={tmp_path}")
    text = second.communicate()[0]
    assert second.returncode == 0 and "resumed at step" in text, text
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in STAGES[:3]:
        (whole / done[name].folder.name).symlink_to(done[name].folder)
    third = run(*command, f"--workdir={whole}")
    assert third.wait() == 0
    undisturbed = whole / killed.name
    jax.tree.map(np.testing.assert_array_equal, final_state(killed), final_state(undisturbed))
    # Every step is told once, and with the same loss.
    entries = [
        [(e["step"], e["loss"]) for e in Journal(f / "journal.jsonl").read("train")] for f in (killed, undisturbed)
    ]
    assert entries[0] == entries[1] and [s for s, _ in entries[0]] == list(range(1, 30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("polcy=rgn", r"'polcy' is unknown; expected one of also, data, epochs"),
        ("seed=x", r"seed='x' is not of type int"),
        ("policy", r"'policy' has no value"),
        ("seed=1,seed=2", "given twice"),
        ("size=huge", r"size='huge'; expected one of test, demo, full"),
        ("source=/x", r"source are not for data=phantom"),
        ("data=mimic", r"data='mimic'; expected one of phantom, table"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        config(arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ("policy=rgnn", ValueError, r"policy='rgnn'; expected one of u_ones"),
        ("data=table", ValueError, "source=DIR"),
        ("data=table,source=/nowhere/at/all", FileNotFoundError, "/nowhere/at/all"),
        ("model=S/12", ValueError, "S/12"),
        ("model=L/14", ValueError, "64 pixels do not divide into the patches of L/14"),
        ("mesh=pp", ValueError, "mesh='pp'"),
    ],
)
def test_bad_settings_are_told_before_work_is_done(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        workflow.run(config(f"size=test,{arguments}"), tmp_path, Journal(stream=None))
    assert not list(tmp_path.iterdir())


def test_missing_checkpoint_and_run(done, tmp_path):
    settings = {"batch_size": 32, "replicates": 0}
    with pytest.raises(FileNotFoundError, match=r"run\.json; expected the folder of a LU-ViT run"):
        evaluate.run(tmp_path, tmp_path, "test", settings, Journal(stream=None))
    (tmp_path / "run.json").write_text((done["luvit"].folder / "run.json").read_text())
    with pytest.raises(FileNotFoundError, match="holds no folder 'checkpoints'"):
        evaluate.run(tmp_path, tmp_path, "test", settings, Journal(stream=None))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        evaluate.run(tmp_path, tmp_path, "test", settings, Journal(stream=None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/luvit.py:data=table,source=/nowhere/at/all"], "/nowhere/at/all"),
        (["--config=configs/luvit.py:polcy=rgn"], "'polcy' is unknown; expected one of also, data"),
        (["--config=configs/luvit.py", "--config.polic.name=rgn"], "polic"),
        (["--config=configs/none.py"], "configs/none.py"),
    ],
)
def test_commands_end_with_the_message_and_no_traceback(arguments, message):
    process = run("launch/train.py", *arguments)
    text = process.communicate()[0]
    assert process.returncode == 1 and "error: " in text and message in text and "Traceback" not in text


def verified_table(done, path, splits):
    """Truth of studies of some splits, as experts would write it down."""
    lines = ["study_id," + ",".join(CHEXPERT.findings)]
    for split in splits:
        known = shards.examples(done["data"].folder / "set" / "shards", split)
        for study, truth in zip(known["study_id"], known["truth"], strict=True):
            lines.append(f"{study}," + ",".join(map(str, truth.tolist())))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rates_are_refined_by_verified_studies_and_trained_under(done, root, tmp_path):
    table = verified_table(done, tmp_path / "labels.csv", ["valid", "test", "train"])
    settings = refine.RefineConfig(steps=4, batch_size=16, verified_size=8)
    told = verified.run(done["luvit"].folder, table, tmp_path / "refined", settings, 100, 0, Journal(stream=None))
    counts = done["data"].summary
    assert (told["verified"], told["left_out"]) == (counts["valid"] + counts["test"], counts["train"])
    path = tmp_path / "refined" / "rates.parquet"
    new = sidecars.read(path, sidecars.RATES, CHEXPERT)
    assert new.num_rows == counts["train"] * len(CHEXPERT)  # "not mentioned" has a rate as well
    given = sidecars.read(done["rgn"].folder / "rates.parquet", sidecars.RATES, CHEXPERT)
    ids = sorted(set(new.column("study_id").to_pylist()))
    before, after = (sidecars.as_array(t, "rate", ids, CHEXPERT, np.nan) for t in (given, new))
    assert np.all(np.abs(after) < 1) and "not mentioned" in told["groups"]
    said = ~np.isnan(before)
    moved = np.arctanh(after[said].astype(float)) - np.arctanh(np.clip(before[said], -refine.EDGE, refine.EDGE))
    assert 0 < np.abs(moved).max() <= np.abs(told["delta"]).max() + 1e-3
    anew = config("size=test")
    anew.rgn.rates = str(path)
    again = workflow.run(anew, root, Journal(stream=None))
    assert again["rgn"].summary == {"rates": new.num_rows, "given": True} and not again["luvit"].reused
    assert again["evidence"].reused


def test_too_few_verified_studies_are_refused(done, tmp_path):
    table = verified_table(done, tmp_path / "labels.csv", ["train"])
    with pytest.raises(ValueError, match="0 of them in the build's validation or test split"):
        verified.run(done["luvit"].folder, table, tmp_path, refine.RefineConfig(), 10, 0, Journal(stream=None))
