"""A trained model is the same wherever it is read from, and what is damaged or hostile is refused with a reason."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from repgls_jax import trained
from repgls_jax.exports import native
from repgls_jax.findings import CHEXPERT
from repgls_jax.models import luvit, vit
from repgls_jax.train import checkpoint

SIZE = 32
META = {
    "vocabulary": "chexpert",
    "findings": list(CHEXPERT.findings),
    "input": luvit.input_contract(np.uint8, SIZE),
    "policy": {"name": "expert"},
    "pretrained": None,
}


def films(n: int = 3, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 1), np.uint8)


def weights(model: luvit.LUViT, seed: int, size: int = SIZE) -> dict:
    rng = np.random.default_rng(seed)
    shapes = native.expected(model, size)
    flat = {path: 0.2 * rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return jax.device_put(traverse_util.unflatten_dict(flat, sep="/"))


def make_run(folder: pathlib.Path, model: luvit.LUViT) -> None:
    """A run with two checkpoints, of which the first is the better one."""
    kept = checkpoint.Checkpoints(folder / "checkpoints", "mean_auroc")
    for step, score in ((1, 0.8), (2, 0.7)):
        params = weights(model, step)
        meta = META | {"model": luvit.describe(model)}
        kept.save(step, {"params": params}, meta, {"mean_auroc": score})
    kept.wait()
    kept.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Blocks are scanned, and films cropped."""
    folder = tmp_path_factory.mktemp("runs") / "luvit-1"
    make_run(folder, luvit.build("tiny/16", len(CHEXPERT), scan=True))
    (folder / "run.json").write_text(json.dumps({"stages": {"data": "data-1"}}))
    (folder.parent / "data-1" / "set").mkdir(parents=True)
    (folder.parent / "data-1" / "set" / "manifest.json").write_text(json.dumps({"source": {"fit": "crop"}}))
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "native"
    folder.mkdir()
    model = trained.load(run)
    vocabulary = {"name": "chexpert", "version": 1, "findings": list(CHEXPERT.findings)}
    parts = {"model": model.description, "vocabulary": vocabulary, "input": model.input, "source": model.source}
    parts |= {"preprocessing": model.preprocessing, "thresholds": {"youden": dict.fromkeys(CHEXPERT.findings, 0.25)}}
    native.write(folder, jax.device_get(model.params), parts)
    return folder


def same(a: trained.Trained, b: trained.Trained) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.forward(films()), b.forward(films()), strict=True))


def test_the_checkpoint_asked_for_is_read_with_all_that_belongs_to_it(run):
    newest, best = trained.load(run), trained.load(run, which="best")
    assert newest.source["step"] == 2 and best.source["step"] == 1 and not same(newest, best)
    assert same(best, trained.load(run, which=1)) and same(newest, trained.load(run / "checkpoints"))
    assert newest.vocabulary == CHEXPERT and newest.size == SIZE and newest.thresholds is None
    assert newest.preprocessing == {"fit": "crop"} and newest.source["metrics"] == {"mean_auroc": 0.7}
    scanned = luvit.build("tiny/16", len(CHEXPERT), scan=True)
    out = jax.jit(scanned.apply)({"params": vit.stack_blocks(newest.params)}, films())
    np.testing.assert_allclose(newest.forward(films())[0], jax.nn.sigmoid(out["logits"]), atol=1e-6)
    np.testing.assert_allclose(newest.forward(films())[1], out["rate"], atol=1e-6)


def test_an_export_is_the_checkpoint(run, exported):
    model, back = trained.load(run), trained.load(exported)
    assert same(model, back) and same(model, trained.load(exported.parent))
    assert back.vocabulary == CHEXPERT and back.thresholds["youden"]["Edema"] == 0.25
    assert back.preprocessing == {"fit": "crop"} and back.source == model.source
    (exported / "thresholds.json").write_text('{"youden": {"Edema": 2}}')
    with pytest.raises(ValueError, match="has no youden threshold of No Finding"):
        trained.load(exported)
    (exported / "thresholds.json").unlink()
    with pytest.raises(ValueError, match=r"of step 2 alone; 'best' can be had of the run"):
        trained.load(exported, which="best")


def test_images_of_another_kind_are_refused(run):
    model = trained.load(run)
    with pytest.raises(ValueError, match=r"takes \[b, 32, 32, 1\]"):
        model.forward(films(size=48))
    with pytest.raises(ValueError, match="dtype uint8, not uint16"):
        model.forward(films().astype(np.uint16))
    with pytest.raises(ValueError, match="images are float32; expected uint8 or uint16"):
        model.forward(films().astype(np.float32))


@pytest.mark.parametrize("name", ["none", "empty"])
def test_nothing_of_the_kind(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected the folder of a run"):
        trained.load(tmp_path / name)


def test_a_hugging_face_encoder_is_named_as_such(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"knows no findings.*--config\.model\.pretrained"):
        trained.load(tmp_path)


def edit(folder: pathlib.Path, *keys: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    part = config
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("model", "depth"), 10**9, "depth is 1000000000; expected a whole number up to 128"),
        (("model", "width"), 32.0, r"width is 32\.0"),
        (("model", "mlp"), 60000, r"mlp/up/kernel is F32 \[32, 64\]; expected F32 \[32, 60000\]"),
        (("model", "odd"), 1, r"unknown fields \['odd'\]"),
        (("input", "size"), 1 << 30, "of 1073741824 pixels"),
        (("input", "size"), 40, "40 pixels do not divide into patches of 16"),
        (("input", "scale"), 255, "the input contract is"),
        (("vocabulary", "findings"), ["Edema", "Edema"], "different names"),
        (("vocabulary", "findings"), ["Edema"], r"queries is F32 \[1, 14, 32\]; expected F32 \[1, 1, 32\]"),
        (("vocabulary", "name"), 7, "has name 7"),
        (("version",), 2, "expected 'repgls-jax', 1"),
        (("source",), None, "lacks source"),
    ],
)
def test_a_hostile_config_is_refused_before_anything_is_allocated(exported, tmp_path, keys, value, message):
    folder = shutil.copytree(exported, tmp_path / "native")
    edit(folder, *keys, value=value)
    with pytest.raises(ValueError, match=message):
        trained.load(folder)


@pytest.mark.parametrize("damage", ["cut", "pickle", "missing", "half", "nan", "more"])
def test_damaged_weights_are_refused(exported, tmp_path, damage):
    folder = shutil.copytree(exported, tmp_path / "native")
    path = folder / "model.safetensors"
    values = safetensors.numpy.load_file(path)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-100])
        case "pickle":
            path.write_bytes(b"\x80\x04\x95" + bytes(200))
        case "missing":
            del values["queries"]
        case "half":
            values["queries"] = values["queries"].astype(np.float16)
        case "nan":
            values["queries"][0, 0, 0] = np.nan
        case "more":
            values["further"] = np.zeros(3, np.float32)
    if damage not in ("cut", "pickle"):
        safetensors.numpy.save_file(values, path)
    messages = {"cut": "not a safetensors file", "pickle": "not a safetensors file", "missing": "queries is missing"}
    messages |= {"half": "queries is F16", "nan": "queries has values that are not finite", "more": "further is unexp"}
    with pytest.raises(ValueError, match=messages[damage]):
        trained.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        trained.load(folder)


def test_json_that_is_none_or_too_large_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "native")
    for content, message in ((b"[" * 10**5, "is not JSON"), (b"[1]", "no JSON object"), (bytes(5 << 20), "at most")):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            trained.load(folder)
