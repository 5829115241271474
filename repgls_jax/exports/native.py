"""The project's own form of a trained model: weights as safetensors, everything else as JSON.

  model.safetensors   parameters by path ("encoder/block_0/mlp/up/kernel"), float32
  config.json         architecture, vocabulary, input contract, preprocessing, where the weights come from
  thresholds.json     operating points, where they have been chosen
  reference.json      what films of the training set look like, where that was measured

Nothing is unpickled. Files are not trusted: sizes are looked at before anything is allocated for them.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from repgls_jax.exports import files, reference
from repgls_jax.models import luvit
from repgls_jax.results import operating

WEIGHTS, CONFIG, THRESHOLDS, REFERENCE = "model.safetensors", "config.json", "thresholds.json", "reference.json"
FORMAT, VERSION = "repgls-jax", 1
FINDINGS = 512  # at most
NAME = 100  # characters of a finding's name, at most
WEIGHT_BYTES = 1 << 35
_PARTS = ("model", "vocabulary", "input", "preprocessing", "source")
# Whole numbers of the architecture, with the largest that is taken for meant.
BOUNDS = {"width": 8192, "depth": 128, "heads": 128, "mlp": 65536, "patch": 64, "registers": 64}
_SHOWN = 8


def is_native(folder: pathlib.Path) -> bool:
    """Whether the folder says that it holds this form; raises ValueError where its config cannot be read."""
    path = folder / CONFIG
    return path.is_file() and files.read_json(path).get("format") == FORMAT


def write(folder: pathlib.Path, params: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Writes the form into an empty folder.

    Args:
      folder: exists.
      params: nested dict of arrays, unrolled blocks.
      parts: model, vocabulary {name, version, findings}, input, preprocessing and source, all JSON; thresholds and
        reference, JSON or None.
    """
    flat = {path: np.ascontiguousarray(value) for path, value in traverse_util.flatten_dict(params, sep="/").items()}
    safetensors.numpy.save_file(flat, folder / WEIGHTS, {"format": FORMAT})
    config = {"format": FORMAT, "version": VERSION, **{name: parts[name] for name in _PARTS}}
    files.write_json(folder / CONFIG, config)
    for name, part in ((THRESHOLDS, "thresholds"), (REFERENCE, "reference")):
        if parts.get(part) is not None:
            files.write_json(folder / name, parts[part])


def read(folder: pathlib.Path) -> tuple[luvit.LUViT, dict[str, Any], dict[str, Any]]:
    """The model, its parameters (nested dict of float32 NumPy arrays) and the parts that :func:`write` was given.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is too large, damaged, or not what it should be; names everything found.
    """
    config = files.read_json(folder / CONFIG)
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        found = f"format {config.get('format')!r}, version {config.get('version')!r}"
        raise ValueError(f"{folder / CONFIG} has {found}; expected {FORMAT!r}, {VERSION}")
    wrong = [name for name in _PARTS if not isinstance(config.get(name), dict)]
    if wrong:
        raise ValueError(f"{folder / CONFIG} lacks {', '.join(wrong)}; make the export again")
    model = model_of(config["model"], config["vocabulary"].get("findings"), config["input"], str(folder / CONFIG))
    params = _weights(folder / WEIGHTS, model, config["input"])
    parts = {name: config[name] for name in _PARTS}
    for name, part in ((THRESHOLDS, "thresholds"), (REFERENCE, "reference")):
        parts[part] = files.read_json(folder / name) if (folder / name).exists() else None
    check(parts["thresholds"], parts["reference"], config["vocabulary"]["findings"], folder)
    return model, params, parts


def check(thresholds: Any, found: Any, findings: Sequence[str], folder: pathlib.Path) -> None:
    """Refuses thresholds or a reference, each of which may be None, that are not what was written: ValueError."""
    if thresholds is not None:
        operating.require(thresholds, tuple(findings), f"the export in {folder}")
    if found is not None:
        reference.check(found, f"the reference in {folder}")


def model_of(description: Any, findings: Any, contract: Any, where: str) -> luvit.LUViT:
    """The model of a description that is not trusted.

    Raises:
      ValueError: a size is out of bounds, findings are not names, or the input contract is none of ours.
    """
    problems = []
    if isinstance(description, Mapping):
        for name, most in BOUNDS.items():
            value = description.get(name, 0)
            if type(value) is not int or not 0 <= value <= most:
                problems.append(f"{name} is {value!r}; expected a whole number up to {most}")
        for name, default in (("layer_scale", 0.0), ("rope_theta", 1.0), ("norm_epsilon", 1.0)):
            value = description.get(name, default)
            if type(value) not in (int, float) or not 0 <= value < 1e6:
                problems.append(f"{name} is {value!r}; expected a number from 0 on")
    elif not isinstance(description, str):
        problems.append(f"the model is a {type(description).__name__}; expected an architecture's fields or a name")
    named = isinstance(findings, list | tuple) and all(isinstance(f, str) and 0 < len(f) <= NAME for f in findings)
    if not named or not 0 < len(findings) <= FINDINGS or len(set(findings)) != len(findings):
        problems.append(f"findings are not 1 to {FINDINGS} different names of at most {NAME} characters")
    size: Any = contract.get("size") if isinstance(contract, Mapping) else None
    dtype = contract.get("dtype") if isinstance(contract, Mapping) else None
    if type(size) is not int or not 8 <= size <= 4096 or dtype not in luvit.HALF:
        problems.append(f"images are {dtype!r} of {size!r} pixels; expected {' or '.join(luvit.HALF)} of 8 to 4096")
    elif luvit.input_contract(dtype, size) != {k: contract.get(k) for k in luvit.input_contract(dtype, size)}:
        problems.append(f"the input contract is {dict(contract)}; expected {luvit.input_contract(dtype, size)}")
    if not problems:
        try:
            model = luvit.from_description(description, len(findings))
        except (ValueError, TypeError) as error:
            problems.append(str(error))
        else:
            if not size % model.architecture.patch:
                return model
            problems.append(f"images of {size} pixels do not divide into patches of {model.architecture.patch}")
    raise ValueError(f"{where}: " + "; ".join(problems))


def expected(model: luvit.LUViT, size: int) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter for images of ``size`` pixels a side; nothing is allocated."""
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}


def _weights(path: pathlib.Path, model: luvit.LUViT, contract: Mapping[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a complete export, copy or make it again")
    if path.stat().st_size > WEIGHT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; expected at most {WEIGHT_BYTES}")
    wanted = expected(model, contract["size"])
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            found = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - it is no dict
            problems = [f"{name} is missing" for name in wanted if name not in found]
            problems += [f"{name} is unexpected" for name in found if name not in wanted]
            for name, part in found.items():
                said = (part.get_dtype(), tuple(part.get_shape()))
                if name in wanted and said != ("F32", wanted[name]):
                    problems.append(f"{name} is {said[0]} {list(said[1])}; expected F32 {list(wanted[name])}")
            values = {} if problems else {name: stored.get_tensor(name) for name in wanted}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    problems += [f"{name} has values that are not finite" for name, v in values.items() if not np.isfinite(v).all()]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{path} does not fit its {CONFIG}: {'; '.join(problems[:_SHOWN])}{more}")
    return traverse_util.unflatten_dict(values, sep="/")
