"""LU-ViT: a vision transformer that answers, per finding, how likely it is and how unsure a report would be.

The paper does not publish its architecture; this one is the project's decision. K finding queries read the patch
tokens, each giving one logit. A second head predicts the report's rate from the same read-out; no gradient flows from
it into the rest, so that methods which differ in their rates are compared on equal features.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repgls_jax.models import vit

HALF = {"uint8": 127.5, "uint16": 32767.5}  # half of white, by the type of the pixels


def input_contract(dtype: Any, size: int) -> dict[str, Any]:
    """What the images must be, stored with the weights: grey of ``size`` pixels a side, mapped linearly to [-1, 1].

    Raises:
      ValueError: ``dtype`` is neither uint8 nor uint16.
    """
    name = np.dtype(dtype).name
    if name not in HALF:
        raise ValueError(f"images are {name}; expected {' or '.join(HALF)}")
    half = HALF[name]
    return {
        "photometric": "MONOCHROME2",
        "dtype": name,
        "channels": 1,
        "offset": half,
        "scale": half,
        "size": size,
    }


def require_input(stored: Mapping[str, Any], dtype: Any, size: int, owner: str) -> None:
    """Refuses images that are not what a stored contract says.

    Raises:
      ValueError: names what differs.
    """
    ours = input_contract(dtype, size)
    differ = [f"{name} {stored.get(name)}, not {value}" for name, value in ours.items() if stored.get(name) != value]
    if differ:
        raise ValueError(
            f"{owner} takes images with {'; '.join(differ)} as the data has; build the data as it was for the training"
        )


def normalize(images: Array, dtype: Any = jnp.float32) -> Array:
    """uint8 or uint16 grey [b, h, w, 1] to [-1, 1], as :func:`input_contract` says of their type."""
    contract = input_contract(images.dtype, images.shape[1])
    return ((images.astype(jnp.float32) - contract["offset"]) / contract["scale"]).astype(dtype)


class FindingHead(nn.Module):
    """One dot product a finding: [b, c, d] to [b, c] float32, a weight vector and a bias for each."""

    bias: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        _, c, d = x.shape
        kernel = self.param("kernel", nn.initializers.normal(0.02), (c, d))
        bias = self.param("bias", nn.initializers.constant(self.bias), (c,))
        return jnp.einsum("bcd,cd->bc", x.astype(jnp.float32), kernel) + bias[None]


class LUViT(nn.Module):
    """Images to logits and predicted rates.

    Attributes:
      findings: c, the number of findings.
      size: encoder shape.
      patch: patch side in pixels.
      dropout: on the residual branches, in [0, 1).
      dtype: of the computation (parameters stay float32); None keeps the input's.
    """

    findings: int
    size: vit.Size
    patch: int
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        """images [b, h, w, 1] uint8 or uint16 -> {"logits": [b, c] float32, "rate": [b, c] float32 in (-1, 1)}."""
        x = normalize(images, self.dtype or jnp.float32)
        tokens = vit.VisionTransformer(self.size, self.patch, self.dropout, self.dtype, name="encoder")(x, train)
        b, _, d = tokens.shape
        queries = self.param("queries", nn.initializers.normal(0.02), (1, self.findings, d))
        queries = jnp.broadcast_to(queries.astype(tokens.dtype), (b, self.findings, d))
        y = queries + vit.Attention(self.size.heads, self.dtype, name="read")(queries, tokens)
        y = y + vit.Mlp(self.size.mlp, self.dtype, name="mlp")(nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(y))
        y = nn.LayerNorm(dtype=self.dtype, name="norm")(y)
        # About one film in eight shows a given finding: starting there spares the first epochs the way down from 1/2.
        logits = FindingHead(bias=-2.0, name="presence")(y)
        rate = jnp.tanh(FindingHead(name="uncertainty")(jax.lax.stop_gradient(y)))
        return {"logits": logits, "rate": rate}


def build(name: str, findings: int, dropout: float = 0.0, dtype: Any = None) -> LUViT:
    """The LU-ViT called ``name`` ("S/16") for ``findings`` findings; raises ValueError for an unknown name."""
    size, patch = vit.parse_model(name)
    return LUViT(findings, size, patch, dropout, dtype)
