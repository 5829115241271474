"""The native form to ONNX: python -m repgls_jax.exports.onnx_convert NATIVE_FOLDER MODEL.onnx

Runs in an environment of its own, see :mod:`repgls_jax.exports.onnx`: of this project it imports the models alone.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.numpy
from flax import traverse_util

from repgls_jax.models import luvit


def main(folder: pathlib.Path, output: str) -> None:
    """Converts; the program takes images [b, h, w, 1] of the contract's type, b free."""
    from jax2onnx import to_onnx

    config = json.loads((folder / "config.json").read_text())
    model = luvit.from_description(config["model"], len(config["vocabulary"]["findings"]))
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    params = traverse_util.unflatten_dict(weights, sep="/")
    told = config["input"]

    def predict(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Not by the type of the images: what is converted are floats, made of the contract's type first.
        grey = (images.astype(jnp.float32) - told["offset"]) / told["scale"]
        out: Any = model.apply({"params": params}, grey)
        return jax.nn.sigmoid(out["logits"]), out["rate"]

    # Any: the converter takes names for the sizes that are free.
    shape: Any = ("B", told["size"], told["size"], 1)
    image = jax.ShapeDtypeStruct(shape, jnp.dtype(told["dtype"]))
    to_onnx(predict, inputs=[image], model_name="luvit", return_mode="file", output_path=output)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
