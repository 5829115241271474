"""Guided refinement in the benchmark: the RGN's rates, corrected by a few studies whose truth is known.

The verified studies are validation studies, whose truth no other arm sees; rates of entries of like certainty move
together. See :mod:`repgls_jax.train.refine`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repgls_jax.benchmark import given
from repgls_jax.models import luvit
from repgls_jax.train import labels as labels_lib
from repgls_jax.train import refine
from repgls_jax.train.state import Params

VERIFIED = 200  # studies
SETTINGS = refine.RefineConfig(steps=120, batch_size=64, verified_size=64)


def refined(
    model: luvit.LUViT,
    params: Params,
    tokens: jax.Array,
    train: labels_lib.Columns,
    rate: np.ndarray,
    verified: tuple[jax.Array, np.ndarray],
    seed: int,
) -> np.ndarray:
    """Refined rates [n, c] float32 of the training studies.

    Args:
      model: the read-out.
      params: trained under the given rates.
      tokens: float [n, l, d].
      train: label columns.
      rate: [n, c], the given rates.
      verified: tokens [m, l, d] and truth [m, c].
      seed: of the batches.
    """

    def apply(params: Params, tokens: Any) -> jax.Array:
        out: Any = model.apply({"params": params}, tokens)
        return out["logits"]

    labels, mask = labels_lib.noisy_reference(train)
    group = jnp.asarray(given.groups(train["p"]))
    some = refine.Train(tokens, jnp.asarray(labels, jnp.float32), jnp.asarray(rate), jnp.asarray(mask), group)
    truth = jnp.asarray(verified[1], jnp.float32)
    few = refine.Verified(verified[0], truth, jnp.ones(truth.shape, bool))
    found = refine.refine(apply, params, some, few, given.GROUPS, SETTINGS, jax.random.key(seed))
    return np.asarray(refine.shifted(some.r, group, found.refinement, SETTINGS.bound))
