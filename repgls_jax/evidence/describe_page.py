"""Corpus statistics as files: statistics.json, statistics.html, and a table for the terminal.

The page holds numbers, names of findings and ids of cues; no report text and no ids of studies.
"""

import itertools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from repgls_jax.evidence import describe, figures, sheet
from repgls_jax.results import template

_CUES = 20  # rows of each of the page's tables; statistics.json has more
_LONGEST = 60  # characters of a cue's id
_BANDS = 10  # of certainties between 0 and 1


def short(value: float) -> str:
    """A share as a percentage that never rounds some to none or to all: "<0.1", "12", "99.8"."""
    percent = 100 * value
    if 0 < percent < 0.1:
        return "<0.1"
    if percent < 10 or 99 < percent < 100:
        return f"{min(percent, 99.9) if percent < 100 else percent:.1f}" if percent else "0"
    return f"{percent:.0f}"


def text(statistics: Mapping[str, Any]) -> str:
    """The main table, and what its numbers are over."""
    head = ("Finding", "Positive", "Uncertain", "Negative", "Not mentioned", "Hedged", "95 %", "Neg./pos.")
    rows = []
    for name, entry in statistics["findings"].items():
        counts = [f"{entry[key]:,}" for key in ("positive", "uncertain", "negative", "not mentioned")]
        hedged, ratio = entry["hedged"], entry["negatives_per_positive"]
        between = sheet.between(hedged["low"], hedged["high"])
        rows.append((name, *counts, sheet.number(hedged["share"]), between, sheet.number(ratio, 1)))
    studies = statistics["studies"]
    said = f"{statistics['rows']:,} rows of {studies['with_rows']:,} studies"
    if studies["total_is_given"]:
        said += f"; {studies['without_rows']:,} of {studies['total']:,} studies have none"
    said += f"; {studies['without_finding']:,} mention no finding. Hedged: uncertain of positive and uncertain."
    return f"{sheet.ruled(head, rows)}\n{said}"


def _findings(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    total = statistics["studies"]["total"]
    highs = [entry["hedged"]["high"] for entry in statistics["findings"].values() if entry["hedged"]["n"]]
    limit = math.ceil(10 * max(highs, default=1.0)) / 10
    made = []
    for name, entry in statistics["findings"].items():
        counts = [entry[state] for state in figures.STATES]
        said = ", ".join(f"{count:,} {state}" for count, state in zip(counts, figures.STATES, strict=True))
        hedged = entry["hedged"]
        drawn = figures.whisker(hedged["share"], hedged["low"], hedged["high"], limit) if hedged["n"] else ""
        interval = f"{short(hedged['low'])}\u2013{short(hedged['high'])}" if hedged["n"] else ""
        value = f"{short(hedged['share'])} %" if hedged["n"] else "n/a"
        made.append(
            {
                "name": name,
                "bar": figures.stack(counts, total, f"{name}: {said}, of {total:,} studies"),
                "counts": [f"{count:,}" for count in counts],
                "mentioned": f"{short(entry['mentioned']['share'])} %",
                "hedged": value,
                "interval": interval,
                "whisker": drawn,
                "ratio": sheet.number(entry["negatives_per_positive"], 1),
            }
        )
    return made


def _bands(entry: Mapping[str, Any]) -> list[int]:
    """Mentions by certainty: exactly 0, ten bands in between, exactly 1."""
    per = describe.BINS // _BANDS
    inner = [sum(entry["p_histogram"][k : k + per]) for k in range(0, describe.BINS, per)]
    inner[0] -= entry["p_is_0"]
    inner[-1] -= entry["p_is_1"]
    return [entry["p_is_0"], *inner, entry["p_is_1"]]


def _certainty(statistics: Mapping[str, Any]) -> Any:
    """Heat map of certainties by finding, each row's shares adding up to 1."""
    ends = ["0", *(f".{k}" for k in range(1, _BANDS)), "1"]
    columns = ["0", *(f"{low}\u2013{high}" for low, high in itertools.pairwise(ends)), "1"]
    names = [name for name, entry in statistics["findings"].items() if entry["mentioned"]["k"]]
    counts = [_bands(statistics["findings"][name]) for name in names]
    shade = [[count / sum(row) for count in row] for row in counts]
    cells = [[f"{count:,}" if count else "" for count in row] for row in counts]
    hints = [
        [f"{name}, p {column}: {count:,} of {sum(row):,}" for column, count in zip(columns, row, strict=True)]
        for name, row in zip(names, counts, strict=True)
    ]
    return figures.heat(names, columns, shade, cells, hints, "Mentions by finding and certainty", cell=64)


def _together(statistics: Mapping[str, Any]) -> Any:
    """Heat map of P(column positive | row positive), for findings that are positive somewhere; None without any."""
    data = statistics["co_occurrence"]
    kept = [k for k in range(len(data["findings"])) if data["both"][k][k]]
    if not kept:
        return None
    names = [data["findings"][k] for k in kept]
    shade, cells, hints = [], [], []
    for i in kept:
        row = [None if i == j else data["column_given_row"][i][j] for j in kept]
        shade.append(row)
        cells.append(["" if not value else short(value) for value in row])
        hints.append(
            [
                f"{data['findings'][j]} in {data['both'][i][j]:,} of {data['both'][i][i]:,} studies with "
                f"{data['findings'][i]}; lift {data['lift'][i][j] or 0:.2f}"
                for j in kept
            ]
        )
    said = "Share of studies positive for the row's finding that are positive for the column's"
    return figures.heat(names, names, shade, cells, hints, said, cell=40, slanted=True)


def _cue_rows(cues: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    most = max((cue["n"] for cue in cues), default=1)
    made = []
    for cue in cues[:_CUES]:
        name = cue["cue"] or "bare mention"
        counts = [cue[state] for state in figures.STATES]
        said = ", ".join(f"{count:,} {state}" for count, state in zip(counts, figures.STATES, strict=True))
        made.append(
            {
                "cue": name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…",
                "bare": not cue["cue"],
                "bar": figures.stack(counts, most, f"{name}: {said}"),
                "n": f"{cue['n']:,}",
                "p": f"{cue['p_mean']:.2f}",
                "findings": ", ".join(f"{finding} {count:,}" for finding, count in cue["findings"].items()),
            }
        )
    return made


def _cue_tables(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cues that mostly leave a finding uncertain, and the others, each by frequency."""
    listed = statistics["cues"]["listed"]
    hedging = [cue for cue in listed if 2 * cue["uncertain"] > cue["n"]]
    plain = [cue for cue in listed if 2 * cue["uncertain"] <= cue["n"]]
    tables = [("Hedges", hedging), ("Negations, assertions and bare mentions", plain)]
    return [{"name": name, "rows": _cue_rows(cues), "more": max(0, len(cues) - _CUES)} for name, cues in tables]


def _sections(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = []
    total = max((sum(entry.values()) for entry in statistics["sections"].values()), default=1)
    for name, entry in sorted(statistics["sections"].items(), key=lambda item: -sum(item[1].values())):
        counts = [entry[state] for state in figures.STATES]
        hedged = describe.share(counts[1], counts[0] + counts[1])
        value = "n/a" if hedged["share"] is None else f"{short(hedged['share'])} %"
        bar = figures.stack(counts, total, f"{name}: {sum(counts):,} rows")
        made.append({"name": name, "bar": bar, "counts": [f"{count:,}" for count in counts], "hedged": value})
    return made


def _tiles(statistics: Mapping[str, Any]) -> list[sheet.Tile]:
    studies, cues, uncertain = statistics["studies"], statistics["cues"], statistics["uncertain"]
    claims = uncertain + statistics["positive"]
    value = f"{short(uncertain / claims)} %" if claims else "n/a"
    bare = next((cue["n"] for cue in cues["listed"] if not cue["cue"]), 0)
    missing = f"{studies['without_rows']:,} have no row at all" if studies["total_is_given"] else "of those in the file"
    return [
        sheet.Tile("Claims of presence that are hedged", value, f"{uncertain:,} of {claims:,}"),
        sheet.Tile("Studies", f"{studies['total']:,}", f"{statistics['rows'] / studies['total']:.1f} rows each"),
        sheet.Tile("Mention no finding", f"{studies['without_finding']:,}", missing),
        sheet.Tile("Cues in use", f"{cues['distinct'] - (bare > 0):,}", f"{bare:,} mentions are bare"),
    ]


def render(statistics: Mapping[str, Any]) -> str:
    """The page of :func:`repgls_jax.evidence.describe.describe`'s statistics as HTML."""
    cues = statistics["cues"]
    return template.load("repgls_jax.evidence", "describe.html").render(
        tiles=_tiles(statistics),
        findings=_findings(statistics),
        certainty=_certainty(statistics),
        cues=_cue_tables(statistics),
        rare_cues=cues["distinct"] - len(cues["listed"]),
        sections=_sections(statistics),
        together=_together(statistics),
        made_by=statistics["made_by"],
        vocabulary=statistics["vocabulary"],
    )


def write(folder: pathlib.Path, statistics: Mapping[str, Any]) -> None:
    """Writes statistics.json and statistics.html into ``folder``, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    sheet.write(folder / "statistics.json", json.dumps(statistics, indent=1, allow_nan=False) + "\n")
    sheet.write(folder / "statistics.html", render(statistics))
