"""How well maps point at lesions, one film at a time; each map beside the mask of one finding.

pointing  the pointing game (Zhang et al., IJCV 2018, arXiv 1608.00507): is the map's highest pixel in the lesion?
energy    the share of the map's sum that lies in the lesion (Wang et al., CVPR-W 2020, arXiv 1910.01279).
iou_area  intersection over union with the map's highest pixels, as many as the lesion has. It is told the lesion's size
          and asks for its place alone.
iou       the same for a fixed share of the film, one value for each of :data:`SHARES`; which share counts is chosen on
          other films.

Where pixels tie, each is taken with the chance that drawing among them would give it: a map that is the same
everywhere scores what chance does (the lesion's share of the film, for pointing and energy). So does a map that is zero
everywhere, which has no energy to lie anywhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
METRICS = ("pointing", "iou", "iou_area", "energy")


def _taken(values: Array, ordered: Array, count: Array) -> Array:
    """How much of each pixel is among the ``count`` highest, in [0, 1]; pixels that tie share what is left for them.

    Args:
      values: [p].
      ordered: the same, highest first.
      count: 1 to p.
    """
    level = ordered[count - 1]
    above, level_is = values > level, values == level
    left = count - above.sum()
    return above + level_is * (left / level_is.sum())


def _overlap(taken: Array, mask: Array, count: Array) -> Array:
    inside = (taken * mask).sum()
    return inside / (count + mask.sum() - inside)


def _one(values: Array, mask: Array, ordered: Array) -> dict[str, Array]:
    mask = mask.astype(jnp.float32)
    pixels = values.shape[0]
    area = mask.sum().astype(jnp.int32)
    total = values.sum()
    share = area / pixels
    counts = jnp.asarray([max(1, round(share * pixels)) for share in SHARES], jnp.int32)
    one, own = jnp.asarray(1, jnp.int32), jnp.maximum(area, 1)
    return {
        "pointing": (_taken(values, ordered, one) * mask).sum(),
        "iou": jax.vmap(lambda count: _overlap(_taken(values, ordered, count), mask, count))(counts),
        "iou_area": _overlap(_taken(values, ordered, own), mask, own),
        "energy": jnp.where(total > 0, (values * mask).sum() / jnp.where(total > 0, total, 1.0), share),
        "empty": (ordered[0] <= 0).astype(jnp.float32),
    }


_all = jax.jit(jax.vmap(_one))


def score(maps: Any, masks: Any) -> dict[str, Array]:
    """Scores of maps. All but the sorting is jitted: NumPy sorts some thirty times as fast as XLA does on a CPU.

    Args:
      maps: [n, h, w], never negative.
      masks: bool [n, h, w], True in the lesion, of one pixel or more.

    Returns:
      pointing, iou_area, energy: float32 [n] in [0, 1]; iou: float32 [n, len(SHARES)]; empty: 1 where the map is zero
      everywhere.
    """
    flat = np.asarray(maps, np.float32).reshape(len(maps), -1)
    return _all(flat, np.asarray(masks).reshape(len(flat), -1), np.sort(flat, axis=-1)[:, ::-1])
