"""Runs the model beside this file with onnxruntime: python load.py IMAGES.npy OUTPUT.npz

IMAGES.npy holds films as contract.json says; OUTPUT.npz gets "probability" and "rate", one row a film and one column a
finding, in the order of contract.json.
"""

import pathlib
import sys

import numpy as np
import onnxruntime


def load():
    """A function: images [b, h, w, 1] -> [probability [b, c], rate [b, c]], for any number b of films."""
    path = pathlib.Path(__file__).with_name("model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


if __name__ == "__main__":
    probability, rate = load()(np.load(sys.argv[1]))
    np.savez(sys.argv[2], probability=probability, rate=rate)
