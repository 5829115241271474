"""A picture of each film: bare, and under the map of each finding that is called."""

import pathlib
import re
from collections.abc import Sequence

import numpy as np

from repgls_jax import trained
from repgls_jax.predict.inputs import Film
from repgls_jax.predict.tables import Frame
from repgls_jax.saliency import maps, overlays, scoring

METHOD = "grad_cam"
_SIDE = 256  # pixels of a picture
_FILMS = 16  # at a time: a map takes a backward pass for each finding
_MOST = 5  # findings of a film, the likeliest for their threshold first
_HALF = 0.5  # a finding without a threshold is drawn from here on
_NAME = 60  # characters of a file's name that are kept


class Overlays:
    """Draws into a folder."""

    def __init__(self, folder: pathlib.Path, model: trained.Trained, frame: Frame):
        """Makes the folder.

        Raises:
          ValueError: the folder exists and holds something.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; name another folder for the overlays")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._frame = folder, frame
        self._explainer = scoring.Explainer.of(model.model, model.params, (METHOD,), batch_size=_FILMS)
        self._drawn = 0

    def draw(self, films: Sequence[Film], images: np.ndarray, probability: np.ndarray) -> None:
        """A PNG for each film, named by its number and its file.

        Args:
          films: n of them.
          images: [n, h, w, 1], theirs.
          probability: [n, c].
        """
        found = self._explainer.explain(images)
        for i, film in enumerate(films):
            grey = images[i, ..., 0]
            bare = overlays.captioned(overlays.picture(grey, None, _SIDE), _plain(film.path.name), film.said)
            row = [bare]
            for k in self._called(probability[i]):
                title, note = overlays.said(self._frame.findings[k], probability[i, k], found["rate"][i, k])
                one = overlays.picture(grey, found["maps"][METHOD][i, k], _SIDE)
                row.append(overlays.captioned(one, title, f"{maps.TITLES[METHOD]}, {note}"))
            name = f"{self._drawn:06d}_{re.sub(r'[^A-Za-z0-9-]+', '-', film.path.stem)[:_NAME]}.png"
            (self._folder / name).write_bytes(overlays.png(overlays.sheet([row])))
            self._drawn += 1

    def _called(self, probability: np.ndarray) -> list[int]:
        at = np.array([_HALF if t is None else t for t in self._frame.thresholds])
        ratio = probability / np.maximum(at, 1e-6)
        return [int(k) for k in np.argsort(-ratio)[:_MOST] if ratio[k] >= 1]


def _plain(name: str) -> str:
    """Without what the font does not have."""
    return name.encode("ascii", "replace").decode()
