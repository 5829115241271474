"""Maps of a build's films beside its regions: passes over a split that keep only scores."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repgls_jax.data import shards
from repgls_jax.data.build import SHARDS
from repgls_jax.models.luvit import LUViT
from repgls_jax.saliency import maps, observe, regions, scores, summary

_PAIRS = 64  # scored at a time


@dataclasses.dataclass(frozen=True)
class Explainer:
    """A model, and what it is asked for.

    Attributes:
      compute: of :func:`maps.make`.
      params: parameters of the unrolled model.
      patch: side of its patches in pixels.
      methods: keys of :data:`maps.METHODS`.
      batch_size: films at a time.
    """

    compute: Callable[[Any, Any], maps.Maps]
    params: Any
    patch: int
    methods: tuple[str, ...]
    batch_size: int = 16

    @classmethod
    def of(
        cls,
        model: LUViT,
        params: Any,
        methods: Sequence[str] = tuple(maps.METHODS),
        batch_size: int = 16,
    ) -> "Explainer":
        """For any LU-ViT and its parameters, scanned or not.

        Raises:
          ValueError: a method is unknown, or the encoder has not as many blocks.
        """
        plain, own = observe.unrolled(model, params)
        wanted = maps.require(methods)
        return cls(maps.make(plain, wanted), own, model.architecture.patch, wanted, batch_size)

    def explain(self, images: np.ndarray) -> dict[str, Any]:
        """Films uint8 or uint16 [n, h, w, 1], n >= 1: host arrays as :func:`maps.compute` gives them."""
        found = []
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            blank = np.zeros((self.batch_size - len(part), *part.shape[1:]), part.dtype)
            found.append(jax.device_get(self.compute(self.params, np.concatenate([part, blank]))))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(images)], *found)


def draw(films: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """``limit`` of the films at random, in order; all where it is 0 or they are no more."""
    if not limit or limit >= len(films):
        return films
    return np.sort(np.random.default_rng(seed).choice(films, limit, replace=False))


def split(
    explainer: Explainer,
    build: pathlib.Path,
    name: str,
    findings: Sequence[int],
    priors: np.ndarray,
    seed: int = 0,
    limit: int = 0,
) -> summary.Scored | None:
    """Scores of the films of a split that show one of the findings.

    Args:
      explainer: makes the maps.
      build: folder of the data.
      name: of the split.
      findings: indices into the vocabulary.
      priors: float32 [c, h, w] of :func:`regions.priors`.
      seed: of the random control, and of the choice of films.
      limit: films to look at, drawn at random from those that have regions; 0 looks at all.

    Returns:
      The pairs of films and findings; None where there is none.

    Raises:
      FileNotFoundError, ValueError: see :class:`regions.Regions`.
    """
    marked = regions.Regions(build, name)
    images, ids = shards.Images(build / SHARDS, name), shards.Records(build / SHARDS, name, ["patient_id"])
    key, parts, patients = jax.random.key(seed), [], dict[str, int]()
    for films, masks in regions.batches(marked, draw(marked.films, limit, seed)):
        wanted = np.zeros(masks.shape[:2], bool)
        wanted[:, list(findings)] = masks[:, list(findings)].any(axis=(2, 3))
        rows = np.flatnonzero(wanted.any(axis=1))
        if not rows.size:
            continue
        made = explainer.explain(images.read(films[rows]))["maps"]
        grid = (marked.side // explainer.patch, marked.side // explainer.patch)
        made["random"] = np.asarray(regions.noise(key, films[rows], masks.shape[1], grid))
        film, finding = np.nonzero(wanted[rows])
        shown = masks[rows][film, finding]
        scored = {row: _score(values[film, finding], shown) for row, values in made.items()}
        scored["prior"] = _score(priors[finding], shown)
        whose = [patients.setdefault(ids[int(i)]["patient_id"], len(patients)) for i in films[rows]]
        parts.append(summary.Scored(finding, np.array(whose)[film], scored))
    return summary.join(parts) if parts else None


def _score(values: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """:func:`scores.score` of maps [n, rows, columns] beside masks [n, h, w], some at a time and of one shape."""
    side = masks.shape[1]
    found = []
    for start in range(0, len(values), _PAIRS):
        part, mask = values[start : start + _PAIRS], masks[start : start + _PAIRS]
        blank = _PAIRS - len(part)
        part = np.concatenate([part, np.zeros((blank, *part.shape[1:]), part.dtype)])
        mask = np.concatenate([mask, np.ones((blank, side, side), bool)])
        out = jax.device_get(scores.score(np.asarray(maps.resize(jnp.asarray(part), side)), mask))
        found.append({name: x[: _PAIRS - blank] for name, x in out.items()})
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}
