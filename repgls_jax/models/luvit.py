"""LU-ViT: a vision transformer that answers, per finding, how likely it is and how unsure a report would be.

The paper does not publish its architecture; this one is the project's decision. K finding queries read the patch
tokens, each giving one logit. A second head predicts the report's rate from the same read-out; no gradient flows from
it into the rest, so that methods which differ in their rates are compared on equal features.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repgls_jax.models import vit
from repgls_jax.models.attention import Attention, choose

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


def require_images(stored: Mapping[str, Any], images: Any, owner: str) -> None:
    """Refuses an array [b, h, w, 1] that is not what a stored contract says.

    Raises:
      ValueError: its shape or type differs; names what was found and what is taken.
    """
    size = stored["size"]
    if tuple(images.shape[1:]) != (size, size, 1):
        raise ValueError(f"images are {list(images.shape)}; {owner} takes [b, {size}, {size}, 1]")
    require_input(stored, images.dtype, size, owner)


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

    The finding queries read the patches and, where the encoder has one, the class token, which sums up the film in
    pre-trained encoders. Registers stay unread: they are where such an encoder keeps what belongs to no place.

    Attributes:
      findings: c, the number of findings.
      architecture: of the encoder; the read-out takes its heads and MLP width.
      dropout: on the encoder's residual branches, in [0, 1).
      drop_path: stochastic depth of the encoder's last block, in [0, 1), see :class:`vit.VisionTransformer`.
      dtype: of the computation; None keeps float32. Parameters, the statistics of LayerNorms, softmax, logits and rates
        are float32 in any case.
      remat: what the backward pass computes again, one of :data:`vit.REMAT`.
      scan: one compiled block for all instead of one after the other.
      attention: the encoder's implementation, see :func:`repgls_jax.models.attention.choose`.
      constrain: applied to activations [b, l, d] after the embedding, every block and the read-out; for sharding.
      third: whether a third head gives the logit of "uncertain", beside presence; for the loss of training alone.
    """

    findings: int
    architecture: vit.Architecture
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = None
    remat: str = "none"
    scan: bool = False
    attention: str = "xla"
    constrain: vit.Constrain = vit.identity
    third: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Logits and rates of films.

        Args:
          images: [b, h, w, 1] uint8 or uint16 grey, or floats that :func:`normalize` has already made of them; or
            [b, l, e] float tokens of any width e that a frozen encoder has made, which only the read-out then sees.
          train: draws dropout and stochastic depth from the rng "dropout".

        Returns:
          {"logits": [b, c] float32, "rate": [b, c] float32 in (-1, 1)}, and "third" [b, c] float32 if asked for.
        """
        arch = self.architecture
        dtype = self.dtype or jnp.float32
        encoder = vit.VisionTransformer(
            arch,
            self.dropout,
            self.drop_path,
            self.dtype,
            self.remat,
            self.scan,
            self.attention,
            self.constrain,
            name="encoder",
        )
        x = images.astype(dtype) if jnp.issubdtype(images.dtype, jnp.floating) else normalize(images, dtype)
        tokens = x if x.ndim == 3 else encoder(x, train)
        if arch.registers:
            first = int(arch.class_token)
            tokens = jnp.concatenate([tokens[:, :first], tokens[:, arch.prefix :]], axis=1)
        queries = self.param("queries", nn.initializers.normal(0.02), (1, self.findings, arch.width))
        queries = jnp.broadcast_to(queries.astype(tokens.dtype), (tokens.shape[0], self.findings, arch.width))
        y = queries + Attention(arch.heads, self.dtype, name="read")(queries, tokens)
        y = y + vit.Mlp(arch.mlp, self.dtype, name="mlp")(nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(y))
        y = self.constrain(nn.LayerNorm(dtype=self.dtype, name="norm")(y))
        # About one film in eight shows a given finding: starting there spares the first epochs the way down from 1/2.
        logits = FindingHead(bias=-2.0, name="presence")(y)
        rate = jnp.tanh(FindingHead(name="uncertainty")(jax.lax.stop_gradient(y)))
        made = {"logits": logits, "rate": rate}
        return made | {"third": FindingHead(bias=-2.0, name="third")(y)} if self.third else made


def build(
    name: str,
    findings: int,
    dropout: float = 0.0,
    *,
    drop_path: float = 0.0,
    dtype: Any = None,
    remat: str = "none",
    scan: bool = False,
    attention: str = "xla",
    constrain: vit.Constrain = vit.identity,
    architecture: vit.Architecture | None = None,
    third: bool = False,
) -> LUViT:
    """The LU-ViT called ``name`` ("S/16"), or of ``architecture`` where that is given and the name is not looked at.

    Args:
      name: see :func:`vit.parse_model`.
      findings: number of findings.
      dropout: see :class:`LUViT`, as for the arguments below.
      drop_path: stochastic depth.
      dtype: of the computation, such as "bfloat16".
      remat: what is computed again.
      scan: scanned or unrolled blocks.
      attention: implementation.
      constrain: hook for sharding.
      architecture: of a pre-trained encoder, say.
      third: a head for "uncertain".

    Raises:
      ValueError: the name, ``remat`` or ``attention`` is unknown, or a share is outside [0, 1).
    """
    if not (0 <= dropout < 1 and 0 <= drop_path < 1):
        raise ValueError(f"dropout is {dropout} and drop_path {drop_path}; expected shares in [0, 1)")
    if remat not in vit.REMAT:
        raise ValueError(f"remat {remat!r} is unknown; expected one of {', '.join(vit.REMAT)}")
    if architecture is None:
        architecture, _ = vit.parse_model(name)
    kind = None if dtype is None else jnp.dtype(dtype)
    choose(attention, kind or jnp.float32, architecture.width // architecture.heads)
    return LUViT(findings, architecture, dropout, drop_path, kind, remat, scan, attention, constrain, third)


def evaluated(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without those of a head that only the loss of training reads."""
    return {name: value for name, value in params.items() if name != "third"}


def describe(model: LUViT) -> dict[str, Any]:
    """The model's architecture as JSON, from which :func:`from_description` builds it again."""
    return dataclasses.asdict(model.architecture)


def from_description(description: Mapping[str, Any] | str, findings: int, **execution: Any) -> LUViT:
    """The model of a checkpoint.

    Args:
      description: of :func:`describe`, or a name such as "S/16", which is what older checkpoints hold.
      findings: number of findings.
      execution: arguments of :func:`build` on how to compute.

    Raises:
      ValueError: the description has fields that are unknown here, lacks some, or does not fit together.
    """
    if isinstance(description, str):
        return build(description, findings, **execution)
    fields = dataclasses.fields(vit.Architecture)
    unknown = sorted(set(description) - {f.name for f in fields})
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in description]
    if unknown or missing:
        raise ValueError(
            f"architecture with unknown fields {unknown} and without {missing}: was it stored by another version?"
        )
    return build("", findings, architecture=vit.Architecture(**description), **execution)
