"""Runs the model beside this file with JAX alone: python load.py IMAGES.npy OUTPUT.npz

IMAGES.npy holds films as contract.json says; OUTPUT.npz gets "probability" and "rate", one row a film and one column a
finding, in the order of contract.json.
"""

import pathlib
import sys

import jax
from jax import export
from jax import numpy as jnp


def load():
    """The program: images [b, h, w, 1] -> (probability [b, c], rate [b, c]), for any number b of films."""
    content = pathlib.Path(__file__).with_name("model.stablehlo").read_bytes()
    return jax.jit(export.deserialize(bytearray(content)).call)


if __name__ == "__main__":
    probability, rate = load()(jnp.load(sys.argv[1]))
    jnp.savez(sys.argv[2], probability=probability, rate=rate)
