"""Reads an untrusted image file into a square grey image."""

import pathlib
import struct
import threading
import warnings
import zlib

import numpy as np
from PIL import Image

MAX_FILE_BYTES = 256 * 2**20
PIL_MEGAPIXELS = 89  # where PIL's own guard against decompression bombs starts
# What PIL's PNG and JPEG readers raise on damaged files; UnidentifiedImageError is an OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_OPENING = threading.Lock()  # warning filters belong to the process, not to the thread
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class UnusableImageError(Exception):
    """The file cannot be used; the message says why and holds no path."""


def locate(root: pathlib.Path, name: str) -> pathlib.Path:
    """The file that ``name`` stands for, found under ``root`` or under ``root/images``.

    Raises:
      UnusableImageError: there is no such file, it is not a plain file, or it lies outside ``root``, be it by "..", by
        an absolute path or by a symbolic link.
    """
    root = root.resolve()
    outside = False
    for candidate in (root / name, root / "images" / name):
        try:
            path = candidate.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # absent, a loop of links, a NUL in the name
            continue
        if not path.is_relative_to(root):
            outside = True
        elif path.is_file():
            return path
    if outside:
        raise UnusableImageError("the path leads out of the data folder")
    raise UnusableImageError("no such file in the data folder or its images folder")


def read(path: pathlib.Path, image_size: int, max_megapixels: float) -> np.ndarray:
    """Reads a PNG or JPEG file.

    The aspect ratio is kept: the longer side is resized (antialiased) to ``image_size``, the rest padded with black.
    Images of 16 bits are scaled by their bit depth, taken as the smallest of 8, 10, 12, 14, 16 that holds their largest
    value, because 12-bit detectors store their values unscaled in 16-bit files.

    Args:
      path: the file.
      image_size: side of the result in pixels.
      max_megapixels: images larger than that are refused from their header, before any pixel is decoded.

    Returns:
      uint8 [h, w], 0 black.

    Raises:
      UnusableImageError: too large, damaged, or not a PNG or JPEG.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UnusableImageError(f"the file has {size} bytes; the limit is {MAX_FILE_BYTES}")
    too_large = f"the header claims more than {max_megapixels:g} megapixels"
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, smaller limit follows
            image = Image.open(path, formats=("PNG", "JPEG"))
        with image:
            if image.width * image.height > max_megapixels * 1e6:
                raise UnusableImageError(too_large)
            image.load()
            return _square(image, image_size)
    except Image.DecompressionBombError:
        raise UnusableImageError(too_large) from None
    except _DAMAGED as error:
        # PIL's message may quote the path, which says nothing more; its type says what kind of damage it is.
        raise UnusableImageError(f"not a readable PNG or JPEG ({type(error).__name__})") from None


def _square(image: Image.Image, image_size: int) -> np.ndarray:
    if image.mode in _DEEP_MODES:
        deep = np.asarray(image, np.float32)
        depth = next(bits for bits in (8, 10, 12, 14, 16, 32) if deep.max() < 2**bits)
        grey = Image.fromarray(deep * np.float32(255 / (2**depth - 1)))
    else:
        grey = image.convert("L")
    scale = image_size / max(grey.size)
    width, height = (max(1, round(side * scale)) for side in grey.size)
    if (width, height) != grey.size:
        grey = grey.resize((width, height), Image.Resampling.BILINEAR)  # PIL widens the kernel when it shrinks
    pixels = np.asarray(grey)
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    square = np.zeros((image_size, image_size), np.uint8)
    top, left = (image_size - height) // 2, (image_size - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
