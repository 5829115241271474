"""Where a patch is: learned embeddings brought to another grid, and rotary embeddings.

Resizing follows ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False)``, which the Hugging Face models
apply to theirs, with and without ``antialias``. :func:`jax.image.resize` differs from the former: its cubic kernel is
another (Keys' a of -1/2 instead of -3/4), and it narrows the kernel's support at the border instead of repeating it.
"""

import numpy as np
from jax import Array
from jax import numpy as jnp


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE ASSP 29(6), 1981) at distances ``x``, zero from 2 on."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resampling(source: int, target: int, antialias: bool) -> np.ndarray:
    """Weights [target, source] float64 of bicubic interpolation along one axis; every row sums to 1."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    if antialias:
        distance = (np.arange(source)[None] - centres[:, None]) / max(scale, 1.0)
        weights = cubic(distance, -0.5)
        return weights / weights.sum(1, keepdims=True)
    weights = np.zeros((target, source))
    first = np.floor(centres).astype(int)
    for tap in range(-1, 3):
        place = first + tap
        # Beyond the border its value repeats.
        np.add.at(weights, (np.arange(target), np.clip(place, 0, source - 1)), cubic(place - centres, -0.75))
    return weights


def resize(position: np.ndarray, side: int, antialias: bool) -> np.ndarray:
    """Position embeddings of a square grid, row by row, for one of ``side`` patches a side.

    Args:
      position: [1, l, d], l a square number.
      side: of the new grid.
      antialias: as in the torch function: smooths where the grid becomes coarser.

    Returns:
      [1, side * side, d] of the type of ``position``; ``position`` itself where the grid is the same.

    Raises:
      ValueError: the embeddings are not those of a square grid.
    """
    _, length, width = position.shape
    old = int(np.sqrt(length) + 0.5)
    if old * old != length:
        raise ValueError(f"{length} position embeddings are not those of a square grid")
    if old == side:
        return position
    weights = resampling(old, side, antialias)
    grid = position.astype(np.float64).reshape(old, old, width)
    grid = np.einsum("yi,xj,ijd->yxd", weights, weights, grid, optimize=True)
    return grid.reshape(1, side * side, width).astype(position.dtype)


def rotary(rows: int, columns: int, width: int, theta: float, prefix: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the axial rotary embedding of DINOv3 (Siméoni et al. 2025, arXiv 2508.10104, section 3).

    Centres of patches are mapped to [-1, 1] along either axis; a quarter of the channels pairs up for each. Tokens in
    front of the patches are not turned. The jitter of the coordinates in that paper's pre-training is not drawn here.

    Args:
      rows: patches along the height.
      columns: patches along the width.
      width: channels of a head, a multiple of 4.
      theta: base of the periods.
      prefix: number of tokens in front of the patches.

    Returns:
      Two arrays [prefix + rows * columns, width] float32.
    """
    frequency = 1 / theta ** np.arange(0, 1, 4 / width, dtype=np.float32)
    y, x = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n) * 2 - 1 for n in (rows, columns))
    centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    angles = (2 * np.pi * centres[:, :, None] * frequency).reshape(len(centres), -1)
    angles = np.tile(angles, 2)
    angles = np.concatenate([np.zeros((prefix, width)), angles])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Array, turn: tuple[np.ndarray, np.ndarray]) -> Array:
    """Turns pairs of channels of ``x`` [b, l, heads, width] by ``turn`` of :func:`rotary`; computed in float32."""
    cosine, sine = (t[None, :, None, :] for t in turn)
    wide = x.astype(jnp.float32)
    first, second = jnp.split(wide, 2, axis=-1)
    return (wide * cosine + jnp.concatenate([-second, first], axis=-1) * sine).astype(x.dtype)
