"""Reads an untrusted PNG, JPEG or DICOM file into a square grey image.

Whatever the file, its film is a picture in [0, 1] before it is resized, and becomes integers of 8 or 16 bits last.
"""

import io
import os
import pathlib
import struct
import threading
import warnings
import zlib
from typing import Literal, get_args

import numpy as np
from PIL import Image

MAX_FILE_BYTES = 256 * 2**20
PIL_MEGAPIXELS = 89  # where PIL's own guard against decompression bombs starts
# What PIL's PNG and JPEG readers raise on damaged files; UnidentifiedImageError is an OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_OPENING = threading.Lock()  # warning filters belong to the process, not to the thread
Fit = Literal["pad", "crop"]  # what becomes of a film that is not square: black beside it, or the square in its middle
FITS = get_args(Fit)
Bits = Literal[8, 16]  # of a pixel, as it is stored
BITS = get_args(Bits)
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


def read(path: pathlib.Path, image_size: int, max_megapixels: float, bits: Bits = 8, fit: Fit = "pad") -> np.ndarray:
    """:func:`load`, then :func:`square`."""
    return square(load(path, max_megapixels), image_size, bits, fit)


def load(path: pathlib.Path, max_megapixels: float) -> Image.Image:
    """Reads a PNG, JPEG or DICOM file; its content says which it is, not its name.

    PNG files of 16 bits are scaled by their bit depth, taken as the smallest of 8, 10, 12, 14, 16 that holds their
    largest value, because 12-bit detectors store their values unscaled in 16-bit files. DICOM files are shown as
    :mod:`repgls_jax.data.dicom` says.

    Args:
      path: the file.
      max_megapixels: images larger than that are refused from their header, before any pixel is decoded.

    Returns:
      The film in its own size, 0 black: in mode L where it has 8 bits, else in mode F, float32 in [0, 1].

    Raises:
      UnusableImageError: too large, damaged, or not a PNG, JPEG or DICOM film.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise UnusableImageError(f"the file has {size} bytes; the limit is {MAX_FILE_BYTES}")
            # In memory at once: asked for what a damaged file claims to hold, an open file allocates that first.
            content = file.read(size)
    except OSError as error:
        raise UnusableImageError(f"the file cannot be read ({error.strerror})") from None
    return (_dicom if content[128:132] == b"DICM" else _picture)(content, max_megapixels)


def _dicom(content: bytes, max_megapixels: float) -> Image.Image:
    """A DICOM file in mode F, float32 in [0, 1]."""
    from repgls_jax.data import dicom  # no sooner than it is needed: it silences pydicom in the whole process

    try:
        return Image.fromarray(dicom.decode(content, max_megapixels))
    except dicom.UnusableDicomError as error:
        raise UnusableImageError(str(error)) from None


def _picture(content: bytes, max_megapixels: float) -> Image.Image:
    """A PNG or JPEG file in mode L (8 bits), or F (float32 in [0, 1]) where it has more."""
    too_large = f"the header claims more than {max_megapixels:g} megapixels"
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which nobody reads, and of our own limit's larger sister
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        with image:
            if image.width * image.height > max_megapixels * 1e6:
                raise UnusableImageError(too_large)
            image.load()
            if image.mode not in _DEEP_MODES:
                return image.convert("L")
            deep = np.asarray(image, np.float32)
            depth = next(bits for bits in (8, 10, 12, 14, 16, 32) if deep.max() < 2**bits)
            return Image.fromarray(deep / np.float32(2**depth - 1))
    except Image.DecompressionBombError:
        raise UnusableImageError(too_large) from None
    except Image.UnidentifiedImageError:
        raise UnusableImageError("not a readable PNG or JPEG, nor a DICOM file with its preamble") from None
    except _DAMAGED as error:
        # PIL's message may quote what it found; its type says what kind of damage it is.
        raise UnusableImageError(f"not a readable PNG or JPEG ({type(error).__name__})") from None


def placement(width: int, height: int, image_size: int, fit: Fit = "pad") -> tuple[float, float, float]:
    """How :func:`square` takes a film to its square: (scale, left, top).

    A point goes to scale * (x, y) + (left, top), which is outside of the square for what "crop" leaves out.
    """
    if fit == "crop":
        left, top, right, _ = _middle(width, height)
        scale = image_size / (right - left)
        return scale, -left * scale, -top * scale
    scale = image_size / max(width, height)
    left, top = ((image_size - max(1, round(side * scale))) // 2 for side in (width, height))
    return scale, left, top


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest square in the middle."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def square(film: Image.Image, image_size: int, bits: Bits = 8, fit: Fit = "pad") -> np.ndarray:
    """Resizes a film (antialiased), its aspect ratio kept.

    Args:
      film: of :func:`load`.
      image_size: side of the result in pixels.
      bits: of the result; 16 keeps what a film of more than 8 bits shows.
      fit: "pad" takes the longer side to ``image_size`` and fills up with black, "crop" takes the shorter one and
        leaves out what is beyond the square in the middle.

    Returns:
      uint8 or uint16 [h, w], 0 black, 2**bits - 1 white.
    """
    if film.mode == "L" and bits == 16:
        film = Image.fromarray(np.asarray(film, np.float32) / 255)
    if fit == "crop":
        film = film.crop(_middle(*film.size))
    scale = image_size / max(film.size)
    width, height = (max(1, round(side * scale)) for side in film.size)
    left, top = (image_size - width) // 2, (image_size - height) // 2
    if (width, height) != film.size:
        film = film.resize((width, height), Image.Resampling.BILINEAR)  # PIL widens the kernel when it shrinks
    pixels = np.asarray(film)
    if film.mode == "F":
        pixels = np.rint(np.clip(pixels, 0, 1) * np.float32(2**bits - 1))
    out = np.zeros((image_size, image_size), f"u{bits // 8}")
    out[top : top + height, left : left + width] = pixels
    return out


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Stored pixels on the scale of 8 bits, to the nearest level: uint8 of uint8 (as it is) or uint16."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
