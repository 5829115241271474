"""Films for the page's gallery, as small PNGs inside the page. Report text is not at hand here, and never shown."""

import base64
import io
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from repgls_jax import findings as findings_lib
from repgls_jax.data import shards as shards_lib
from repgls_jax.evaluation.sets import Labelled
from repgls_jax.results import gallery as choice
from repgls_jax.results import strata
from repgls_jax.results.page_gallery import Card, Gallery

SIDE = 176  # pixels at most


def png(image: np.ndarray) -> str:
    """A grey film uint8 or uint16 [h, w, 1] as base64 of a PNG of at most SIDE pixels a side."""
    grey = image[..., 0] if image.dtype == np.uint8 else (image[..., 0] >> 8).astype(np.uint8)
    film = Image.fromarray(grey)
    film.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    film.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode("ascii")


def gallery(
    shards: pathlib.Path,
    labelled: Labelled,
    predicted: Mapping[str, np.ndarray],
    vocabulary: findings_lib.Vocabulary,
    count: int,
    show_ids: bool,
) -> Gallery | None:
    """The most confident errors and the films whose reports would hedge most; None for a ``count`` of 0.

    Args:
      shards: of the films.
      labelled: the split.
      predicted: ``probability`` and ``rate`` [n, c].
      vocabulary: the c findings.
      count: films of each kind at most.
      show_ids: cards name image, study and patient.
    """
    if not count:
        return None
    alarms, misses = choice.errors(predicted["probability"], labelled.labels, labelled.mask, count)
    kinds = {"alarms": alarms, "misses": misses, "hedged": choice.hedged(predicted["rate"], count)}
    wanted = sorted({image for pairs in kinds.values() for image, _ in pairs})
    pictures = dict(zip(wanted, shards_lib.images(shards, labelled.split, wanted), strict=True)) if wanted else {}
    levels = strata.by_certainty(labelled.p, labelled.mentioned)

    def card(i: int, j: int) -> Card:
        said = next(name for name in strata.CERTAINTY if levels[name][i, j]) if labelled.told[i] else ""
        examples = labelled.examples
        names = ("image_id", "study_id", "patient_id") if show_ids else ()
        return Card(
            png=png(pictures[i]),
            finding=vocabulary.findings[j],
            probability=float(predicted["probability"][i, j]),
            rate=float(predicted["rate"][i, j]),
            label=int(labelled.labels[i, j]) if labelled.mask[i, j] else None,
            wording=said,
            certainty=float(labelled.p[i, j]) if said and labelled.mentioned[i, j] else None,
            ids=tuple(str(examples[name][i]) for name in names),
        )

    return Gallery(**{kind: [card(i, j) for i, j in pairs] for kind, pairs in kinds.items()})
