"""A sanity check of films: whether one looks at all like those that a model was trained on.

Five numbers of each training film (:data:`FEATURES`) give a range: their 0.5 and 99.5 percentiles, widened by a quarter
of their distance, or at least a little, on either side. A film outside of one is told of. That catches a photograph, an
inverted film, a film on its side or a blank one more often than not; it does not recognise a chest, says nothing of
whether a prediction is right, and a film within the ranges may still be none that the model can read.
"""

from typing import Any

import numpy as np
from PIL import Image

FEATURES = {
    "brightness": "mean of the film's pixels, 0 black to 1 white",
    "contrast": "their standard deviation",
    "aspect": "width by height, what is black at the edges left out",
    "symmetry": "correlation with the film's own mirror image",
    "likeness": "correlation with the mean of the training films, both at 16 x 16 pixels",
}
FILMS = 2000  # of the training set are looked at, at most
FEWEST = 100  # a mean of fewer could show one of them
SIDE = 16
_PERCENTILES, _WIDER, _LEAST = (0.5, 99.5), 0.25, 0.02
_BLACK = 0.02


def make(films: np.ndarray) -> dict[str, Any] | None:
    """What films of a training set look like, as JSON.

    Args:
      films: [n, h, w, 1] uint8 or uint16.

    Returns:
      {"films": n, "mean": 16 x 16 numbers in [0, 1], "ranges": {feature: [low, high]}}, or None of too few films.
    """
    if len(films) < FEWEST:
        return None
    mean = np.mean([_small(film) for film in films], axis=0)
    measured = np.array([list(measure(film, mean).values()) for film in films])
    low, high = np.percentile(measured, _PERCENTILES, axis=0)
    wider = np.maximum(_WIDER * (high - low), _LEAST)
    ranges = np.stack([low - wider, high + wider], axis=1).round(4).tolist()
    return {"films": len(films), "mean": mean.round(3).tolist(), "ranges": dict(zip(FEATURES, ranges, strict=True))}


def measure(film: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """The :data:`FEATURES` of a film [h, w, 1] uint8 or uint16; ``mean`` [16, 16] float is the training films'."""
    grey = film[..., 0].astype(np.float32) / np.iinfo(film.dtype).max
    lit = grey > _BLACK
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    if not len(rows):
        return dict.fromkeys(FEATURES, 0.0)
    box = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return {
        "brightness": float(box.mean()),
        "contrast": float(box.std()),
        "aspect": box.shape[1] / box.shape[0],
        "symmetry": _correlation(box, box[:, ::-1]),
        "likeness": _correlation(_small(film), mean),
    }


def warnings(film: np.ndarray, reference: Any) -> list[str]:
    """What about a film [h, w, 1] lies outside the ranges of :func:`make`, in words; none for one like the others."""
    found = measure(film, np.asarray(reference["mean"]))
    ranges = reference["ranges"]
    return [
        f"{name} {value:.2f}, of training films {ranges[name][0]:.2f} to {ranges[name][1]:.2f}"
        for name, value in found.items()
        if not ranges[name][0] <= value <= ranges[name][1]
    ]


def check(reference: Any, where: str) -> None:
    """Refuses a stored reference that :func:`make` cannot have made; raises ValueError."""
    try:
        mean = np.asarray(reference["mean"], np.float64)
        ranges = np.asarray([reference["ranges"][name] for name in FEATURES], np.float64)
        sound = mean.shape == (SIDE, SIDE) and ranges.shape == (len(FEATURES), 2) and np.isfinite(ranges).all()
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{where} is not what films of a training set look like; make the export again")


def _small(film: np.ndarray) -> np.ndarray:
    """[16, 16] float32 in [0, 1]: means of equal parts."""
    grey = Image.fromarray(film[..., 0].astype(np.float32) / np.iinfo(film.dtype).max)
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x - x.mean() for x in (a.astype(np.float64), b.astype(np.float64)))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0
