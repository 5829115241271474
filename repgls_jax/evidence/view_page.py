"""Studies as one HTML file that opens anywhere, offline: marked text, and a table of what it was taken to say.

The page holds report text. It is written for its owner alone (mode 0600), loads nothing, and has no script; its own
security policy forbids both.
"""

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import view
from repgls_jax.results import template

SIGNS = {findings_lib.POSITIVE: "+", findings_lib.UNCERTAIN: "?", findings_lib.NEGATIVE: "\u2212"}
STATES = {findings_lib.POSITIVE: "pos", findings_lib.UNCERTAIN: "unc", findings_lib.NEGATIVE: "neg"}
_LINKED = 150  # readings of a study that light up together with their marks; a chest report has some twenty


def render(studies: Sequence[view.Study]) -> str:
    """The page as HTML.

    Args:
      studies: at least one.

    Raises:
      ValueError: there is none.
    """
    if not studies:
        raise ValueError("there are no studies to show; give at least one")
    shown = [_study(study, f"s{i}") for i, study in enumerate(studies)]
    return template.load("repgls_jax.evidence", "view.html").render(
        studies=shown,
        mixed=any("mix" in p["classes"].split() for study in shown for f in study["fields"].values() for p in f),
        linked=min(max(len(study.readings) for study in studies), _LINKED),
        readers=sorted({f"{study.labeller} {study.version}" for study in studies if study.labeller}),
        overruled=any(not reading.decides for study in studies for reading in study.readings),
    )


def write(path: pathlib.Path, studies: Sequence[view.Study]) -> None:
    """Writes the page of :func:`render` whole or not at all; nobody but the owner may read it, at any moment.

    A folder that is missing is made.
    """
    text = render(studies)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=path.name, suffix=".partial", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        pathlib.Path(name).replace(path)
    finally:
        pathlib.Path(name).unlink(missing_ok=True)


def _study(study: view.Study, anchor: str) -> dict[str, Any]:
    rows = [_row(reading, k) for k, reading in enumerate(study.readings)]
    fields = {name: [_piece(piece, rows) for piece in pieces] for name, pieces in study.fields.items()}
    said = {"id": study.study_id, "labeller": study.labeller, "cut": study.cut}
    return {"anchor": anchor, **said, "fields": fields, "rows": rows}


def _row(reading: view.Reading, index: int) -> dict[str, Any]:
    return {
        "reading": reading,
        "link": f"r{index}" if index < _LINKED else "",
        "state": findings_lib.STATES[reading.state],
        "colour": STATES[reading.state],
        "tag": SIGNS[reading.state] + reading.number,
        "p": f"{reading.p:.2f}",
        "origin": "follows from the other findings" if reading.derived else reading.cue or "bare mention",
    }


def _piece(piece: view.Piece, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A piece with its classes: kind, state of its marks ("mix" where they differ), and links to its readings."""
    marked = [rows[k] for k in piece.mentions]
    deciding = [row for row in marked if row["reading"].decides]
    states = {row["colour"] for row in deciding or marked}
    classes = [piece.kind, *(("lit",) if piece.deciding else ())]
    if marked:
        classes += ["m", states.pop() if len(states) == 1 else "mix", *(() if deciding else ("over",))]
    if piece.cues:
        classes += ["cue"]
    links = dict.fromkeys(rows[k]["link"] for k in (*piece.mentions, *piece.cues))
    return {
        "text": piece.text,
        "classes": " ".join([*classes, *links]).strip(),
        "about": marked or [rows[k] for k in piece.cues],
        "is_cue": not marked,
        "lit": piece.deciding,
        "tags": [rows[k] for group in piece.closes for k in group],
    }
