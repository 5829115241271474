"""Writing shards, reports and manifest, and reading them back."""

import hashlib
import importlib
import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from repgls_jax import data, findings
from repgls_jax.data import builder, shards
from repgls_jax.data.source import Quarantined, Source
from repgls_jax.phantom import PhantomConfig, generate


class Stub:
    """Random records with every field; some quarantined."""

    simulated = True
    vocabulary = findings.CHEXPERT
    image_size = 12
    bits = 8

    def __init__(self, counts, bad=(), seed=0, fail_at=None):
        self.counts, self.bad, self.seed, self.fail_at = counts, set(bad), seed, fail_at

    def splits(self):
        return dict(self.counts)

    def record(self, split, i):
        if i == self.fail_at:
            raise KeyboardInterrupt
        return Quarantined(f"{split}-{i}", "made bad") if (split, i) in self.bad else self.made(split, i)

    def made(self, split, i):
        rng = np.random.default_rng([self.seed, len(split), i])
        c = len(self.vocabulary)
        return {
            "image": rng.integers(0, 256, (12, 12), np.uint8),
            "image_id": f"{split}-{i}-é",
            "patient_id": f"{split}-p{i // 2}",
            "study_id": f"{split}-s{i}",
            "view": "AP",
            "sex": "FM"[i % 2],
            "age": 20 + i,
            "findings": "Invented findings.",
            "impression": "",
            "report": "",
            "has_report": i % 3 != 0,
            "labels": rng.integers(-2, 2, c).astype(np.int8),
            "observed": rng.random(c) < 0.5,
            "truth": rng.integers(0, 2, c).astype(np.int8),
            "contrast": rng.random(c, np.float32),
            "belief": rng.random(c, np.float32),
            "reader": np.int32(i),
            "masks": rng.integers(0, 2**16, (12, 12), np.uint16),
        }

    def parameters(self):
        return {"seed": self.seed}


COUNTS = {"train": 11, "valid": 3, "test": 4}


def digest(folder):
    return {p.name: p.read_bytes() for p in sorted(pathlib.Path(folder).iterdir()) if p.is_file()}


def test_every_field_comes_back(tmp_path):
    source = Stub(COUNTS)
    data.build_source(source, tmp_path / "out")
    for split, count in COUNTS.items():
        records = shards.Records(tmp_path / "out" / "shards", split)
        assert len(records) == count
        table = shards.examples(tmp_path / "out" / "shards", split)
        assert "image" not in table and "masks" not in table
        for i in range(count):
            wanted, got = source.record(split, i), records[i]
            wanted |= {"image": wanted["image"][..., None], "masks": wanted["masks"][..., None]}
            assert set(got) == set(wanted) - {"findings", "impression", "report"}
            for name, value in got.items():
                np.testing.assert_array_equal(value, wanted[name], err_msg=name)
                if isinstance(wanted[name], np.ndarray):
                    assert value.dtype == wanted[name].dtype, name
                if name in table:
                    np.testing.assert_array_equal(table[name][i], wanted[name], err_msg=name)
        np.testing.assert_array_equal(
            shards.masks(tmp_path / "out" / "shards", split, [2, 0])[0], source.record(split, 2)["masks"]
        )
    assert (
        table["labels"].dtype == np.int8 and table["belief"].dtype == np.float32 and table["reader"].dtype == np.int32
    )
    assert table["has_report"].dtype == bool and table["observed"].dtype == bool
    assert shards.vocabulary(tmp_path / "out" / "shards") == findings.CHEXPERT


def test_reports_have_one_row_per_study_with_text_and_shards_have_none(tmp_path):
    data.build_source(Stub(COUNTS), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "reports.parquet").to_pylist()
    expected = [f"{split}-s{i}" for split, n in COUNTS.items() for i in range(n) if i % 3]
    assert [row["study_id"] for row in rows] == expected
    assert {row["findings"] for row in rows} == {"Invented findings."}
    assert list(rows[0]) == ["study_id", "patient_id", "split", "findings", "impression", "report"]
    text = b"".join(digest(tmp_path / "out" / "shards").values())
    assert b"Invented" not in text and str(tmp_path).encode() not in text


def test_the_manifest_counts_what_was_written(tmp_path):
    manifest = data.build_source(Stub(COUNTS, bad=[("train", 1), ("test", 0)]), tmp_path / "out")
    assert manifest["counts"]["train"] == {"images": 10, "studies": 10, "patients": 6, "reports": 6}
    assert manifest["counts"]["valid"] == {"images": 3, "studies": 3, "patients": 2, "reports": 2}
    assert manifest["quarantine"] == {
        "count": 2,
        "items": [
            {"split": "train", "item": "train-1", "reason": "made bad"},
            {"split": "test", "item": "test-0", "reason": "made bad"},
        ],
    }
    assert manifest["vocabulary"]["findings"] == list(findings.CHEXPERT.findings)
    assert manifest["image_size"] == 12 and manifest["simulated"] and manifest["source"] == {"seed": 0}
    assert manifest == data.read_manifest(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "boxes.parquet",
        "manifest.json",
        "reports.parquet",
        "shards",
    ]
    written = {path.name for path in (tmp_path / "out" / "shards").glob("*-of-*")}
    assert written == set(manifest["shards"]) and len(written) == 6
    for name, said in manifest["shards"].items():
        written = (tmp_path / "out" / "shards" / name).read_bytes()
        assert said["bytes"] == len(written) and said["sha256"] == hashlib.sha256(written).hexdigest()
    assert [said["images"] for said in manifest["shards"].values()] == [10, 10, 3, 3, 3, 3]


def test_boxes_are_stored_in_pixels_of_the_stored_image_and_not_in_the_shards(tmp_path):
    class Boxed(Stub):
        def record(self, split, i):
            # A film of 24 x 18 pixels in a square of 12: half as large, with a bar of 1.5 pixels above it.
            boxes = [("Edema", 0, 0, 24, 18), ("Pneumonia", 4, 6, 8, 10.5)][: i % 3]
            return super().record(split, i) | {"boxes": boxes, "placement": (0.5, 0, 1.5)}

    manifest = data.build_source(Boxed(COUNTS), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "boxes.parquet").to_pylist()
    assert manifest["boxes"] == len(rows) == 11 + 3 + 3 - 1
    assert rows[0] == {"image_id": "train-1-é", "finding": "Edema", "x0": 0, "y0": 1.5, "x1": 12, "y1": 10.5}
    assert rows[2] == {"image_id": "train-2-é", "finding": "Pneumonia", "x0": 2, "y0": 4.5, "x1": 4, "y1": 6.75}
    assert set(shards.Records(tmp_path / "out" / "shards", "train").fields).isdisjoint({"boxes", "placement"})


def test_building_twice_gives_the_same_files(tmp_path):
    for name in "ab":
        data.build_source(Stub(COUNTS), tmp_path / name)
    for part in ("", "shards"):
        assert digest(tmp_path / "a" / part) == digest(tmp_path / "b" / part)


def test_a_complete_build_is_reused_and_another_is_not_overwritten_unasked(tmp_path):
    first = data.build_source(Stub(COUNTS), tmp_path / "out")
    again = Stub(COUNTS, fail_at=0)  # would fail if it were asked for records
    assert data.build_source(again, tmp_path / "out") == first
    with pytest.raises(ValueError, match=r"holds another build \(source\.seed differ\)"):
        data.build_source(Stub(COUNTS, seed=1), tmp_path / "out")
    second = data.build_source(Stub(COUNTS, seed=1), tmp_path / "out", overwrite=True)
    assert second["source"] == {"seed": 1}
    first_image = shards.images(tmp_path / "out" / "shards", "train", [0])[0, ..., 0]
    np.testing.assert_array_equal(first_image, Stub(COUNTS, seed=1).record("train", 0)["image"])


def test_a_build_that_lost_only_its_manifest_is_made_again(tmp_path):
    first = data.build_source(Stub(COUNTS), tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "shards" / "leftover").write_text("")
    assert data.build_source(Stub(COUNTS), tmp_path / "out") == first
    assert not (tmp_path / "out" / "shards" / "leftover").exists()


def test_foreign_files_are_never_removed(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"files that no build wrote: thesis.txt"):
        data.build_source(Stub(COUNTS), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_several_shards_even_empty_ones_read_as_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "SHARD_EXAMPLES", 4)
    bad = [("train", i) for i in range(1, 9)]
    manifest = data.build_source(Stub(COUNTS, bad=bad), tmp_path / "out")  # images 0-2, 3-6 and 7-10 of train
    assert [said["images"] for name, said in manifest["shards"].items() if "train.pixels" in name] == [1, 0, 2]
    ids = shards.examples(tmp_path / "out" / "shards", "train")["image_id"]
    assert ids.tolist() == [f"train-{i}-é" for i in (0, 9, 10)]


def test_faults_of_a_source_are_caught(tmp_path):
    class Twice(Stub):
        def record(self, split, i):
            return super().record(split, i) | {"image_id": "same"}

    class Shared(Stub):
        def record(self, split, i):
            return super().record(split, i) | {"patient_id": "one"}

    with pytest.raises(ValueError, match="image id 'same' is used twice"):
        data.build_source(Twice(COUNTS), tmp_path / "a")
    with pytest.raises(ValueError, match="patient 'one' is in 'train' and in 'valid'"):
        data.build_source(Shared(COUNTS), tmp_path / "b")
    with pytest.raises(ValueError, match="split 'valid' has no image"):
        data.build_source(Stub({"train": 2, "valid": 0}), tmp_path / "c")
    with pytest.raises(ValueError, match="workers is 0; expected at least 1"):
        data.build_source(Stub(COUNTS), tmp_path / "d", workers=0)


def test_wrong_names_are_refused_with_what_there_is(tmp_path):
    data.build_source(Stub(COUNTS), tmp_path / "out")
    with pytest.raises(ValueError, match=r"split 'val' is not in .*expected one of train, valid, test"):
        shards.Records(tmp_path / "out" / "shards", "val")
    with pytest.raises(ValueError, match=r"has no field mask; it has"):
        shards.Records(tmp_path / "out" / "shards", "train", ["mask"])
    with pytest.raises(ValueError, match=r"data set 'mimik' is unknown; expected one of phantom, table"):
        data.build("mimik", tmp_path / "x")


def options_of(name, folder):
    """A miniature of every data set; that of one with files is made by its own tests."""
    if name == "phantom":
        return {"count": 40}
    tests = importlib.import_module(f"test_data_{name}")
    _ = tests.make(folder, tests.patients(6)) if name == "table" else tests.make(folder)
    return {"source": folder}


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_data_set_builds(name, tmp_path):
    options = options_of(name, tmp_path / "d")
    manifest = data.build(name, tmp_path / "out", image_size=64, **options)
    source: Source = data.dataset(name)(image_size=64, **options)
    assert {split: counts["images"] for split, counts in manifest["counts"].items()} == source.splits()
    assert shards.images(tmp_path / "out" / "shards", "train", [0, 1]).shape == (2, 64, 64, 1)
    split, count = next(iter(source.splits().items()))
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - dumped just now; so it reaches a process
    np.testing.assert_array_equal(again.record(split, count - 1)["image"], source.record(split, count - 1)["image"])


def test_the_phantom_is_stored_as_generated(tmp_path):
    data.build("phantom", tmp_path / "0", count=40, seed=3)
    config = PhantomConfig(seed=3)
    stored = shards.Records(tmp_path / "0" / "shards", "train")
    indices = [i for i in range(40) if generate(config, i)["split"] == "train"]
    assert [stored[i]["study_id"] for i in range(len(stored))] == [generate(config, i)["study_id"] for i in indices]
    wanted = generate(config, indices[1])
    for name in ("image", "masks"):
        np.testing.assert_array_equal(stored[1][name][..., 0], wanted[name])
    for name in ("truth", "contrast", "belief", "labels", "observed", "reader", "view"):
        np.testing.assert_array_equal(stored[1][name], wanted[name])


def test_the_phantom_refuses_what_it_does_not_know():
    phantom = data.DATASETS["phantom"]
    with pytest.raises(ValueError, match="no field dificulty; expected count, image_size"):
        phantom(count=10, dificulty=2)
    with pytest.raises(ValueError, match=r"with count=1 the phantom has no study for .*raise count"):
        phantom(count=1)
    with pytest.raises(ValueError, match="image_size is 7"):
        phantom(image_size=7)


def test_the_script_builds_and_explains_faults(tmp_path):
    script = pathlib.Path(__file__).parent.parent / "data_prep" / "build.py"
    run = [sys.executable, str(script), "--dataset=phantom", f"--output={tmp_path / 'out'}", "--workers=1"]
    done = subprocess.run([*run, "--count=40", "--option=difficulty=2"], capture_output=True, text=True, check=True)
    assert "quarantined: 0" in done.stdout and "train" in done.stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"]["config"]["difficulty"] == 2
    failed = subprocess.run([*run, "--count=41"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "error: " in failed.stderr and "holds another build" in failed.stderr
    assert "Traceback" not in failed.stderr
