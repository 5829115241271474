"""Light augmentation for radiographs: one affine resampling and one change of grey levels.

XLA does it on the CPU, a batch in one call, which takes a fifth of PIL's time and leaves Python's lock alone. Pixels
are computed in integers, so that an image comes out the same in any batch and from any compiler.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Bits after the point. A place of 12 fits int32 for images of up to 10,000 pixels; four pixels weighted by 8 and 8 bits
# take 24, or the whole of uint32 for pixels of 16 bits; levels of 16 bits, those after the point included, times a
# slope of 12 take 29.
_PLACE, _WEIGHT, _LEVEL, _SLOPE = 12, 8, 16, 12


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes; each is drawn uniformly from -x to x.

    Attributes:
      translate: shift along each axis, as a share of the side.
      rotate: degrees.
      scale: change of size, as a share.
      brightness: added, as a share of the full range of grey.
      contrast: change of the slope about mid-grey, as a share.
      flip: probability of a left-right flip. 0 by default: the heart is on one side, and reports name sides.
    """

    translate: float = 0.04
    rotate: float = 5.0
    scale: float = 0.08
    brightness: float = 0.08
    contrast: float = 0.15
    flip: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          ValueError: lists the fields out of range.
        """
        limits = {"translate": 0.5, "rotate": 180, "scale": 0.9, "brightness": 1, "contrast": 1, "flip": 1}
        bad = [f"{k} is {getattr(self, k)}, expected 0 to {top}" for k, top in limits.items()
               if not 0 <= getattr(self, k) <= top]  # fmt: skip
        if bad:
            raise ValueError("Augment: " + "; ".join(bad))

    @property
    def draws(self) -> int:
        """How many random numbers an image takes."""
        return 7

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Changed images; what lies outside of an image is black.

        Args:
          images: uint8 or uint16 [b, h, w, 1].
          draws: float64 [b, 7] in [-1, 1), one row an image.

        Returns:
          The same dtype [b, h, w, 1], read-only.

        Raises:
          RuntimeError: JAX_PLATFORMS leaves out the CPU.
        """
        _, height, width, _ = images.shape
        white = np.iinfo(images.dtype).max
        slope = 1 + self.contrast * draws[:, 0]
        offset = white / 2 * (1 - slope) + white * self.brightness * draws[:, 1]
        a, b, c, d, e, f = self.inverse(width, height, draws).T[..., None]
        x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
        # A pixel's centre is at one half, the frame is one pixel wide, and half a weight turns cutting into rounding.
        start = 0.5 + 0.5 / (1 << _WEIGHT)
        places = [_fixed(v, _PLACE) for v in (a * x, b * y + c + start, d * x, e * y + f + start)]
        levels = [_fixed(slope, _SLOPE), _fixed(offset, _LEVEL - white.bit_length() + _SLOPE)]
        with jax.default_device(_cpu()):
            return np.asarray(_changed(images[..., 0], *places, *levels))[..., None]

    def inverse(self, width: int, height: int, draws: np.ndarray) -> np.ndarray:
        """Where each output point (x, y) comes from, in pixels: (ax + by + c, dx + ey + f).

        Args:
          width: of the images.
          height: of the images.
          draws: [b, 7].

        Returns:
          a to f, float64 [b, 6].
        """
        u = draws.T
        mirror = np.where((u[2] + 1) / 2 < self.flip, -1.0, 1.0)
        angle = np.radians(self.rotate * u[3])
        zoom = 1 / (1 + self.scale * u[4])
        cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
        x, y = width / 2, height / 2
        dx, dy = x + self.translate * width * u[5], y + self.translate * height * u[6]
        a, b, d, e = mirror * cos, mirror * sin, -sin, cos
        return np.stack([a, b, x - a * dx - b * dy, d, e, y - d * dx - e * dy], axis=1)


def _fixed(values: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(values * (1 << bits)).astype(np.int32)


@functools.cache
def _cpu() -> Any:
    return jax.local_devices(backend="cpu")[0]


@jax.jit
@jax.vmap
def _changed(
    image: jax.Array,
    x_columns: jax.Array,
    x_rows: jax.Array,
    y_columns: jax.Array,
    y_rows: jax.Array,
    slope: jax.Array,
    offset: jax.Array,
) -> jax.Array:
    """One image [h, w]; output pixel (i, j) comes from x_columns[j] + x_rows[i] in the framed image, y alike."""
    height, width = image.shape
    pitch = width + 3  # of the image in a black frame: one pixel on the left and above, two on the other sides
    framed = jnp.pad(image, ((1, 2), (1, 2))).reshape(-1)
    x = jnp.clip(x_columns[None, :] + x_rows[:, None], 0, (width + 1) << _PLACE)
    y = jnp.clip(y_columns[None, :] + y_rows[:, None], 0, (height + 1) << _PLACE)
    one = 1 << _WEIGHT
    right, lower = (((v >> (_PLACE - _WEIGHT)) & (one - 1)).astype(jnp.uint32) for v in (x, y))
    at = (y >> _PLACE) * pitch + (x >> _PLACE)

    def pixel(step: int) -> jax.Array:
        return framed.at[at + step].get(mode="promise_in_bounds").astype(jnp.uint32)

    above = pixel(0) * (one - right) + pixel(1) * right
    below = pixel(pitch) * (one - right) + pixel(pitch + 1) * right
    grey = above * (one - lower) + below * lower
    bits = 8 * image.dtype.itemsize
    # Of the sum's bits + 2 * _WEIGHT the first _LEVEL are kept.
    over = bits + 2 * _WEIGHT - _LEVEL
    grey = ((grey + (1 << (over - 1))) >> over).astype(jnp.int32) * slope + offset
    rest = _LEVEL - bits + _SLOPE
    return jnp.clip((grey + (1 << (rest - 1))) >> rest, 0, (1 << bits) - 1).astype(image.dtype)
