"""A look at the data as files: look.json with the numbers, look.html with the films, and lines for the terminal.

The page is one file that opens anywhere, offline: no script, nothing loaded. It holds films and their ids, and must
stay where the data may be; it holds no report text.
"""

import base64
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from repgls_jax.data import look_pixels
from repgls_jax.data.look import Look
from repgls_jax.data.look_films import SHOWN, Film
from repgls_jax.evidence import figures, sheet
from repgls_jax.results import charts, template

_SIDE, _QUALITY = 192, 85  # of the films on the page, in pixels, and of their JPEG
_REASONS = 20
_NAMED = 8  # findings that a warning names
_DRAWN = charts.COLOURS  # views in a chart


def short(value: float) -> str:
    """A share as a percentage that never rounds some to none or to all."""
    if 0 < value < 0.001:
        return "<0.1\u00a0%"
    if 0.999 < value < 1:
        return ">99.9\u00a0%"
    return f"{100 * value:.1f}\u00a0%"


def warnings(numbers: Mapping[str, Any]) -> list[str]:
    """What a reader must know before training on this."""
    said = []
    copies, sampled = numbers["copies_across_splits"], sum(numbers["sampled"].values())
    if any(copies.values()):
        said.append(
            f"{copies['identical'] + copies['nearly']:,} pairs of films in different splits are one picture "
            f"({copies['identical']:,} identical, {copies['nearly']:,} nearly so): scores on them are too good."
        )
    if numbers["copies_within_splits"]:
        said.append(f"{numbers['copies_within_splits']:,} films repeat another one of their own split pixel by pixel.")
    if numbers["flags"]:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in numbers["flags"].items())
        said.append(f"{sum(numbers['flags'].values()):,} of {sampled:,} films look odd: {kinds}.")
    left_out = sum(sum(by_split.values()) for by_split in numbers["quarantine"].values())
    if left_out:
        said.append(f"{left_out:,} images could not be used and were left out when the data set was built.")
    for split in numbers["splits"]:
        names = [finding for finding, of in numbers["findings"].items() if not of[split]["positive"]]
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            said.append(f"No positive film in {split}: {', '.join(names[:_NAMED])}{more}.")
    return said


def text(numbers: Mapping[str, Any]) -> str:
    """The splits, and the warnings, for a terminal."""
    head = ("Split", "Films", "Studies", "Reports", "Patients", "Looked at")
    rows = [
        (name, *(f"{of[key]:,}" for key in ("films", "studies", "studies_with_report", "patients")), f"{looked:,}")
        for (name, of), looked in zip(numbers["splits"].items(), numbers["sampled"].values(), strict=True)
    ]
    return "\n".join([sheet.ruled(head, rows), *warnings(numbers)])


def outline(mask: np.ndarray) -> str:
    """The border between inside and outside of a mask, bool [h, w], as an SVG path along the edges of its pixels."""
    padded = np.pad(mask, 1).astype(np.int8)
    parts = []
    for grid, form in ((padded, "M{a} {line}H{b}"), (padded.T, "M{line} {a}V{b}")):
        for line, row in enumerate(np.abs(np.diff(grid, axis=0))):
            ends = np.flatnonzero(np.diff(row))  # in turn before the first and at the last pixel of a stretch
            parts += [form.format(line=line, a=a, b=b) for a, b in zip(ends[::2], ends[1::2], strict=True)]
    return "".join(parts)


def _picture(image: np.ndarray) -> str:
    """A film as a data URI; large ones are made smaller."""
    picture, stream = Image.fromarray(image), io.BytesIO()
    if max(picture.size) > _SIDE:
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    picture.save(stream, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _film(film: Film) -> dict[str, Any]:
    boxes = [{"x": a, "y": b, "w": c - a, "h": d - b} for a, b, c, d in film.boxes]
    path = outline(film.mask) if film.mask is not None and film.mask.any() else ""
    height, width = film.image.shape
    picture = _picture(film.image)
    return {
        "id": film.image_id,
        "note": film.note,
        "src": picture,
        "boxes": boxes,
        "path": path,
        "w": width,
        "h": height,
    }


def _sheets(look: Look) -> list[dict[str, Any]]:
    """For each finding its states that occur anywhere in the data, with counts and films."""
    states = [state for state in SHOWN.values() if any(sheet[state] for sheet in look.sheets.values())]
    made = []
    for number, (finding, films) in enumerate(look.sheets.items()):
        counts = look.numbers["findings"][finding]
        groups = [
            {
                "state": state,
                "count": f"{sum(of[state] for of in counts.values()):,}",
                "films": [_film(film) for film in films[state]],
            }
            for state in states
        ]
        made.append({"name": finding, "anchor": f"f{number}", "groups": groups})
    return made


def _tiles(numbers: Mapping[str, Any]) -> list[sheet.Tile]:
    splits, sampled = numbers["splits"], sum(numbers["sampled"].values())
    films, patients = (sum(of[key] for of in splits.values()) for key in ("films", "patients"))
    left_out = sum(sum(of.values()) for of in numbers["quarantine"].values())
    copies, odd = sum(numbers["copies_across_splits"].values()), sum(numbers["flags"].values())
    return [
        sheet.Tile("Films", f"{films:,}", f"of {numbers['build']['image_size']} pixels"),
        sheet.Tile("Patients", f"{patients:,}", f"{films / patients:.1f} films each"),
        sheet.Tile("Left out", f"{left_out:,}", f"of {films + left_out:,} images"),
        sheet.Tile("Odd films", f"{odd:,}", f"of {sampled:,} looked at"),
        sheet.Tile("Copies across splits", f"{copies:,}", f"pairs among {sampled:,} films"),
    ]


def _finding_rows(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = []
    for name, of in numbers["findings"].items():
        cells = []
        for split, counts in of.items():
            known = [counts[state] for state in figures.STATES]
            total = numbers["splits"][split]["films"]
            said = ", ".join(f"{n:,} {state}" for n, state in zip(known, figures.STATES, strict=True))
            cells.append(
                {
                    "bar": figures.stack(known, total, f"{name}, {split}: {said}, of {total:,} films"),
                    "share": short(known[0] / total),
                    "counts": [f"{n:,}" for n in known],
                    "none": not known[0],
                }
            )
        made.append({"name": name, "cells": cells})
    return made


def _crossed(table: Mapping[str, Mapping[str, int]], numbers: Mapping[str, Any]) -> list[list[str]]:
    """Rows of value, then films and share for each split."""
    rows = []
    for value, of in table.items():
        rows.append([value])
        for split, n in of.items():
            rows[-1] += [f"{n:,}", short(n / numbers["splits"][split]["films"])]
    return rows


def _age(numbers: Mapping[str, Any]) -> dict[str, Any] | None:
    """Shares by decade as a chart, and what is known as rows; None where nobody's age is known."""
    known = {split: of for split, of in numbers["age"].items() if of["known"]}
    if not known:
        return None
    lines = []
    for i, split in enumerate(numbers["splits"]):
        if split in known:
            counts = known[split]["by_decade"]
            middle = [10.0 * k + 5 for k in range(len(counts))]
            lines.append(charts.Line(middle, [100 * n / known[split]["known"] for n in counts], i, split))
    rows = []
    for split, of in known.items():
        low, median, high = of["quartiles"]
        rows.append([split, f"{median:g}", f"{low:g} \u2013 {high:g}", f"{of['known']:,} of {of['of']:,}"])
    return {"svg": charts.series(lines, "Percent of films by age, a line for each split"), "rows": rows}


def _intensities(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Histograms and numbers, by split and by view."""
    made = []
    middle = [(k + 0.5) * 256 / look_pixels.BINS for k in range(look_pixels.BINS)]
    for kind, groups in numbers["intensity"].items():
        common = sorted(groups, key=lambda name: -groups[name]["films"]) if kind == "view" else list(groups)
        lines = [
            charts.Line(middle, groups[name]["percent_per_level"], i, name or "unknown")
            for i, name in enumerate(common[:_DRAWN])
        ]
        said = f"Percent of pixels at each grey level, by {kind}: {', '.join(line.name for line in lines)}"
        rows = []
        for i, name in enumerate(common):
            of, quantiles = groups[name], list(groups[name]["quantiles"].values())
            between = f"{quantiles[0]} \u2013 {quantiles[2]}"
            cells = [f"{of['films']:,}", f"{of['mean']:.0f}", str(quantiles[1]), between]
            cells += [short(of["black"]), short(of["white"])]
            rows.append({"name": name or "unknown", "key": i if i < _DRAWN else None, "cells": cells})
        made.append({"name": f"By {kind}", "svg": charts.series(lines, said), "rows": rows})
    return made


def _aspect(numbers: Mapping[str, Any]) -> Markup:
    counts = numbers["size"]["aspect_histogram"]
    edges = np.linspace(0.5, 2, len(counts) + 1)
    values = np.repeat((edges[:-1] + edges[1:]) / 2, counts)
    return charts.histogram(values, 0.5, 2, len(counts), f"Width over height of the content of {values.size:,} films")


def _quarantine(numbers: Mapping[str, Any]) -> list[list[str]]:
    reasons = list(numbers["quarantine"].items())
    rows = [[reason, *(f"{n:,}" for n in of.values())] for reason, of in reasons[:_REASONS]]
    rest = [of for _, of in reasons[_REASONS:]]
    if rest:
        counts = (f"{sum(of[split] for of in rest):,}" for split in numbers["splits"])
        rows.append([f"{len(rest):,} rarer reasons", *counts])
    return rows


def render(look: Look) -> str:
    """The page as HTML."""
    numbers = look.numbers
    sexes = {} if set(numbers["sex"]) <= {"unknown"} else numbers["sex"]
    findings = numbers["findings"].values()
    return template.load("repgls_jax.data", "look.html").render(
        n=numbers,
        splits=list(numbers["splits"]),
        tiles=_tiles(numbers),
        warnings=warnings(numbers),
        people=[
            {"name": name, "rows": _crossed(table, numbers)}
            for name, table in (("View", numbers["views"]), ("Sex", sexes))
            if table
        ],
        age=_age(numbers),
        findings=_finding_rows(numbers),
        uncertain=any(counts["uncertain"] for of in findings for counts in of.values()),
        intensities=_intensities(numbers),
        means=[{"view": view or "unknown", "src": _picture(image)} for view, image in look.means.items()],
        aspect=_aspect(numbers),
        padding=short(numbers["size"]["padding_mean"]),
        padded=short(numbers["size"]["padded_share"]),
        flagged=[_film(film) for film in look.flagged],
        odd=sum(numbers["flags"].values()),
        pairs=[{"films": [_film(a), _film(b)], "verdict": verdict} for a, b, verdict in look.pairs],
        quarantine=_quarantine(numbers),
        sheets=_sheets(look),
    )


def write(folder: pathlib.Path, look: Look) -> None:
    """Writes look.json and look.html into ``folder``, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    sheet.write(folder / "look.json", json.dumps(look.numbers, indent=1, allow_nan=False) + "\n")
    sheet.write(folder / "look.html", render(look))
