"""Exports are the checkpoint, shown in processes of their own; what is not is neither named nor left behind."""

import ast
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_trained import films, make_run

from repgls_jax import trained
from repgls_jax.exports import compare, files, job, native, reference, stablehlo
from repgls_jax.findings import CHEXPERT
from repgls_jax.models import luvit
from repgls_jax.train.journal import Journal

SILENT = Journal(None, None)
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "luvit-1"
    make_run(folder, luvit.build("tiny/16", len(CHEXPERT)))
    return folder


@pytest.fixture(scope="module")
def done(run, tmp_path_factory):
    """An export made in this process, each form compared in another."""
    output = tmp_path_factory.mktemp("exports") / "export"
    return output, job.run(run, output, ["native", "stablehlo"], SILENT, "best")


def test_every_form_was_compared_and_every_file_is_listed(done):
    output, manifest = done
    assert list(manifest["compared"]) == ["native", "stablehlo"] and manifest["source"]["step"] == 1
    for told in manifest["compared"].values():
        assert set(told["max_difference"]) == {"probability", "rate"} and "jax" in told["versions"]
        assert all(0 <= worst <= compare.TOLERANCE for worst in told["max_difference"].values())
    assert manifest["compared"]["stablehlo"]["batches"] == [1, compare.FILMS]
    there = files.listed(output)
    assert there.pop("manifest.json") and there == manifest["files"]
    card = (output / "README.md").read_text()
    assert card.count("Not a medical device") == 2 and "Nothing: the run's record was not at hand." in card
    assert not list(output.parent.glob("*.partial"))


def test_nothing_tells_of_the_machine(done, run):
    output, _ = done
    for file in (f for f in output.rglob("*") if f.is_file()):
        content = file.read_bytes()
        for path in (str(run.parent), str(output.parent), sys.prefix, str(pytest.__file__)[:12], "site-packages"):
            assert path.encode() not in content, (file, path)


def test_the_program_needs_jax_alone_and_takes_any_number_of_films(done, run):
    output, _ = done
    tree = ast.parse((output / "stablehlo" / "load.py").read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= {"jax", *sys.stdlib_module_names}
    program, model = stablehlo.load(output / "stablehlo"), trained.load(run, which="best")
    for count in (2, 3):
        for ours, theirs in zip(model.forward(films(count)), program.forward(films(count)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert program.vocabulary == CHEXPERT and program.preprocessing == {"fit": "pad"}
    with pytest.raises(ValueError, match="dtype uint8, not uint16"):
        program.forward(films().astype(np.uint16))


def test_an_export_that_differs_is_not_left(run, tmp_path, monkeypatch):
    def bent(folder, model, parts):
        params = jax.tree.map(lambda x: x * 1.001, jax.device_get(model.params))
        native.write(folder, params, parts)

    monkeypatch.setitem(job.FORMATS, "native", job.dataclasses.replace(job.FORMATS["native"], write=bent))
    with pytest.raises(compare.DiffersError, match=r"native differs from the checkpoint.*expected at most 1e-05"):
        job.run(run, tmp_path / "out", ["native"], SILENT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("formats", "error", "message"),
    [
        (["onyx"], ValueError, "formats onyx; expected some of native, huggingface, stablehlo, onnx"),
        ([], ValueError, "formats is empty"),
        (
            ["native", "onnx"],
            ValueError,
            "onnx cannot be made: REPGLS_ONNX_PYTHON names no.*install jax2onnx",
        ),
        (["native", "huggingface"], ValueError, "huggingface cannot be made"),
    ],
)
def test_formats_that_cannot_be_made_leave_nothing(run, tmp_path, monkeypatch, formats, error, message):
    monkeypatch.delenv("REPGLS_ONNX_PYTHON", raising=False)
    with pytest.raises(error, match=message):
        job.run(run, tmp_path / "out", formats, SILENT)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(run, tmp_path):
    with pytest.raises(FileExistsError, match="name another folder"):
        job.run(run, tmp_path, ["native"], SILENT)


@pytest.mark.parametrize("damage", ["cut", "contract", "missing"])
def test_a_damaged_program_is_refused(done, tmp_path, damage):
    folder = shutil.copytree(done[0] / "stablehlo", tmp_path / "stablehlo")
    program, contract = folder / "model.stablehlo", folder / "contract.json"
    if damage == "cut":
        program.write_bytes(program.read_bytes()[:1000])
    elif damage == "contract":
        contract.write_text(contract.read_text().replace('"size": 32', '"size": 48'))
    else:
        program.unlink()
    messages = {
        "cut": "is not a program of jax.export",
        "contract": "not what contract.json says",
        "missing": "missing",
    }
    with pytest.raises(FileNotFoundError if damage == "missing" else ValueError, match=messages[damage]):
        stablehlo.load(folder)


def test_a_process_that_fails_or_gives_nan_is_no_export(tmp_path):
    wanted = {"x": np.zeros((5, 2), np.float32)}
    images = compare.films(5, 8, np.uint8)
    with pytest.raises(compare.DiffersError, match="ended with 3"):
        compare.compare([sys.executable, "-c", "raise SystemExit(3)"], wanted, images)
    write = "import numpy as np, sys; np.savez(sys.argv[2], **{})"
    for value, message in (("x=np.full((5, 2), np.nan)", "inf"), ("y=np.zeros(2)", "gives no x")):
        code = write.replace("**{}", value)
        with pytest.raises(compare.DiffersError, match=message):
            compare.compare([sys.executable, "-c", code], wanted, images)


def test_inputs_of_the_comparison_cover_the_range():
    for dtype in (np.uint8, np.uint16):
        made = compare.films(5, 40, dtype)
        assert made.shape == (5, 40, 40, 1) and made.dtype == dtype
        assert made.min() == 0 and made.max() > 0.95 * np.iinfo(dtype).max and not made[-1].any()


def drawn(count: int, seed: int) -> np.ndarray:
    """Bright ovals on black, much alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    shapes = [np.clip(1.2 - (x / rng.uniform(0.7, 0.8)) ** 2 - y**2, 0, 1) for _ in range(count)]
    return np.rint(np.stack(shapes)[..., None] * rng.uniform(180, 220, (count, 1, 1, 1))).astype(np.uint8)


def test_odd_films_are_told_of_and_others_are_not():
    made = json.loads(json.dumps(reference.make(drawn(150, 0))))
    reference.check(made, "x")
    assert sum(bool(reference.warnings(film, made)) for film in drawn(150, 1)) <= 3
    film = drawn(1, 2)[0]
    deep = film.astype(np.uint16) * 257
    assert reference.warnings(deep, made) == reference.warnings(film, made) == []
    half = film.copy()
    half[:, 24:] = 0
    odd = {"inverted": 255 - film, "blank": film * 0, "half": half, "noise": films(1, 48)[0], "flat": film * 0 + 90}
    for name, image in odd.items():
        said = reference.warnings(image, made)
        assert said and all("of training films" in line for line in said), name
    assert reference.make(drawn(99, 0)) is None
    with pytest.raises(ValueError, match="make the export again"):
        reference.check({"mean": [1], "ranges": {}}, "x")


def test_the_command_ends_with_the_message(tmp_path):
    command = [sys.executable, "launch/export.py", f"--run={tmp_path / 'none'}", f"--output={tmp_path / 'out'}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 1 and "error: " in ended.stderr and "Traceback" not in ended.stderr
