"""Pictures of where a network looks: overlays of chosen films as files, and a sheet with a film for each finding."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repgls_jax.data import shards
from repgls_jax.saliency import maps, overlays, regions, scoring

_SIDE, _SHEET_SIDE = 384, 208  # pixels of an overlay, and of one on the sheet
_MOST = 512  # films that are looked through for one of each finding


def overlays_of(
    folder: pathlib.Path,
    drawn: np.ndarray,
    images: np.ndarray,
    found: Mapping[str, Any],
    masks: np.ndarray,
    wanted: Sequence[int],
    names: Sequence[str],
) -> None:
    """A PNG file for each film, method and finding that the film shows, or that the network finds likelier than not."""
    folder.mkdir(exist_ok=True)
    for i, example in enumerate(drawn.tolist()):
        for k in wanted:
            probability = float(found["probability"][i, k])
            if not masks[i, k].any() and probability < 0.5:
                continue
            title, note = overlays.said(names[k], probability, float(found["rate"][i, k]))
            for method, values in found["maps"].items():
                one = overlays.picture(images[i, ..., 0], values[i, k], _SIDE, masks[i, k])
                name = f"{example:06d}_{names[k].lower().replace(' ', '-')}_{method}.png"
                captioned = overlays.captioned(one, title, f"{maps.title(method)}, {note}")
                (folder / name).write_bytes(overlays.png(captioned))


def examples(
    made: scoring.Explainer,
    marked: regions.Regions | None,
    wanted: Sequence[int],
    images: shards.Images,
    count: int,
    seed: int,
) -> list[tuple[int, int]]:
    """An example for each finding: (number of the film, index of the finding).

    Where regions are known it is drawn at random from the films that show the finding, not picked for its map; findings
    that no film shows are left out. Else it is the one, of ``count`` films drawn at random, that the network finds
    likeliest to show the finding.
    """
    if marked is None:
        some = scoring.draw(np.arange(len(images)), count, seed)
        probability = made.explain(images.read(some))["probability"]
        return [(int(some[probability[:, k].argmax()]), k) for k in wanted]
    rng = np.random.default_rng(seed)
    shows: dict[int, list[int]] = {k: [] for k in wanted}
    for films, masks in regions.batches(marked, scoring.draw(marked.films, _MOST, seed)):
        for k in wanted:
            shows[k] += films[masks[:, k].any(axis=(1, 2))].tolist()
    return [(int(rng.choice(films)), k) for k, films in shows.items() if films]


def sheet(
    made: scoring.Explainer,
    marked: regions.Regions | None,
    chosen: Sequence[tuple[int, int]],
    images: shards.Images,
    names: Sequence[str],
) -> bytes:
    """A row for each of :func:`examples`: the film, its lesion outlined, then every method's map over it. A PNG."""
    films = images.read([film for film, _ in chosen])
    found = made.explain(films)
    rows = []
    for i, (film, k) in enumerate(chosen):
        mask = None if marked is None else marked.read([film])[0, k]
        title, note = overlays.said(names[k], float(found["probability"][i, k]), float(found["rate"][i, k]))
        bare = overlays.picture(films[i, ..., 0], None, _SHEET_SIDE, mask)
        row = [overlays.captioned(bare, title, f"example {film}, {note}")]
        for method in made.methods:
            one = overlays.picture(films[i, ..., 0], found["maps"][method][i, k], _SHEET_SIDE, mask)
            row.append(overlays.captioned(one, maps.title(method), names[k]))
        rows.append(row)
    return overlays.png(overlays.sheet(rows), 256)
