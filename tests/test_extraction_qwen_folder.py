"""Folders of the local language model: what is loaded, what is refused and why, and what names the model."""

import json
import subprocess
import sys

import pytest
import tiny_qwen
from tiny_qwen import torch

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import qwen

safetensors_torch = pytest.importorskip("safetensors.torch", reason="the qwen backend needs the extra 'labels'")
UNION = findings_lib.UNION


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen.save(tmp_path_factory.mktemp("tiny-qwen3"))


def test_revision_follows_every_byte_and_not_the_place(folder, tmp_path):
    one, other = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for path in (one, other):
        path.mkdir(parents=True)
        for file in folder.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
    before = qwen.revision(str(one), None)
    assert before == qwen.revision(str(other), None)
    assert str(tmp_path) not in before
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert qwen.revision(str(other), None) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"certainty": "guess"}, "certainty is 'guess'; expected one of tokens, stated"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model": "/nowhere/at/all"}, "cannot be loaded; give a folder"),
    ],
)
def test_settings_that_cannot_be_used(folder, change, message):
    with pytest.raises(ValueError, match=message):
        qwen.QwenBackend(UNION, qwen.QwenSettings(**({"model": str(folder)} | change)))


def test_other_kinds_of_model_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="of the kind 'llama'; expected qwen3"):
        qwen.QwenBackend(UNION, qwen.QwenSettings(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        qwen.QwenBackend(UNION, qwen.QwenSettings(str(tmp_path)))


def test_pickled_weights_are_not_loaded(folder, tmp_path):
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors weights"):
        qwen.QwenBackend(UNION, qwen.QwenSettings(str(tmp_path)))


def test_damaged_or_missing_weights_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="cannot be loaded"):
        qwen.QwenBackend(UNION, qwen.QwenSettings(str(tmp_path)))
    weights = safetensors_torch.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors_torch.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of its weights"):
        qwen.QwenBackend(UNION, qwen.QwenSettings(str(tmp_path)))


def test_the_module_needs_no_torch_until_a_backend_is_made():
    code = "import sys, repgls_jax.extraction.qwen; assert not {'torch', 'transformers', 'llguidance'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import repgls_jax.extraction.qwen as q; from repgls_jax import findings\n"
        "try: q.QwenBackend(findings.UNION, q.QwenSettings('x'))\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "the qwen backend needs llguidance: pip install 'repgls-jax[labels]'"
