"""Multi-head attention, and which implementation computes it."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repgls_jax.models import positions

DType = Any
IMPLEMENTATIONS = ("xla", "cudnn", "auto")


def flash(device: Any, dtype: Any, width: int) -> bool:
    """Whether cuDNN's flash attention runs on ``device`` for heads of ``width`` channels of type ``dtype``.

    It needs a CUDA device of compute capability 8.0 (Ampere) or later, half precision, and a width that is a multiple
    of 8 and at most 128, or 256 from capability 9.0 on.
    """
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or width % 8:
        return False
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return False
    capability = tuple(int(part) for part in device.compute_capability.split("."))
    return capability >= (8, 0) and width <= (256 if capability >= (9, 0) else 128)


def choose(implementation: str, dtype: Any, width: int) -> Literal["xla", "cudnn"]:
    """The implementation for :func:`jax.nn.dot_product_attention`, "xla" or "cudnn".

    "auto" takes cuDNN's where :func:`flash` says that it runs on this process's first device, and XLA's elsewhere. On a
    TPU that is XLA's too: the flash kernels of ``jax.experimental.pallas`` want sequences in multiples of 128, which
    patch grids are not, and at their lengths the score matrix is small.

    Raises:
      ValueError: the implementation is unknown, or "cudnn" is asked for in single precision.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r} is unknown; expected one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "cudnn" and jnp.dtype(dtype).itemsize != 2:
        raise ValueError(f"attention 'cudnn' computes in half precision, not in {jnp.dtype(dtype)}: set dtype=bfloat16")
    if implementation == "auto":
        return "cudnn" if flash(jax.local_devices()[0], dtype, width) else "xla"
    return "cudnn" if implementation == "cudnn" else "xla"


class Attention(nn.Module):
    """Multi-head attention; scores and softmax are float32 whatever ``dtype`` is.

    Attributes:
      heads: their number.
      dtype: of the computation; None keeps the input's.
      bias: which of the query, key and value projections have a bias, as letters of "qkv".
      implementation: see :func:`choose`. With a mask it is XLA's.
    """

    heads: int
    dtype: DType = None
    bias: str = "qkv"
    implementation: str = "xla"

    @nn.compact
    def __call__(
        self,
        queries: Array,
        tokens: Array,
        mask: Array | None = None,
        turn: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Array:
        """Reads ``tokens`` [b, l, d] for ``queries`` [b, q, d]: [b, q, d].

        Args:
          queries: what asks.
          tokens: what is read.
          mask: [b, q, l] bool, True = visible.
          turn: rotary embedding of queries and keys, see :func:`repgls_jax.models.positions.rotary`.
        """
        width = queries.shape[-1] // self.heads

        def project(name: str, x: Array) -> Array:
            use_bias = name[0] in self.bias
            return nn.DenseGeneral((self.heads, width), use_bias=use_bias, dtype=self.dtype, name=name)(x)

        query, key, value = project("query", queries), project("key", tokens), project("value", tokens)
        if turn is not None:
            query, key = positions.rotate(query, turn), positions.rotate(key, turn)
        implementation = choose("xla" if mask is not None else self.implementation, query.dtype, width)
        mixed = jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=None if mask is None else mask[:, None],
            implementation=implementation,
        )
        return nn.DenseGeneral(queries.shape[-1], axis=(-2, -1), dtype=self.dtype, name="out")(mixed)
