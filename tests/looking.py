"""A small phantom and networks with random parameters, for tests of what shows where networks look."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from repgls_jax import data, findings, trained
from repgls_jax.models import luvit, vit

SIDE = 64


def phantom(folder: pathlib.Path) -> pathlib.Path:
    """A build of 120 studies."""
    data.build_source(data.dataset("phantom")(count=120, image_size=SIDE), folder / "set", progress=False)
    return folder / "set"


def network(vocabulary: findings.Vocabulary = findings.CHEXPERT, side: int = SIDE, seed: int = 0) -> trained.Trained:
    """A network of one block."""
    model = luvit.build("", len(vocabulary), architecture=vit.Architecture(16, 1, 2, 32, patch=16))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 1), jnp.uint8))["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
    contract = luvit.input_contract(np.uint8, side)
    source = {"name": f"tiny-{seed}", "step": None}
    return trained.Trained(model, params, vocabulary, contract, {"fit": "pad"}, None, None, source, f"network {seed}")
