"""Maps of where LU-ViT finds what it finds: on the grid of its patches, for each film and finding, never negative.

grad_cam   Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391) with tokens A as the feature map: the weight of a
           channel is the mean over patches of the gradient of the finding's logit, map = relu(A . weight).
hires_cam  HiResCAM (Draelos & Carin 2020, arXiv 2011.08891): the gradient of each patch instead of their mean,
           map = relu(sum over channels of A * gradient).
attention  the read-out's attention: how much the finding's query takes from each patch, mean over heads.
rollout    attention rollout (Abnar & Zuidema, ACL 2020, arXiv 2005.00928) of the encoder, A_i' = (A_i + I) / 2 with the
           mean over heads A_i, R = A_n' ... A_1', read by the finding's query: attention @ R. That it starts from the
           query, where the paper starts from the class token, is the project's decision: it makes it per finding.

The first two read the tokens behind all blocks, and "grad_cam@1" those behind one, "grad_cam@0" the patches before any:
blocks may carry what a patch shows to other patches, and the later the tokens, the less their place is the film's.
Attention and rollout sum to 1 at most (what the class token or registers take is missing); they tell where a query
looks, not whether what it sees speaks for the finding or against it. The first two tell what speaks for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from repgls_jax.models.luvit import LUViT
from repgls_jax.saliency import observe
from repgls_jax.saliency.observe import READ, Seen

Maps = dict[str, Any]
# (what was seen, gradient [c, b, l, d] of each logit by the tokens or None, number of tokens in front): [b, c, l].
MapFn = Callable[[Seen, Array | None, int], Array]


def grad_cam(seen: Seen, gradient: Array | None, prefix: int) -> Array:
    """Channels weighted by the mean over patches of their gradient."""
    assert gradient is not None
    weight = gradient[:, :, prefix:].mean(axis=2)
    return jax.nn.relu(jnp.einsum("bld,cbd->bcl", seen.tokens[:, prefix:].astype(jnp.float32), weight))


def hires_cam(seen: Seen, gradient: Array | None, prefix: int) -> Array:
    """Channels weighted by their gradient at the patch."""
    assert gradient is not None
    return jax.nn.relu(
        jnp.einsum("bld,cbld->bcl", seen.tokens[:, prefix:].astype(jnp.float32), gradient[:, :, prefix:])
    )


def attention(seen: Seen, gradient: Array | None, prefix: int) -> Array:
    """What the finding's query takes from each patch."""
    read = seen.attention[READ].mean(axis=1)
    return read[..., read.shape[-1] - (seen.tokens.shape[1] - prefix) :]


def rollout(seen: Seen, gradient: Array | None, prefix: int) -> Array:
    """The same through the blocks, back to the patches that came in."""
    read = seen.attention[READ].mean(axis=1)
    patches = seen.tokens.shape[1] - prefix
    front = read.shape[-1] - patches  # the class token is read, registers are not
    read = jnp.concatenate(
        [read[..., :front], jnp.zeros((*read.shape[:-1], prefix - front), read.dtype), read[..., front:]], axis=-1
    )
    for i in reversed(range(len(seen.attention) - 1)):
        mean = seen.attention[f"block_{i}"].mean(axis=1)
        read = 0.5 * (read + jnp.einsum("bcq,bqk->bck", read, mean))
    return read[..., prefix:]


METHODS: dict[str, MapFn] = {
    "grad_cam": grad_cam,
    "hires_cam": hires_cam,
    "attention": attention,
    "rollout": rollout,
}
TITLES = {
    "grad_cam": "Grad-CAM",
    "hires_cam": "HiResCAM",
    "attention": "Attention of the query",
    "rollout": "Attention rollout",
}
NEED_GRADIENT = frozenset({"grad_cam", "hires_cam"})


def parse(method: str) -> tuple[str, int]:
    """Name and blocks of "grad_cam@1": ("grad_cam", 1); -1 where none are given.

    Raises:
      ValueError: the method is unknown, or has no use for blocks.
    """
    name, at, blocks = method.partition("@")
    number = blocks.removeprefix("-").isdigit()
    if name not in METHODS or bool(at) != number or (at and name not in NEED_GRADIENT):
        some = ", ".join(METHODS)
        raise ValueError(f"method {method!r} is unknown; expected {some}, the first two also with blocks: grad_cam@1")
    return name, int(blocks) if at else -1


def title(method: str) -> str:
    """A method as people read it."""
    name, blocks = parse(method)
    if "@" not in method:
        return TITLES[name]
    return f"{TITLES[name]}, {f'behind {blocks}' if blocks else 'before the'} block{'' if blocks == 1 else 's'}"


def require(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods as they were asked for, each once.

    Raises:
      ValueError: none, or one that is unknown.
    """
    if not methods:
        raise ValueError(f"no method is asked for; expected some of {', '.join(METHODS)}")
    for method in methods:
        parse(method)
    return tuple(dict.fromkeys(methods))


def gradients(model: LUViT, params: Mapping[str, Any], images: Array, blocks: int = -1) -> tuple[Array, Seen]:
    """The gradient of each finding's logit by the tokens behind some blocks: [c, b, prefix + l, d], and the pass.

    Row c comes from logit c alone; a film's logit does not depend on the batch's other films, so that one backward pass
    a finding serves all of them.
    """
    arch = model.architecture
    count = arch.prefix + (images.shape[1] // arch.patch) * (images.shape[2] // arch.patch)
    still = jnp.zeros((len(images), count, arch.width), jnp.float32)

    def run(perturbation: Array) -> tuple[Array, Seen]:
        seen = observe.forward(model, params, images, blocks, perturbation)
        return seen.logits, seen

    logits, pull, seen = jax.vjp(run, still, has_aux=True)
    ones = jnp.broadcast_to(jnp.eye(model.findings, dtype=logits.dtype)[:, None], (model.findings, *logits.shape))
    return jax.vmap(lambda cotangent: pull(cotangent)[0])(ones), seen


def compute(model: LUViT, params: Mapping[str, Any], images: Array, methods: Sequence[str]) -> Maps:
    """The maps of films, by an :func:`observe.unrolled` model.

    Returns:
      {"probability": [b, c] in (0, 1), "rate": [b, c] in (-1, 1), "maps": {method: [b, c, rows, columns] >= 0}},
      float32.

    Raises:
      ValueError: a method is unknown, or the encoder has not as many blocks.
    """
    wanted = {method: parse(method) for method in require(methods)}
    passes: dict[int | None, tuple[Array | None, Seen]] = {
        blocks: gradients(model, params, images, blocks)
        for blocks in sorted({blocks for name, blocks in wanted.values() if name in NEED_GRADIENT})
    }
    if not passes:
        passes[None] = None, observe.forward(model, params, images)
    arch = model.architecture
    grid = (images.shape[1] // arch.patch, images.shape[2] // arch.patch)
    maps = {}
    for method, (name, blocks) in wanted.items():
        # Attention is the same in every pass.
        gradient, seen = passes[blocks] if name in NEED_GRADIENT else next(iter(passes.values()))
        maps[method] = METHODS[name](seen, gradient, arch.prefix).reshape(*seen.logits.shape, *grid)
    return {"probability": jax.nn.sigmoid(seen.logits), "rate": seen.rate, "maps": maps}


def make(model: LUViT, methods: Sequence[str] = tuple(METHODS)) -> Callable[[Any, Array], Maps]:
    """Jitted :func:`compute` of an :func:`observe.unrolled` model: (parameters, images [b, h, w, 1]) -> maps.

    Raises:
      ValueError: a method is unknown, or the encoder has not as many blocks.
    """
    methods = require(methods)
    for method in methods:
        observe.passed(model, parse(method)[1])
    return jax.jit(lambda params, images: compute(model, params, images, methods))


def resize(maps: Array, side: int | tuple[int, int]) -> Array:
    """Maps [..., rows, columns] at the size of the film, between the centres of patches linearly: [..., h, w]."""
    size = (side, side) if isinstance(side, int) else side
    return jax.image.resize(maps, (*maps.shape[:-2], *size), "linear")
