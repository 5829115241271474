"""The convolutional patch embedding: Xiao et al., NeurIPS 2021 (arXiv 2106.14881).

Its layers are those of Flax under the same names and parameters, written so that few channels cost little: XLA's
convolutions on a CPU transpose their operands, backwards more than they compute, and its GroupNorm works out every
pixel's group one at a time.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array

DType = Any


class HalvingConv(nn.Module):
    """3x3 convolution with a stride of 2 and no bias, padded as "SAME": [b, h, w, c] to [b, h / 2, w / 2, features].

    The same as ``nn.Conv(features, (3, 3), 2, use_bias=False)`` for even sides, as one product of matrices.
    """

    features: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        _, h, w, c = x.shape
        if h % 2 or w % 2:
            raise ValueError(f"picture of {h} x {w} pixels cannot be halved; expected even sides")
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, c, self.features))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        # "SAME" pads an even side for a stride of 2 behind alone.
        padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        taps = [padded[:, i : i + h : 2, j : j + w : 2] for i in range(3) for j in range(3)]
        return jnp.concatenate(taps, axis=-1) @ kernel.reshape(9 * c, self.features)


class ChannelGroupNorm(nn.Module):
    """Group normalisation (Wu and He, arXiv 1803.08494) of [b, h, w, c], statistics in float32.

    The same as ``nn.GroupNorm(groups)``: sums are taken by channel, then by group, and mean, deviation, scale and bias
    become one factor and one term a channel.
    """

    groups: int
    dtype: DType = None
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        wide = x.reshape(b, h * w, c).astype(jnp.promote_types(x.dtype, jnp.float32))

        def group_mean(values: Array) -> Array:
            parts = values.mean(1).reshape(b, self.groups, c // self.groups).mean(-1)
            return jnp.repeat(parts, c // self.groups, axis=-1)[:, None]

        mean = group_mean(wide)
        variance = jnp.maximum(group_mean(wide * wide) - mean * mean, 0.0)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale
        y = wide * factor + (bias - mean * factor)
        return y.reshape(x.shape).astype(self.dtype or x.dtype)
