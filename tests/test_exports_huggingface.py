"""The encoder in the layout of Hugging Face: read back it has the same weights, and torch says the same."""

import dataclasses
import importlib.resources
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from repgls_jax.exports import compare, huggingface
from repgls_jax.models import families, luvit, pretrained, vit

SIZE = 24
BASE = vit.Architecture(32, 2, 2, 64, patch=8, class_token=True)


def like(**changes: object) -> vit.Architecture:
    return dataclasses.replace(BASE, **changes)


# Name -> architecture, and the family that it must come out as.
ARCHITECTURES = {
    "vit": (BASE, "vit"),
    "vit_without_bias": (like(bias="", activation="gelu_tanh"), "vit"),
    "dinov2": (like(layer_scale=0.5), "dinov2"),
    "dinov2_swiglu": (like(layer_scale=1.0, gated=True, activation="silu", mlp=88), "dinov2"),
    "registers": (like(layer_scale=0.1, registers=3), "dinov2_with_registers"),
    "registers_unscaled": (like(registers=4), "dinov2_with_registers"),
    "dinov3": (like(position="rope", layer_scale=0.3, registers=4, bias="qv"), "dinov3_vit"),
    "dinov3_gated": (like(position="rope", layer_scale=0.3, gated=True, activation="silu"), "dinov3_vit"),
    "no_class_token": (like(class_token=False, norm_epsilon=1e-5), "siglip_vision_model"),
}
IN_TORCH = ["vit", "dinov2_swiglu", "registers_unscaled", "dinov3_gated", "no_class_token"]


def weights(architecture: vit.Architecture) -> dict:
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 1), jnp.float32)
    shapes = jax.eval_shape(vit.VisionTransformer(architecture).init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_read_back_it_is_the_same_encoder(name, tmp_path):
    architecture, family = ARCHITECTURES[name]
    params = weights(architecture)
    assert huggingface.write(tmp_path, architecture, params, SIZE) == huggingface.CLASSES[family]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    back = pretrained.load(tmp_path)
    found, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (back.params, params))
    if name == "registers_unscaled":
        assert all(np.all(found.pop(p) == 1) for p in [*found] if re.search(r"(attention|mlp)_scale$", p))
    else:
        assert back.architecture == architecture
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", IN_TORCH)
def test_torch_computes_the_same_features(name, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    architecture, _ = ARCHITECTURES[name]
    params = weights(architecture)
    films = compare.films(3, SIZE, np.uint8)
    huggingface.write(tmp_path, architecture, params, SIZE)
    module = loader()
    module.FOLDER = tmp_path
    with torch.no_grad():
        features = module.load()(module.pixels(films)).last_hidden_state.numpy()
    encode = jax.jit(vit.VisionTransformer(architecture).apply)
    np.testing.assert_allclose(features, encode({"params": params}, luvit.normalize(jnp.asarray(films))), atol=1e-5)
    deep = module.pixels(films.astype(np.uint16) * 257)
    np.testing.assert_allclose(deep, module.pixels(films), atol=1e-6)


def loader():
    """The load.py that goes into the folder, as a module."""
    text = importlib.resources.files("repgls_jax.exports").joinpath("templates/huggingface.py").read_text()
    module = types.ModuleType("loader")
    module.__file__ = "load.py"
    exec(compile(text, "load.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (vit.parse_model("demo/16")[0], "'conv' is a stack of convolutions, which no Hugging Face family has"),
        (like(class_token=False, registers=2), "none of vit, dinov2"),
        (like(gated=True, activation="silu", mlp=72), "none of vit, dinov2"),
        (like(patch=7), "for films of 24 pixels"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_the_reason(architecture, message):
    with pytest.raises(huggingface.NoFamilyError, match=message):
        huggingface.family_of(architecture, SIZE)


def test_every_family_that_is_read_is_written_or_read_as_another():
    assert set(families.FAMILIES) - set(huggingface.CLASSES) == {"vit_mae", "siglip"}


def test_our_own_sizes_without_a_convolutional_stem_have_a_counterpart():
    for size, architecture in vit.SIZES.items():
        if architecture.stem == "patch":
            assert huggingface.family_of(architecture, 224)[0] == "siglip_vision_model", size
