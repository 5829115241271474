"""Computes the features of films with PyTorch and transformers: python load.py IMAGES.npy OUTPUT.npz

IMAGES.npy holds grey films [b, h, w, 1], uint8 or uint16; OUTPUT.npz gets "features" [b, tokens, width].
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent


def load():
    """The encoder; a ViT without the pooling layer, which was never trained."""
    config = json.loads((FOLDER / "config.json").read_text())
    options = {"add_pooling_layer": False} if config["model_type"] == "vit" else {}
    return getattr(transformers, config["architectures"][0]).from_pretrained(FOLDER, **options).eval()


def pixels(images):
    """Films as preprocessor_config.json says, their grey in every channel: float32 [b, 3, h, w]."""
    config = json.loads((FOLDER / "preprocessor_config.json").read_text())
    grey = images.transpose(0, 3, 1, 2) / np.iinfo(images.dtype).max * 255 * config["rescale_factor"]
    mean, deviation = (np.reshape(config[name], (1, -1, 1, 1)) for name in ("image_mean", "image_std"))
    return torch.tensor((grey - mean) / deviation, dtype=torch.float32)


if __name__ == "__main__":
    with torch.no_grad():
        features = load()(pixels(np.load(sys.argv[1]))).last_hidden_state
    np.savez(sys.argv[2], features=features.numpy())
