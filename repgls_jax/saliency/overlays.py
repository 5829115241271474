"""A map over its film, with the lesion's outline and a caption, and sheets of such pictures.

Colours run along matplotlib's "inferno", whose lightness rises evenly, and become opaque where the map is high: what
the map leaves out shows the bare film. A map is drawn relative to its own highest value; how sure the network is stands
in the caption, not in the colours.
"""

import functools
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from repgls_jax.data.images import eight_bits

OPAQUE = 0.62  # of the colours where the map is highest: the film stays visible beneath
OUTLINE = (64, 224, 255)  # a cold colour, which inferno has not
_PAPER, _INK, _SOFT = (18, 21, 23), (233, 236, 238), (163, 172, 180)
_TITLE, _NOTE = 15, 12  # sizes of letters
_STRIP = 42  # pixels of a caption


@functools.cache
def _colours() -> np.ndarray:
    """uint8 [256, 3]."""
    return (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def enlarge(values: np.ndarray, side: int, smooth: bool = True) -> np.ndarray:
    """Values [rows, columns] at ``side`` pixels a side, between centres linearly or by the nearest: float32 [h, w]."""
    kind = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), kind))


def relative(values: np.ndarray) -> np.ndarray:
    """Values by their highest, in [0, 1]; zero where nothing is above zero."""
    top = float(values.max())
    return np.clip(values / top, 0.0, 1.0).astype(np.float32) if top > 0 else np.zeros_like(values, np.float32)


def blend(film: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A film tinted by a map.

    Args:
      film: uint8 [h, w].
      values: [h, w], in [0, 1].

    Returns:
      uint8 [h, w, 3]; where a value is 0 the film itself.
    """
    colours = _colours()[np.rint(values * 255).astype(np.int64)].astype(np.float32)
    weight = (OPAQUE * values)[..., None]
    return np.rint((1 - weight) * film[..., None] + weight * colours).astype(np.uint8)


def outline(mask: np.ndarray, width: int = 2) -> np.ndarray:
    """The rim of a mask: bool [h, w], ``width`` pixels inside it."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def picture(film: np.ndarray, values: np.ndarray | None, side: int, mask: np.ndarray | None = None) -> Image.Image:
    """A film with a map over it.

    Args:
      film: uint8 or uint16 [h, w], square.
      values: the map [rows, columns], never negative; None draws the bare film.
      side: of the picture in pixels.
      mask: bool [h, w], drawn as an outline; None or an empty one draws none.
    """
    grey = Image.fromarray(eight_bits(film)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = blend(np.asarray(grey), relative(enlarge(np.zeros((1, 1)) if values is None else values, side)))
    if mask is not None and mask.any():
        pixels[outline(enlarge(mask, side, smooth=False) > 0.5)] = OUTLINE
    return Image.fromarray(pixels)


def captioned(drawn: Image.Image, title: str, note: str = "") -> Image.Image:
    """A picture with a strip below that holds a title and a note, each cut to the picture's width."""
    out = Image.new("RGB", (drawn.width, drawn.height + _STRIP), _PAPER)
    out.paste(drawn, (0, 0))
    draw = ImageDraw.Draw(out)
    for text, size, colour, y in ((title, _TITLE, _INK, 3), (note, _NOTE, _SOFT, 23)):
        font = _font(size)
        while text and draw.textlength(text, font=font) > drawn.width - 10:
            text = text[:-2] + "…" if len(text) > 2 else ""
        draw.text((5, drawn.height + y), text, font=font, fill=colour)
    return out


def said(finding: str, probability: float, rate: float | None = None) -> tuple[str, str]:
    """Title and note of a caption: the finding with its probability, and the rate expected of a report."""
    return f"{finding}  {probability:.2f}", "" if rate is None else f"rate {rate:+.2f}"


def sheet(rows: Sequence[Sequence[Image.Image]], gap: int = 6) -> Image.Image:
    """Pictures of one size in rows.

    Raises:
      ValueError: there is none.
    """
    if not rows or not rows[0]:
        raise ValueError("a sheet needs a picture")
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    out = Image.new("RGB", (gap + columns * (width + gap), gap + len(rows) * (height + gap)), _PAPER)
    for i, row in enumerate(rows):
        for j, one in enumerate(row):
            out.paste(one, (gap + j * (width + gap), gap + i * (height + gap)))
    return out


def png(drawn: Image.Image, colours: int = 0) -> bytes:
    """The picture as a PNG file; ``colours`` other than 0 keeps that many, for small files."""
    out = io.BytesIO()
    (drawn.quantize(colours, dither=Image.Dither.NONE) if colours else drawn).save(out, "PNG", optimize=True)
    return out.getvalue()
