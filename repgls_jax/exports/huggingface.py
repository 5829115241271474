"""The encoder as a folder of a Hugging Face vision model: the inverse of :mod:`repgls_jax.models.pretrained`.

Which family an architecture belongs to, and what its tensors are called, is read backwards out of
:data:`repgls_jax.models.families.FAMILIES`: the family is the first whose config.json reads as that very architecture.
The finding queries and heads have no counterpart there and stay behind.

The grey stem becomes one of three equal channels, a third of the weight each, so that the usual image processors can be
used. Films are rescaled by 1/255 and normalised with mean and deviation 1/2, which is this project's own mapping.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from repgls_jax.exports import files
from repgls_jax.models import families, vit

CHANNELS = 3
# Families that are written, with the class of transformers that reads each. vit_mae and siglip are read as others.
CLASSES = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "siglip_vision_model": "SiglipVisionModel",
}
_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(families.ACTIVATIONS.items())}


class NoFamilyError(ValueError):
    """No family has such an encoder; the message says why."""


def write(folder: pathlib.Path, architecture: vit.Architecture, params: Mapping[str, Any], size: int) -> str:
    """Writes config.json, preprocessor_config.json and model.safetensors into an empty folder.

    Args:
      folder: exists.
      architecture: of the encoder.
      params: of the encoder: nested dict of arrays, unrolled blocks.
      size: pixels of a side of the films.

    Returns:
      The name of the class in transformers that reads it.

    Raises:
      NoFamilyError: see :func:`family_of`.
    """
    name, written, config = family_of(architecture, size)
    flat = {path: np.asarray(value) for path, value in traverse_util.flatten_dict(dict(params), sep="/").items()}
    if written != architecture:  # without scales on the residual branches: scales of one
        for i in range(architecture.depth):
            for scale in ("attention_scale", "mlp_scale"):
                flat[f"block_{i}/{scale}"] = np.ones(architecture.width, np.float32)
    family = families.FAMILIES[name]
    tensors = {}
    for tensor, paths in _names(family, written, set(flat)).items():
        parts = [_as_torch(path, flat[path], written) for path in paths]
        tensors[tensor] = np.ascontiguousarray(np.concatenate(parts) if len(parts) > 1 else parts[0])
    if "dinov" in name:  # of its pre-training; unread, and missed if it is not there
        shape = (1, architecture.width) if name != "dinov3_vit" else (1, 1, architecture.width)
        tensors["embeddings.mask_token"] = np.zeros(shape, np.float32)
    if name == "dinov3_vit" and not architecture.registers:
        tensors["embeddings.register_tokens"] = np.zeros((1, 0, architecture.width), np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    files.write_json(folder / "config.json", config)
    files.write_json(folder / "preprocessor_config.json", _processor(size))
    return CLASSES[name]


def family_of(architecture: vit.Architecture, size: int) -> tuple[str, vit.Architecture, dict[str, Any]]:
    """The family, the architecture as it is written, and its config.json.

    The two architectures differ where a family always scales its residual branches, and this encoder does not.

    Raises:
      NoFamilyError: there is none.
    """
    if architecture.stem != "patch":
        raise NoFamilyError(
            f"the stem {architecture.stem!r} is a stack of convolutions, which no Hugging Face family has; train with "
            "a patch stem, such as model=Ti/16 or S/16"
        )
    scaled = dataclasses.replace(architecture, layer_scale=architecture.layer_scale or 1.0)
    for written in dict.fromkeys((architecture, scaled)):
        for name, model_class in CLASSES.items():
            config = _config(name, written, size)
            try:
                family, fields = families.read(config)
                if families.architecture(family, fields) == written:
                    return name, written, config | {"architectures": [model_class]}
            except ValueError:  # a value that the family cannot have
                continue
    raise NoFamilyError(f"none of {', '.join(CLASSES)} has an encoder of {architecture} for films of {size} pixels")


def _config(name: str, architecture: vit.Architecture, size: int) -> dict[str, Any]:
    """The config.json of a family that comes nearest; fields that the family does not know are left out."""
    a = architecture
    swiglu = a.gated and name.startswith("dinov2")
    # DINOv2 keeps two thirds of the MLP's width where it is gated, rounded up to a multiple of 8.
    ratios = range(1, families.BOUNDS["mlp_ratio"] + 1)
    widths = {(int(a.width * r * 2 / 3) + 7) // 8 * 8 if swiglu else a.width * r: r for r in ratios}
    values = {
        "hidden_size": a.width,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "hidden_act": _ACTIVATIONS[a.activation],
        "image_size": size,
        "patch_size": a.patch,
        "num_channels": CHANNELS,
        "intermediate_size": a.mlp,
        "mlp_ratio": widths.get(a.mlp, 0),
        "layer_norm_eps": a.norm_epsilon,
        "layerscale_value": a.layer_scale,
        "qkv_bias": a.bias == "qkv",
        "query_bias": "q" in a.bias,
        "key_bias": "k" in a.bias,
        "value_bias": "v" in a.bias,
        "use_swiglu_ffn": a.gated,
        "use_gated_mlp": a.gated,
        "num_register_tokens": a.registers,
        "rope_theta": a.rope_theta,
    }
    family = families.FAMILIES[name]
    known = {**family.defaults, **family.only}
    config = {"model_type": name, "torch_dtype": "float32"} | {k: values.get(k, v) for k, v in known.items()}
    return config | ({"vision_use_head": False} if name == "siglip_vision_model" else {})


def _processor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * CHANNELS,
        "image_std": [0.5] * CHANNELS,
    }


def _names(family: families.Family, architecture: vit.Architecture, paths: set[str]) -> dict[str, tuple[str, ...]]:
    """Tensor -> the parameters that it holds, one after the other.

    A pattern of the family's table and its target have the same groups, so that a path gives the tensor's name.
    """
    found: dict[str, tuple[str, ...]] = {}
    left = set(paths)
    # Targets of several parameters first: DINOv2 has two ways to write an MLP, and the gated one is the joint one.
    for pattern, target in sorted(family.tensors.items(), key=lambda item: "+" not in item[1]):
        name, groups = _template(pattern)
        modules = next((part for part in target.split("/") if "+" in part), "")
        first = target.replace(modules, modules.split("+")[0]) if modules else target
        for path in sorted(left):
            match = re.fullmatch(_reversed(first, groups), path)
            if match is None:
                continue
            held = tuple(path.replace("/" + modules.split("+")[0] + "/", f"/{m}/") for m in modules.split("+"))
            held = held if modules else (path,)
            values = [match.group(f"g{i}") for i in range(len(groups))]
            values = ["weight" if v in ("kernel", "scale") else v for v in values]
            tensor = name.format(*values)
            gated = architecture.gated and "gate+up" in "".join(family.tensors.values())
            if not set(held) <= left or ("fc2" in tensor and gated) or ("weights_" in tensor and not gated):
                continue
            found[tensor] = held
            left -= set(held)
    if left:
        raise NoFamilyError(f"the family has no tensor for {', '.join(sorted(left))}")
    return found


def _template(pattern: str) -> tuple[str, list[str]]:
    """A pattern of the table as a format string, and its groups: "a.{0}.{1}", ["\\d+", "weight|bias"]."""
    plain = re.sub(r"^\(\?:.*?\)\?(?=[a-z])", "", pattern)
    groups = re.findall(r"\(([^)]*)\)", plain)
    count = iter(range(len(groups)))
    return re.sub(r"\([^)]*\)", lambda _: f"{{{next(count)}}}", plain).replace("\\.", "."), groups


def _reversed(target: str, groups: list[str]) -> str:
    """A pattern for the encoder's paths, from a target with numbered groups."""
    pattern = re.sub(r"/weight$", "/(?:kernel|scale)", target)
    for i, group in enumerate(groups):
        alternatives = "|".join("kernel|scale" if part == "weight" else part for part in group.split("|"))
        pattern = pattern.replace(f"{{{i}}}", f"(?P<g{i}>{alternatives})")
    return pattern


def _as_torch(path: str, value: np.ndarray, architecture: vit.Architecture) -> np.ndarray:
    """A parameter in torch's shape; undoes what :mod:`repgls_jax.models.pretrained` does to it."""
    parent, _, leaf = path.rpartition("/")
    module = parent.rpartition("/")[2]
    width = architecture.width
    if path == "embedding/kernel":
        thirds = value.astype(np.float64).transpose(3, 2, 0, 1) / CHANNELS
        return np.repeat(thirds, CHANNELS, axis=1).astype(np.float32)
    if path == "position":
        if not architecture.class_token:
            return value[0]
        return np.concatenate([np.zeros((1, 1, width), value.dtype), value], axis=1)  # its own is in the class token
    if module in ("query", "key", "value"):
        return value.reshape(width, width).T if leaf == "kernel" else value.reshape(width)
    if module == "out" and leaf == "kernel":
        return value.reshape(width, width).T
    return value.T if leaf == "kernel" else value
