"""The page's gallery: films with what was predicted and labelled of one finding, and how sure its report was."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from repgls_jax.results import table


@dataclasses.dataclass(frozen=True)
class Card:
    """One film.

    Attributes:
      png: base64 of the picture.
      finding: what the card speaks of.
      probability, rate: predicted.
      label: 0, 1, or None without one.
      wording: a level of strata.CERTAINTY, or "" without a report.
      certainty: that the report's wording expresses, or None.
      ids: of image, study and patient, only where they were asked for.
    """

    png: str
    finding: str
    probability: float
    rate: float
    label: int | None
    wording: str
    certainty: float | None
    ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Three rows of films: worst false alarms, worst misses, and those whose reports would hedge most."""

    alarms: Sequence[Card]
    misses: Sequence[Card]
    hedged: Sequence[Card]


TITLES = {
    "alarms": ("Most confident false alarms", "labelled absent, with the highest probability"),
    "misses": ("Most confident misses", "labelled present, with the lowest probability"),
    "hedged": ("Most hedged", "the highest rate predicted of a report, from the image alone"),
}


def _card(card: Card) -> dict[str, Any]:
    label = {None: "no label", 0: "labelled absent", 1: "labelled present"}[card.label]
    said = f"report: {card.wording}" if card.wording else "no report"
    if card.certainty is not None:
        said += f" (certainty {card.certainty:.2f})"
    lines = [f"p {table.number(card.probability)}, rate {table.number(card.rate)}", label, said, *card.ids]
    alternative = f"A film; {card.finding}: {'; '.join(lines[:3])}"
    picture = Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alternative, card.png)
    return {"finding": card.finding, "lines": lines, "picture": picture}


def rows(gallery: Gallery | None) -> list[dict[str, Any]]:
    """What the template shows; [] without films."""
    if gallery is None:
        return []
    made = [
        {"title": title, "about": about, "cards": [_card(card) for card in getattr(gallery, kind)]}
        for kind, (title, about) in TITLES.items()
    ]
    return [row for row in made if row["cards"]]
