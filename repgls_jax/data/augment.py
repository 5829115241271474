"""Light augmentation for radiographs: one affine resampling and one change of grey levels."""

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes; each is drawn uniformly from -x to x, from grain's generator for that example.

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

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Changes ``example["image"]``, uint8 [h, w, 1]; the other fields stay."""
        u = rng.uniform(-1.0, 1.0, 7)
        grey = np.arange(256, dtype=np.float32)
        grey = (grey - 127.5) * (1 + self.contrast * u[0]) + 127.5 + 255 * self.brightness * u[1]
        table = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        image = Image.fromarray(example["image"][..., 0])
        mirror = -1.0 if (u[2] + 1) / 2 < self.flip else 1.0
        moved = image.transform(
            image.size, Image.Transform.AFFINE, self._inverse(image.size, u[3:], mirror), Image.Resampling.BILINEAR
        )
        return example | {"image": table[np.asarray(moved)][..., None]}

    def _inverse(self, size: tuple[int, int], u: np.ndarray, mirror: float) -> tuple[float, ...]:
        """PIL's six numbers: where in the input each output point comes from, about the image's centre."""
        width, height = size
        angle = math.radians(self.rotate * u[0])
        zoom = 1 / (1 + self.scale * u[1])
        cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
        x, y = width / 2, height / 2
        dx, dy = x + self.translate * width * u[2], y + self.translate * height * u[3]
        a, b, d, e = mirror * cos, mirror * sin, -sin, cos
        return a, b, x - a * dx - b * dy, d, e, y - d * dx - e * dy
