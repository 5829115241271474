"""Folders of pre-trained models: what is folded into the stem, and what is refused. Needs no torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from repgls_jax.models import luvit, pretrained, vit

D, DEPTH, MLP, PATCH, SIDE = 16, 2, 24, 4, 12
CONFIG = {
    "model_type": "vit",
    "hidden_size": D,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": MLP,
    "patch_size": PATCH,
    "image_size": SIDE,
}
PREPROCESSOR = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def tensors():
    """Every tensor of a ViT under the names of the Hugging Face hub, random."""
    shapes = {
        "embeddings.cls_token": (1, 1, D),
        "embeddings.position_embeddings": (1, 1 + (SIDE // PATCH) ** 2, D),
        "embeddings.patch_embeddings.projection.weight": (D, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (D,),
        "layernorm.weight": (D,),
        "layernorm.bias": (D,),
        "pooler.dense.weight": (D, D),
    }
    dense = {
        "attention.attention.query": (D, D),
        "attention.attention.key": (D, D),
        "attention.attention.value": (D, D),
        "attention.output.dense": (D, D),
        "intermediate.dense": (MLP, D),
        "output.dense": (D, MLP),
    }
    for i in range(DEPTH):
        for name, shape in dense.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
        for name in ("layernorm_before", "layernorm_after"):
            shapes |= {f"encoder.layer.{i}.{name}.{leaf}": (D,) for leaf in ("weight", "bias")}
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, stored=None, config=CONFIG, preprocessor=PREPROCESSOR):
    save_file(tensors() if stored is None else stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def shard(folder, weight_map, files):
    write(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, stored in files.items():
        save_file(stored, folder / name)


@pytest.mark.parametrize(
    ("preprocessor", "scale", "mean", "deviation"),
    [
        (PREPROCESSOR, 1 / 255, PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"]),
        (PREPROCESSOR | {"rescale_factor": 0.5}, 0.5, PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"]),
        (PREPROCESSOR | {"do_normalize": False}, 1 / 255, 0, 1),
        ({"do_rescale": False, "image_mean": 100, "image_std": 50}, 1, 100, 50),
    ],
)
def test_the_stem_sees_the_grey_film_as_the_model_sees_its_three_channels(
    tmp_path, preprocessor, scale, mean, deviation
):
    stored = tensors()
    params = pretrained.load(write(tmp_path, stored, preprocessor=preprocessor)).params["embedding"]
    film = np.random.default_rng(1).integers(0, 256, (PATCH, PATCH))
    channels = (film[None] * scale - np.reshape(mean, (-1, 1, 1))) / np.reshape(deviation, (-1, 1, 1))
    weight = stored["embeddings.patch_embeddings.projection.weight"].astype(np.float64)
    wanted = (weight * channels).sum((1, 2, 3)) + stored["embeddings.patch_embeddings.projection.bias"]
    ours = np.asarray(luvit.normalize(jnp.asarray(film[None, :, :, None], jnp.uint8)), np.float64)[0, :, :, 0]
    got = np.einsum("ij,ijcd->d", ours, params["kernel"].astype(np.float64)) + params["bias"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4 * np.abs(wanted).max())


def test_a_backbone_says_what_it_is(tmp_path):
    backbone = pretrained.load(write(tmp_path))
    assert backbone.architecture == vit.Architecture(
        D, DEPTH, 2, MLP, patch=PATCH, class_token=True, norm_epsilon=1e-12
    )
    assert json.loads(json.dumps(backbone.source)) == backbone.source
    assert backbone.source["family"] == "vit" and len(backbone.source["sha256"]["model.safetensors"]) == 64
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(backbone.params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("side", [SIDE, 20])
def test_parameters_fit_the_network(tmp_path, scan, side):
    backbone = pretrained.load(write(tmp_path))
    net = luvit.build("", 3, architecture=backbone.architecture, scan=scan)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, side, side, 1), jnp.uint8))["params"]
    given = pretrained.fit(backbone, side, scan)
    assert jax.tree.map(np.shape, given) == jax.tree.map(np.shape, shapes["encoder"])
    with pytest.raises(ValueError, match="image_size is 18"):
        pretrained.fit(backbone, 18, scan)


def test_shards_and_prefixes_and_half_precision_give_the_same(tmp_path):
    whole = pretrained.load(write(tmp_path)).params
    stored = {f"vit.{name}": value for name, value in tensors().items()} | {"classifier.bias": np.zeros(2, np.float32)}
    names = sorted(stored)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    other = tmp_path / "sharded"
    other.mkdir()
    weight_map = {name: file for file, part in parts.items() for name in part}
    shard(other, weight_map, {file: {name: stored[name] for name in part} for file, part in parts.items()})
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pretrained.load(other).params), strict=True):
        np.testing.assert_array_equal(a, b)
    half = {name: value.astype(jnp.bfloat16) for name, value in tensors().items()}
    rounded = pretrained.load(write(tmp_path, half)).params["block_1"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(rounded, half["encoder.layer.1.intermediate.dense.weight"].astype(np.float32).T)


def test_everything_that_is_wrong_with_tensors_is_said_at_once(tmp_path):
    stored = tensors()
    del stored["layernorm.bias"]
    stored["encoder.layer.0.output.dense.bias"] = np.zeros(3, np.float32)
    stored["encoder.layer.1.output.dense.weight"] = np.zeros((D, MLP), np.int8)
    stored["encoder.layer.2.output.dense.bias"] = np.zeros(D, np.float32)
    stored["lora.weight"] = np.zeros(D, np.float32)
    stored["vit.layernorm.weight"] = stored["layernorm.weight"]
    with pytest.raises(ValueError, match=r"does not fit") as error:
        pretrained.load(write(tmp_path, stored))
    for part in (
        "nothing gives norm/bias",
        f"encoder.layer.0.output.dense.bias has shape [3]; expected [{D}]",
        "encoder.layer.1.output.dense.weight is I8",
        "encoder.layer.2.output.dense.bias is unexpected",
        "lora.weight is unexpected",
        "norm/scale is given 2 times",
    ):
        assert part in str(error.value)


def test_values_that_are_not_finite_are_refused(tmp_path):
    stored = tensors()
    stored["layernorm.bias"][3] = np.nan
    with pytest.raises(ValueError, match=r"not finite in layernorm\.bias"):
        pretrained.load(write(tmp_path, stored))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, r"model_type is 'llama'; expected one of vit,"),
        ({"model_type": ["vit"]}, "model_type is"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000; expected a whole number from 1 to"),
        ({"hidden_size": True, "qkv_bias": 1}, "hidden_size is True.*qkv_bias is 1"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected one of gelu"),
        ({"num_attention_heads": 3}, "not a multiple of 3 heads"),
        ({"patch_size": [4, 8]}, r"patch_size is \[4, 8\]"),
        ({"image_size": 13}, "image_size is 13 and patch_size 4"),
        ({"image_size": 4096, "patch_size": 1}, "at most 256 patches"),
        ({"model_type": "dinov3_vit", "proj_bias": False}, "proj_bias is False; only True is supported"),
        ({"model_type": "siglip", "vision_config": 3}, "vision_config is not an object"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
    ],
)
def test_configs_that_are_not_understood_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        pretrained.load(write(tmp_path, config=CONFIG | change))


@pytest.mark.parametrize(
    "preprocessor",
    [{}, {"image_mean": [0.5, 0.5], "image_std": 1}, {"image_mean": 0, "image_std": 0}, {"image_mean": "x"}],
)
def test_a_normalisation_that_is_not_known_is_refused(tmp_path, preprocessor):
    with pytest.raises(ValueError, match=r"preprocessor_config\.json has .*expected"):
        pretrained.load(write(tmp_path, preprocessor=preprocessor))


@pytest.mark.parametrize("name", ["../b.safetensors", "/tmp/b.safetensors", "a\\b.safetensors", "..", "b.bin", 3])
def test_an_index_leads_nowhere_else(tmp_path, name):
    inside = tmp_path / "model"
    inside.mkdir()
    save_file(tensors(), tmp_path / "b.safetensors")
    shard(inside, {"layernorm.bias": name}, {})
    with pytest.raises(ValueError, match="places a tensor in"):
        pretrained.load(inside)


def test_an_index_that_lies_is_refused(tmp_path):
    shard(tmp_path, {"layernorm.bias": "a.safetensors"}, {})
    with pytest.raises(FileNotFoundError, match=r"lacks a\.safetensors"):
        pretrained.load(tmp_path)
    shard(tmp_path, {"not.there": "a.safetensors"}, {"a.safetensors": tensors()})
    with pytest.raises(ValueError, match=r"not\.there is not in a\.safetensors"):
        pretrained.load(tmp_path)


def test_pickles_and_missing_files_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin can hold code and is not read"):
        pretrained.load(tmp_path)
    for name in ("preprocessor_config.json", "config.json"):
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
            pretrained.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"[" * 100000, b"[1]"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_damaged_files_are_refused(tmp_path, name, content):
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        pretrained.load(tmp_path)


def test_large_files_are_refused_before_they_are_read(tmp_path):
    for name, size in (("model.safetensors", pretrained.WEIGHT_BYTES), ("config.json", pretrained.JSON_BYTES)):
        write(tmp_path)
        with (tmp_path / name).open("r+b") as file:
            file.truncate(size + 1)  # sparse: it takes no space
        with pytest.raises(ValueError, match=f"{size + 1} bytes"):
            pretrained.load(tmp_path)
