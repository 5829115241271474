"""Vision transformer encoder: image to patch tokens.

Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929), pre-norm; the erf GELU and separate query, key and value projections
keep the parameters interchangeable with the Hugging Face models.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax import Array

DType = Any


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape of an encoder.

    Attributes:
      width: d of the tokens; a multiple of ``heads``.
      depth: number of blocks.
      heads: attention heads.
      mlp: hidden width of the MLPs.
      stem: patch embedding. "patch" is the single strided projection of the paper; "conv" is a stack of stride-2
        convolutions (Xiao et al., NeurIPS 2021, arXiv 2106.14881), which learns from few films and little compute.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    stem: str = "patch"


SIZES: dict[str, Size] = {
    "tiny": Size(32, 1, 2, 64, "conv"),  # for tests
    "demo": Size(128, 2, 4, 256, "conv"),
    "Ti": Size(192, 12, 3, 768),
    "S": Size(384, 12, 6, 1536),
    "B": Size(768, 12, 12, 3072),
    "L": Size(1024, 24, 16, 4096),
}


def parse_model(name: str) -> tuple[Size, int]:
    """Size and patch side of a name such as "S/16".

    Raises:
      ValueError: the name is not SIZE/PATCH with a known size and a patch of 8, 14 or 16 pixels.
    """
    size, _, patch = name.partition("/")
    if size not in SIZES or patch not in ("8", "14", "16"):
        raise ValueError(
            f"model {name!r} is unknown; expected SIZE/PATCH with SIZE in {list(SIZES)} and PATCH 8, 14 or 16"
        )
    if SIZES[size].stem == "conv" and patch == "14":
        raise ValueError(f"model {name!r}: a convolutional stem halves the picture; its patch is 8 or 16")
    return SIZES[size], int(patch)


class Mlp(nn.Module):
    """Two dense layers with an erf GELU: [..., d] to [..., d]."""

    hidden: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = nn.Dense(self.hidden, dtype=self.dtype, name="up")(x)
        return nn.Dense(width, dtype=self.dtype, name="down")(jax.nn.gelu(x, approximate=False))


class Attention(nn.Module):
    """Multi-head attention of ``queries`` [b, q, d] over ``tokens`` [b, l, d]; ``mask`` [b, q, l], True = visible."""

    heads: int
    dtype: DType = None

    @nn.compact
    def __call__(self, queries: Array, tokens: Array, mask: Array | None = None) -> Array:
        width = queries.shape[-1]

        def project(name: str, x: Array) -> Array:
            return nn.DenseGeneral((self.heads, width // self.heads), dtype=self.dtype, name=name)(x)

        mixed = jax.nn.dot_product_attention(
            project("query", queries),
            project("key", tokens),
            project("value", tokens),
            mask=None if mask is None else mask[:, None],
        )
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="out")(mixed)


class Block(nn.Module):
    """Pre-norm transformer block: [b, l, d] to [b, l, d]; ``mask`` [b, l, l] bool, True = visible."""

    heads: int
    mlp: int
    dropout: float = 0.0
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, train: bool = False) -> Array:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="attention_norm")(x)
        x = x + drop(Attention(self.heads, self.dtype, name="attention")(y, y, mask))
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="mlp_norm")(x)
        return x + drop(Mlp(self.mlp, self.dtype, name="mlp")(y))


class ConvStem(nn.Module):
    """Stride-2 3x3 convolutions down to one token a patch: [b, h, w, 1] to [b, h / patch, w / patch, d]."""

    width: int
    patch: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        halvings = self.patch.bit_length() - 1
        for i in range(halvings):
            features = self.width >> (halvings - 1 - i)
            x = nn.Conv(features, (3, 3), (2, 2), use_bias=False, dtype=self.dtype, name=f"conv_{i}")(x)
            x = jax.nn.relu(nn.GroupNorm(num_groups=4, dtype=self.dtype, name=f"norm_{i}")(x))
        return nn.Conv(self.width, (1, 1), dtype=self.dtype, name="project")(x)


class VisionTransformer(nn.Module):
    """Image [b, h, w, 1] float to patch tokens [b, l, d], l = (h / patch) (w / patch), normed."""

    size: Size
    patch: int
    dropout: float = 0.0
    dtype: DType = None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        b, h, w, _ = images.shape
        if h % self.patch or w % self.patch:
            raise ValueError(f"image of {h} x {w} pixels is not divisible into patches of {self.patch}")
        if self.size.stem == "conv":
            x = ConvStem(self.size.width, self.patch, self.dtype, name="stem")(images)
        else:
            side = (self.patch, self.patch)
            x = nn.Conv(self.size.width, side, side, padding="VALID", dtype=self.dtype, name="embedding")(images)
        x = x.reshape(b, -1, self.size.width)
        position = self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], self.size.width))
        x = x + position.astype(x.dtype)
        for i in range(self.size.depth):
            x = Block(self.size.heads, self.size.mlp, self.dropout, self.dtype, name=f"block_{i}")(x, train=train)
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
