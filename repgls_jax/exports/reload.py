"""Runs the native form in a process of its own: python -m repgls_jax.exports.reload FOLDER IMAGES.npy OUTPUT.npz"""

import pathlib
import sys

import numpy as np

from repgls_jax import trained


def main(folder: str, images: str, output: str) -> None:
    """Reads the export in ``folder`` and the images; writes "probability" and "rate"."""
    model = trained.load(pathlib.Path(folder))
    probability, rate = model.forward(np.load(images, allow_pickle=False))
    np.savez(output, probability=probability, rate=rate)


if __name__ == "__main__":
    main(*sys.argv[1:])
