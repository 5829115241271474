"""What pixels alone say of films: intensities, padding, films unlike the rest, and films that are the same picture.

A film's *content* is what is left when rows and columns of pure black are cut from its four sides. Its *thumbnail* is
the content at 16 x 16 pixels, whatever its shape: small enough to keep for every film that is looked at. Grey levels
are those of 8 bits, 0 to 255, whatever the films are stored with.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from repgls_jax.data import images, shards

BINS = 64  # of intensities; pure black and pure white are counted apart
THUMB = 16
FLAT = 5.0  # grey levels: a film whose intensities spread less shows nothing
ONE_LEVEL = 0.9  # share of the content that is pure black or pure white
INVERTED = -0.3  # correlation with the typical film below which a film is taken for a negative of a film
UNLIKE = 0.2
TYPICAL = 20  # films of a view that make a typical film of their own
SAME = 0.985  # correlation from which two films are one picture; different patients were seen to reach .96
DETAIL = 96  # pixels at which that is computed
CLOSE = 0.9  # correlation of what thumbnails have beyond the typical film, for a closer look to be worth it
_BLOCK = 2048
_READ = 64  # films in memory
_LEVELS = np.full(BINS, 256 // BINS) - np.isin(np.arange(BINS), (0, BINS - 1))  # grey levels in each bin


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Measurements of k films.

    Attributes:
      histogram: uint32 [k, BINS], pixels of the content by intensity, without pure black and pure white.
      black, white: float32 [k], share of the content that is 0, that is 255.
      mean, spread: float32 [k], mean and standard deviation of the content in grey levels.
      padding: float32 [k], share of the film that is not content.
      aspect: float32 [k], width of the content over its height.
      thumb: uint8 [k, THUMB, THUMB].
      digest: uint64 [k], hash of all pixels, with all their bits.
    """

    histogram: np.ndarray
    black: np.ndarray
    white: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    padding: np.ndarray
    aspect: np.ndarray
    thumb: np.ndarray
    digest: np.ndarray

    def __len__(self) -> int:
        """Films measured."""
        return len(self.digest)

    def __getitem__(self, chosen: np.ndarray) -> "Pixels":
        """The films ``chosen``, an index or a mask over k."""
        return Pixels(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def joined(parts: Sequence[Pixels]) -> Pixels:
    """The films of all parts, in order."""
    return Pixels(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Pixels)))


def content(film: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of what is left when black rows and columns are cut off; all of a black film."""
    rows, columns = np.flatnonzero(film.any(axis=1)), np.flatnonzero(film.any(axis=0))
    if not rows.size:
        return 0, 0, *film.shape
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _shrunk(film: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(film).resize((side, side), Image.Resampling.BOX))


def measure(folder: pathlib.Path, split: str, indices: Sequence[int] | np.ndarray) -> Pixels:
    """Measures the films ``indices`` of a split, a few in memory at a time.

    Args:
      folder: the folder "shards" of a build.
      split: train, valid or test.
      indices: of the examples.
    """
    k = len(indices)
    histogram, thumb = np.zeros((k, BINS), np.uint32), np.zeros((k, THUMB, THUMB), np.uint8)
    black, white, mean, spread, padding, aspect = np.zeros((6, k), np.float32)
    digest = np.zeros(k, np.uint64)
    levels = np.arange(256)
    opened = shards.Images(folder, split)
    for i in range(k):
        if i % _READ == 0:
            films = opened.read(indices[i : i + _READ])[..., 0]
        film = images.eight_bits(films[i % _READ])
        top, left, bottom, right = content(film)
        inner = film[top:bottom, left:right]
        padding[i], aspect[i] = 1 - inner.size / film.size, (right - left) / (bottom - top)
        counts = np.bincount(inner.ravel(), minlength=256)
        shares = counts / inner.size
        black[i], white[i], mean[i] = shares[0], shares[255], shares @ levels
        spread[i] = np.sqrt(shares @ (levels - mean[i]) ** 2)
        counts[[0, 255]] = 0
        histogram[i] = counts.reshape(BINS, -1).sum(axis=1)
        thumb[i] = _shrunk(inner, THUMB)
        digest[i] = int.from_bytes(hashlib.blake2b(films[i % _READ].tobytes(), digest_size=8).digest(), "big")
    return Pixels(histogram, black, white, mean, spread, padding, aspect, thumb, digest)


def density(histogram: np.ndarray) -> np.ndarray:
    """Share of the pixels at each grey level, in percent, by bin: float [BINS] of uint32 [k, BINS]."""
    total = histogram.sum(axis=0, dtype=np.int64)
    return 100 * total / _LEVELS / max(int(total.sum()), 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and length 1, so that products are correlations; constant rows are 0."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 1e-6)


def _typical(pixels: Pixels, views: np.ndarray) -> np.ndarray:
    """The median thumbnail of each film's view, or of all films where a view has too few: float32 [k, THUMB**2]."""
    flat = pixels.thumb.reshape(len(pixels), -1)
    typical = np.broadcast_to(np.median(flat, axis=0), flat.shape).astype(np.float32)
    for view in np.unique(views):
        mine = views == view
        if mine.sum() >= TYPICAL:
            typical[mine] = np.median(flat[mine], axis=0)
    return typical


def likeness(pixels: Pixels, views: np.ndarray) -> np.ndarray:
    """Correlation of each film's thumbnail with the typical film of its view: float32 [k] in [-1, 1].

    Args:
      pixels: k films.
      views: str [k].
    """
    flat = pixels.thumb.reshape(len(pixels), -1).astype(np.float32)
    return np.sum(_unit(flat) * _unit(_typical(pixels, views)), axis=1)


def flags(pixels: Pixels, like: np.ndarray) -> np.ndarray:
    """What is odd about each film, in words, "" for nothing: str [k].

    Args:
      pixels: k films.
      like: from :func:`likeness`.
    """
    kinds = {
        "empty": pixels.spread < FLAT,
        "nearly all black": pixels.black >= ONE_LEVEL,
        "nearly all white": pixels.white >= ONE_LEVEL,
        "inverted": like < INVERTED,
        "unlike the others": like < UNLIKE,
    }
    return np.select(list(kinds.values()), list(kinds), default="")


def close_pairs(pixels: Pixels, views: np.ndarray, splits: np.ndarray, most: int) -> list[tuple[int, int, float]]:
    """Pairs of films of different splits that look alike, by what their thumbnails have beyond the typical film.

    Every pair is compared, in blocks. Of each film only the closest of the earlier splits is kept, so that many copies
    of one picture do not hide other pairs.

    Args:
      pixels: k films.
      views: str [k].
      splits: int [k], in ascending order.
      most: pairs to return.

    Returns:
      (a, b, correlation) with splits[a] < splits[b], closest first.
    """
    if not len(pixels):
        return []
    unit = _unit(pixels.thumb.reshape(len(pixels), -1).astype(np.float32) - _typical(pixels, views))
    found: list[tuple[int, int, float]] = []
    for split in np.unique(splits):
        ours, earlier = np.flatnonzero(splits == split), np.flatnonzero(splits < split)
        for start in range(0, len(ours) if earlier.size else 0, _BLOCK):
            block = ours[start : start + _BLOCK]
            best, at = np.full(len(block), -2, np.float32), np.zeros(len(block), np.int64)
            for other in range(0, len(earlier), _BLOCK):
                rest = earlier[other : other + _BLOCK]
                product = unit[block] @ unit[rest].T
                closest = product.argmax(axis=1)
                value = product[np.arange(len(block)), closest]
                better = value > best
                best[better], at[better] = value[better], rest[closest[better]]
            found += [(int(a), int(b), float(r)) for a, b, r in zip(at, block, best, strict=True)]
    return sorted(found, key=lambda pair: (-pair[2], pair[:2]))[:most]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of the contents of two films at DETAIL x DETAIL pixels; 0 where one is constant.

    Padding and size thus make no difference: a picture and its smaller copy have a correlation near 1.
    """
    small = []
    for film in (a, b):
        top, left, bottom, right = content(film)
        small.append(_shrunk(film[top:bottom, left:right], DETAIL).astype(np.float64).ravel())
    first, second = _unit(np.stack(small))
    return float(first @ second)
