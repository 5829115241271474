"""The whole model as ONNX, made and compared by another Python.

The converter, jax2onnx, holds orbax down to a version that this project cannot use: it lives in an environment of its
own, whose Python is named by :data:`VARIABLE`. It needs jax2onnx, onnxruntime and safetensors.

  model.onnx      images [b, h, w, 1] -> (probability [b, c], rate [b, c]), b free
  contract.json   as in :mod:`repgls_jax.exports.stablehlo`
  load.py         runs it, importing nothing but onnxruntime and NumPy
"""

import os
import pathlib
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

import repgls_jax
from repgls_jax.exports import files, native

VARIABLE = "REPGLS_ONNX_PYTHON"
PROGRAM, CONTRACT = "model.onnx", "contract.json"
_NEEDED = "import flax, jax2onnx, onnxruntime, safetensors"
_SECONDS = 1800
_SHOWN = 2000


def interpreter() -> str:
    """The Python named by the variable, "" for none."""
    return os.environ.get(VARIABLE, "")


def why_not() -> str:
    """Why no ONNX can be made here; "" where it can."""
    python = interpreter()
    how = (
        "python -m venv onnx && onnx/bin/pip install jax2onnx onnxruntime safetensors && "
        f"export {VARIABLE}=$PWD/onnx/bin/python"
    )
    if not python:
        return f"{VARIABLE} names no Python: its converter needs an environment of its own ({how})"
    try:
        done = subprocess.run([python, "-c", _NEEDED], env=_env(), capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{VARIABLE}={python} cannot be run ({error})"
    return f"{VARIABLE}={python} cannot do `{_NEEDED}`: {how}" if done.returncode else ""


def write(folder: pathlib.Path, params: Any, parts: Mapping[str, Any]) -> None:
    """Writes the form into an empty folder.

    Args:
      folder: exists.
      params, parts: as for :func:`repgls_jax.exports.native.write`.

    Raises:
      ValueError: the converter failed; says with what.
    """
    with tempfile.TemporaryDirectory(prefix="repgls-onnx-") as made:
        native.write(pathlib.Path(made), params, parts)
        command = [interpreter(), "-m", "repgls_jax.exports.onnx_convert", made, str(folder / PROGRAM)]
        done = subprocess.run(command, env=_env(), capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode or not (folder / PROGRAM).is_file():
        raise ValueError(f"jax2onnx could not convert this model:\n{done.stderr.strip()[-_SHOWN:]}")
    files.write_json(folder / CONTRACT, {name: part for name, part in parts.items() if name != "model"})


def _env() -> dict[str, str]:
    """This package must be found by a Python that does not have it installed; its dependencies are its own."""
    root = str(pathlib.Path(repgls_jax.__file__).parents[1])
    return os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
