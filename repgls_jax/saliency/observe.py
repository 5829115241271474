"""One forward pass of LU-ViT with what happens inside at hand: the tokens of a block, and who attends to what.

The network is looked at from outside (Flax's method interceptors), so that it need not know of it and computes what it
computes in training. Blocks are looked at by name, hence unrolled: :func:`unrolled` makes any model and its parameters
so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax.models import positions, vit
from repgls_jax.models.attention import Attention
from repgls_jax.models.luvit import LUViT

READ = "read"  # the attention of the finding queries; those of the blocks are named "block_0", ...


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a forward pass showed. A pytree.

    Attributes:
      logits: [b, c] float32.
      rate: [b, c] float32 in (-1, 1).
      tokens: [b, prefix + l, d] behind as many blocks as was asked for, before any perturbation.
      attention: layer -> float32 [b, heads, queries, keys], rows that sum to 1. The read-out's queries are the c
        findings, and its keys the class token, if any, and the patches; a block's are all tokens.
    """

    logits: Array
    rate: Array
    tokens: Array
    attention: dict[str, Array]


jax.tree_util.register_dataclass(Seen, data_fields=["logits", "rate", "tokens", "attention"], meta_fields=[])


def unrolled(model: LUViT, params: Mapping[str, Any]) -> tuple[LUViT, dict[str, Any]]:
    """The same function of films, from blocks that are called one after the other and keep their scores.

    Args:
      model: scanned or not, with any implementation of attention.
      params: its parameters, or those of the unrolled model.
    """
    plain = model.clone(scan=False, remat="none", attention="xla", constrain=vit.identity, parent=None)
    return plain, vit.unstack_blocks(params)


def passed(model: LUViT, blocks: int) -> int:
    """``blocks`` that tokens have passed, counted from the front: 0 none, -1 all, -2 all but the last.

    Raises:
      ValueError: the encoder has not as many.
    """
    depth = model.architecture.depth
    if not -depth - 1 <= blocks <= depth:
        raise ValueError(f"tokens behind {blocks} blocks: this encoder has {depth}, expected {-depth - 1} to {depth}")
    return blocks % (depth + 1)


def forward(
    model: LUViT, params: Mapping[str, Any], images: Array, blocks: int = -1, perturbation: Array | None = None
) -> Seen:
    """A forward pass of an :func:`unrolled` model.

    Behind the last block tokens are taken after the norm that follows, as the finding queries read them. In front of it
    nothing would depend on a token's length, so that its product with its gradient would be zero, whatever the film.

    Args:
      model: of the parameters.
      params: parameters.
      images: [b, h, w, 1] uint8, uint16 or normalised floats.
      blocks: that the tokens wanted have passed, see :func:`passed`.
      perturbation: [b, prefix + l, d], added to these tokens on their way on; its gradient is theirs.

    Raises:
      ValueError: the encoder has not as many blocks.
    """
    number = passed(model, blocks)
    into = ("encoder", f"block_{number}")  # there is none behind the last
    last = ("encoder", "norm") if number == model.architecture.depth else None
    kept: dict[str, Array] = {}
    projected: dict[str, Array] = {}
    attention: dict[str, Array] = {}

    def keep(tokens: Array) -> Array:
        kept["tokens"] = tokens
        return tokens if perturbation is None else tokens + perturbation.astype(tokens.dtype)

    def look(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if module.path == into and context.method_name == "__call__":
            args = (keep(args[0]), *args[1:])
        out = call(*args, **kwargs)
        if context.method_name != "__call__":
            return out
        if isinstance(module, nn.DenseGeneral) and module.name in ("query", "key"):
            projected[module.name] = out
        elif isinstance(module, Attention):
            turn = kwargs.get("turn", args[3] if len(args) > 3 else None)
            layer = READ if module.path[-1] == READ else module.path[-2]
            attention[layer] = _weights(projected.pop("query"), projected.pop("key"), turn)
        elif module.path == last:
            return keep(out)
        return out

    with nn.intercept_methods(look):
        out: Any = model.apply({"params": params}, images)
    return Seen(out["logits"], out["rate"], kept["tokens"], attention)


def _weights(query: Array, key: Array, turn: vit.Turn | None) -> Array:
    """softmax(q k^T / sqrt(width)) of projections [b, l, heads, width]: float32 [b, heads, queries, keys]."""
    if turn is not None:
        query, key = positions.rotate(query, turn), positions.rotate(key, turn)
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(jnp.float32(query.shape[-1]))
    return jax.nn.softmax(scores, axis=-1)
