"""The optimizer: AdamW with warm-up and cosine decay, and what of the parameters it moves and how far.

Decoupled weight decay: Loshchilov and Hutter, ICLR 2019 (arXiv 1711.05101). Learning rates by layer: Bao et al., BEiT,
ICLR 2022 (arXiv 2106.08254), as in the fine-tuning of vision transformers since.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from repgls_jax.train.sharding import SCANNED, path_of
from repgls_jax.train.state import Params

_BLOCK = re.compile(r"(?:.*/)?block_(\d+)/.*")
# What turns the input into tokens: of a vision transformer, and of the RGN.
_INPUT = re.compile(r"(?:encoder/)?(?:embedding|stem|position|class_token|registers|words|neighbours)(?:/.*)?")


def optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to zero and clipping by global norm; decays matrices only.

    Frozen parameters get neither update nor decay, have no moments, and do not count in the norm.

    Args:
      config: learning_rate, weight_decay, warmup (share of the run, in [0, 1)), clip (global norm), layer_decay (factor
        of the learning rate from each layer to the one below it, in (0, 1]), freeze (see :func:`frozen`).
      steps: length of the run.

    Raises:
      ValueError: layer_decay is out of range. A pattern of ``freeze`` that matches nothing raises in ``init``.
    """
    if not 0 < config.layer_decay <= 1:
        raise ValueError(f"layer_decay is {config.layer_decay}; expected a factor in (0, 1], 1 for equal rates")
    warmup = max(1, round(config.warmup * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
    tx: optax.GradientTransformation = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=matrices),
    )
    patterns = tuple(config.freeze)
    if patterns:

        def labels(params: Params) -> Any:
            held = frozen(_paths(params), patterns)
            return jax.tree_util.tree_map_with_path(lambda k, _: "frozen" if path_of(k) in held else "moved", params)

        tx = optax.partition({"moved": tx, "frozen": optax.set_to_zero()}, labels)
    if config.layer_decay < 1:
        tx = optax.chain(tx, scale_by_layer(config.layer_decay))
    return tx


def matrices(params: Params) -> Any:
    """Tree of bool: True for arrays of at least two axes, not counting that of scanned blocks."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, p: p.ndim - int(SCANNED.fullmatch(path_of(keys)) is not None) > 1, params
    )


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Scales updates by ``decay ** (depth + 1 - layer)``: the input's are layer 0, block i is layer i + 1, and what
    comes after the blocks is layer depth + 1, at the full rate. Scanned blocks are scaled along their depth axis."""

    def scaled(updates: Params, params: Params | None) -> Params:
        del params
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        depth = max((_depth(path_of(keys), leaf.shape) for keys, leaf in leaves), default=0)

        def scale(keys: Any, update: Any) -> Any:
            below = _below_top(path_of(keys), depth)
            factor = np.power(np.float32(decay), below, dtype=np.float32)
            return update * factor.reshape((-1,) + (1,) * (update.ndim - 1)) if below.ndim else update * factor

        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(scaled)


def _depth(path: str, shape: tuple[int, ...]) -> int:
    """How many blocks an array at ``path`` gives away."""
    if SCANNED.fullmatch(path):
        return shape[0]
    block = _BLOCK.fullmatch(path)
    return int(block[1]) + 1 if block else 0


def _below_top(path: str, depth: int) -> np.ndarray:
    """Layers from the top, scalar or [depth] int, of the parameter at ``path``."""
    if SCANNED.fullmatch(path):
        return depth - np.arange(depth)
    block = _BLOCK.fullmatch(path)
    if block:
        return np.asarray(depth - int(block[1]))
    return np.asarray(depth + 1 if _INPUT.fullmatch(path) else 0)


def frozen(paths: Iterable[str], patterns: Sequence[str]) -> frozenset[str]:
    """The paths under one of ``patterns``: regular expressions for a whole path or its first whole parts.

    "encoder" takes all of the encoder, "encoder/block_1" block 1 and not block 11, ".*/bias" every bias.

    Raises:
      ValueError: a pattern is no regular expression or matches nothing (every one that does is named, with names that
        are close), or nothing is left to train.
    """
    known = sorted(paths)
    parts = {path[: match.start()] for path in known for match in re.finditer("/", path)} | set(known)
    held: set[str] = set()
    problems = []
    for pattern in patterns:
        try:
            compiled = re.compile(f"(?:{pattern})(?:/.*)?")
        except re.error as error:
            problems.append(f"{pattern!r} is no regular expression ({error})")
            continue
        found = {path for path in known if compiled.fullmatch(path)}
        close = difflib.get_close_matches(pattern, sorted(parts), n=3, cutoff=0.3)
        if not found:
            problems.append(f"{pattern!r} matches no parameter; close names: {', '.join(close) or 'none'}")
        held |= found
    if problems:
        raise ValueError("freeze: " + "; ".join(problems) + ". Blocks that are scanned are one array, encoder/blocks")
    if known and held == set(known):
        raise ValueError(f"freeze {tuple(patterns)} leaves no parameter to train; name fewer")
    return frozenset(held)


def _paths(params: Params) -> list[str]:
    return [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
