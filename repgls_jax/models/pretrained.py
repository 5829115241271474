"""Encoders from local folders of Hugging Face vision models.

A folder holds config.json, preprocessor_config.json and the weights as model.safetensors or as shards with
model.safetensors.index.json. Nothing is downloaded, no code of the folder is run, and nothing is unpickled. What comes
out computes on a grey film in [-1, 1], as :func:`repgls_jax.models.luvit.normalize` makes it, exactly what the model
computes on the film repeated in its channels under its own normalisation: both are folded into the patch embedding.
"""

import collections
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from repgls_jax.models import families, positions, vit

JSON_BYTES = 1 << 24  # of config.json and its like; the index of thousands of tensors is a megabyte
WEIGHT_BYTES = 1 << 35  # of all weights together; the largest family member, of 7 billion parameters, has 27 GB
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A pre-trained encoder.

    Attributes:
      architecture: of the encoder.
      params: of the encoder, unrolled: nested dict of float32 NumPy arrays.
      source: JSON record of where it comes from: family, folder's name, SHA-256 of the weights, image size, and the
        normalisation that was folded in.
      antialias: how the family resizes its position embeddings, see :mod:`repgls_jax.models.positions`.
    """

    architecture: vit.Architecture
    params: dict[str, Any]
    source: dict[str, Any]
    antialias: bool = False


def load(folder: pathlib.Path | str) -> Backbone:
    """Reads a folder; its files are those of ``save_pretrained`` or of a repository on the Hugging Face hub.

    Raises:
      FileNotFoundError: a file that has to be there is not.
      ValueError: a file is too large, damaged, or not what it should be; the model is of no known family; or tensors
        are missing, unexpected, of the wrong shape or type, or not finite: all of those are named at once.
    """
    folder = pathlib.Path(folder)
    config = _json(folder / "config.json")
    try:
        family, fields = families.read(config)
        architecture = families.architecture(family, fields)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    scale, mean, deviation = _normalisation(folder / "preprocessor_config.json", fields["num_channels"])
    files = _files(folder)
    stored = _read(folder, files, _plan(folder, files, family, architecture, fields))
    source = {
        "family": config["model_type"],
        "folder": folder.resolve().name,
        "sha256": {name: _digest(folder / name) for name in files},
        "image_size": fields["image_size"],
        "rescale_factor": scale,
        "image_mean": mean.tolist(),
        "image_std": deviation.tolist(),
    }
    params = _nested(_folded(stored, architecture, scale, mean, deviation))
    return Backbone(architecture, params, source, family.antialias)


def fit(backbone: Backbone, image_size: int, scan: bool = False) -> dict[str, Any]:
    """The encoder's parameters for films of ``image_size`` pixels a side, for scanned or unrolled blocks.

    Learned position embeddings are interpolated as the Hugging Face model of the family does it: bicubic, smoothed for
    dinov2_with_registers; rotary ones need nothing.

    Raises:
      ValueError: the size is not a multiple of the patch.
    """
    patch = backbone.architecture.patch
    if image_size < patch or image_size % patch:
        raise ValueError(f"image_size is {image_size}; expected a multiple of the pre-trained encoder's patch, {patch}")
    params = dict(backbone.params)
    if backbone.architecture.position == "learned":
        params["position"] = positions.resize(params["position"], image_size // patch, backbone.antialias)
    return vit.stack_blocks(params) if scan else params


def _json(path: pathlib.Path) -> dict[str, Any]:
    """A file's JSON object, if it is not too large."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a local folder of a Hugging Face vision model")
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; expected at most {JSON_BYTES}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def _normalisation(path: pathlib.Path, channels: int) -> tuple[float, np.ndarray, np.ndarray]:
    """What the family's images are multiplied by, and the mean and deviation [channels] float64 that follow."""
    config = _json(path)
    given = {
        "rescale_factor": config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
        "image_mean": config.get("image_mean") if config.get("do_normalize", True) else 0.0,
        "image_std": config.get("image_std") if config.get("do_normalize", True) else 1.0,
    }
    numbers = {}
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        if not all(type(v) in (int, float) for v in values) or len(values) not in (1, channels):
            raise ValueError(f"{path} has {name} {value!r}; expected a number, or {channels} of them")
        numbers[name] = np.broadcast_to(np.asarray(values, np.float64), (channels,))
    scale, mean, deviation = numbers.values()
    if not np.all((scale > 0) & (scale == scale[0]) & np.isfinite(mean) & (deviation > 0) & np.isfinite(deviation)):
        raise ValueError(f"{path} has {given}; expected image_std and one rescale_factor above 0")
    return float(scale[0]), mean, deviation


def _files(folder: pathlib.Path) -> dict[str, set[str] | None]:
    """Names of the weights' files, each with the tensors that the index says it holds (None without an index)."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files: dict[str, set[str] | None] = {}
    if single.is_file():
        files[single.name] = None
    elif index.is_file():
        shards = collections.defaultdict(set)
        listed = _json(index).get("weight_map")
        for tensor, name in listed.items() if isinstance(listed, dict) else ():
            # A name and nothing else: it must not lead out of the folder.
            if not isinstance(name, str) or pathlib.PurePath(name).name != name or "\\" in name:
                raise ValueError(f"{index} places a tensor in {name!r}; expected the name of a file beside it")
            if not name.endswith(".safetensors"):
                raise ValueError(f"{index} places a tensor in {name!r}; only .safetensors files are read")
            shards[name].add(tensor)
        files.update(shards)
    if not files:
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        found = f"; {', '.join(pickles)} can hold code and is not read: save the model again" if pickles else ""
        raise FileNotFoundError(f"{folder} has no model.safetensors and no index of shards that lists any{found}")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its index names")
    size = sum((folder / name).stat().st_size for name in files)
    if size > WEIGHT_BYTES:
        raise ValueError(f"{folder} has {size} bytes of weights; expected at most {WEIGHT_BYTES}")
    return files


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies and what becomes of it: its parameters, and their shape once it is split among them."""

    file: str
    name: str
    paths: tuple[str, ...]
    shape: tuple[int, ...]


def _expected(architecture: vit.Architecture, fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of the encoder at its native image size."""
    encoder = vit.VisionTransformer(architecture)
    image = jax.ShapeDtypeStruct((1, fields["image_size"], fields["image_size"], 1), jnp.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), image)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def _stored_shape(path: str, shape: tuple[int, ...], architecture: vit.Architecture, channels: int) -> tuple[int, ...]:
    """Shape in which torch stores the parameter of ``shape`` at ``path``; leading ones left out."""
    parent, _, leaf = path.rpartition("/")
    if path == "embedding/kernel":
        return (shape[3], channels, shape[0], shape[1])
    if path == "position":
        return (shape[1] + int(architecture.class_token), shape[2])
    if leaf == "kernel" and parent.endswith("/out"):
        return (shape[-1], math.prod(shape[:-1]))
    if leaf == "kernel":
        return (math.prod(shape[1:]), shape[0])
    return _trimmed((math.prod(shape),) if leaf == "bias" else shape)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` without leading ones: families differ in how they write [1, l, d]."""
    first = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[first:])


def _plan(
    folder: pathlib.Path,
    files: Mapping[str, set[str] | None],
    family: families.Family,
    architecture: vit.Architecture,
    fields: Mapping[str, Any],
) -> list[_Tensor]:
    """Which tensors to read. Only headers have been read then, and nothing has been allocated for weights."""
    expected = _expected(architecture, fields)
    plan: list[_Tensor] = []
    problems: list[str] = []
    for file, listed in files.items():
        with _open(folder / file) as tensors:
            names = list(tensors.keys())
            problems += [
                f"{name} is not in {file}, as the index says" for name in sorted((listed or set()) - set(names))
            ]
            for name in names:
                path = families.target(family, name)
                part = tensors.get_slice(name)
                if path == "" or 0 in part.get_shape():  # zero registers are written down as such
                    continue
                paths = _paths(path, expected)
                if not paths:
                    problems.append(f"{name} is unexpected")
                    continue
                shape = _stored_shape(paths[0], expected[paths[0]], architecture, fields["num_channels"])
                whole = (shape[0] * len(paths), *shape[1:])
                if part.get_dtype() not in DTYPES:
                    problems.append(f"{name} is {part.get_dtype()}; expected {', '.join(DTYPES)}")
                if _trimmed(tuple(part.get_shape())) != _trimmed(whole):
                    problems.append(f"{name} has shape {list(part.get_shape())}; expected {list(whole)}")
                plan.append(_Tensor(file, name, paths, shape))
    found = collections.Counter(path for tensor in plan for path in tensor.paths)
    problems += [f"nothing gives {path}" for path in expected if path not in found]
    problems += [f"{path} is given {count} times" for path, count in found.items() if count > 1]
    if problems:
        raise ValueError(f"{folder} does not fit its config.json: " + "; ".join(problems))
    return plan


def _paths(path: str | None, expected: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters that a target of the family's table stands for; none if the encoder has no such parameters."""
    if path is None:
        return ()
    *parents, modules, leaf = ["", "", *path.split("/")]
    paths = []
    for module in modules.split("+"):
        for name in ("kernel", "scale") if leaf == "weight" else (leaf,):
            whole = "/".join(part for part in (*parents, module, name) if part)
            if whole in expected:
                paths.append(whole)
    return tuple(paths)


def _open(path: pathlib.Path) -> Any:
    """The memory-mapped file."""
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _read(folder: pathlib.Path, files: Mapping[str, Any], plan: list[_Tensor]) -> dict[str, np.ndarray]:
    """The planned tensors as float32, by path, in torch's shapes."""
    stored: dict[str, np.ndarray] = {}
    infinite = []
    for file in files:
        with _open(folder / file) as tensors:
            for tensor in plan:
                if tensor.file != file:
                    continue
                value = tensors.get_tensor(tensor.name).astype(np.float32)
                if not np.all(np.isfinite(value)):
                    infinite.append(tensor.name)
                parts = np.split(value.reshape(-1, *tensor.shape[1:]), len(tensor.paths))
                stored |= dict(zip(tensor.paths, parts, strict=True))
    if infinite:
        raise ValueError(f"{folder} has values that are not finite in {', '.join(infinite)}")
    return stored


def _folded(
    stored: dict[str, np.ndarray], architecture: vit.Architecture, scale: float, mean: np.ndarray, deviation: np.ndarray
) -> dict[str, np.ndarray]:
    """Parameters in our shapes, with the normalisation in the stem and the class token's position in that token."""
    heads, width = architecture.heads, architecture.width // architecture.heads
    params = {}
    for path, value in stored.items():
        parent, _, leaf = path.rpartition("/")
        module = parent.rpartition("/")[2]
        if module in ("query", "key", "value"):
            value = value.T.reshape(-1, heads, width) if leaf == "kernel" else value.reshape(heads, width)
        elif module == "out" and leaf == "kernel":
            value = value.T.reshape(heads, width, -1)
        elif leaf == "kernel" and path != "embedding/kernel":
            value = value.T
        elif path in ("class_token", "registers", "position"):
            value = value.reshape(1, -1, architecture.width)
        params[path] = np.ascontiguousarray(value)
    # A film x in [-1, 1] is 127.5 (x + 1) in bytes, and a channel is (scale of that - mean) / deviation. The stem pads
    # nothing, so that the constant part is the same for every patch.
    half = 127.5 * scale
    kernel = stored["embedding/kernel"].astype(np.float64)
    constant = np.einsum("dcij,c->d", kernel, (half - mean) / deviation)
    params["embedding/kernel"] = np.einsum("dcij,c->ijd", kernel, half / deviation)[:, :, None].astype(np.float32)
    params["embedding/bias"] = (stored["embedding/bias"] + constant).astype(np.float32)
    if architecture.class_token and architecture.position == "learned":
        position = params["position"]
        params["class_token"] = params["class_token"] + position[:, :1]
        params["position"] = position[:, 1:]
    return params


def _nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} as {"a": {"b": x}}."""
    nested: dict[str, Any] = {}
    for path, value in params.items():
        *parents, leaf = path.split("/")
        place = nested
        for name in parents:
            place = place.setdefault(name, {})
        place[leaf] = value
    return nested


def _digest(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
