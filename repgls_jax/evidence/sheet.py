"""Result pages of evidence tools: one HTML file that opens anywhere, offline, with tables and drawings only.

Style and drawings are inline, there is no script, and the page's own security policy forbids it to load anything. It
shows names of findings, ids of cues, settings and numbers: never the text of a report, nor the id of a study.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from markupsafe import Markup

from repgls_jax.results import template


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under a head; text is escaped, Markup (a small drawing) is not. The first cell is the row's name.

    ``emphasised`` is the number of rows at the end that are totals.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    emphasised: int = 0


@dataclasses.dataclass(frozen=True)
class Section:
    """Part of a page.

    Attributes:
      title, about: heading, and what is to be seen.
      figures: (caption, drawing).
      legend: (class of the colour, name).
      table: below the figures, or None.
    """

    title: str
    about: str
    figures: Sequence[tuple[str, Markup]] = ()
    legend: Sequence[tuple[int, str]] = ()
    table: Table | None = None


@dataclasses.dataclass(frozen=True)
class Tile:
    """A headline: what it is, its value, and a remark below it."""

    title: str
    value: str
    note: str = ""


def render(
    title: str, lead: str, tiles: Sequence[Tile], sections: Sequence[Section], warnings: Sequence[str] = ()
) -> str:
    """The page as HTML; ``warnings`` stand below the headlines, a paragraph each."""
    return template.load("repgls_jax.evidence", "sheet.html").render(
        title=title, lead=lead, tiles=tiles, sections=sections, warnings=warnings
    )


def write(path: pathlib.Path, text: str) -> None:
    """Writes ``text`` whole or not at all (a temporary file is renamed into place)."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def ruled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column on the left, numbers on the right."""
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def number(value: float | None, digits: int = 3) -> str:
    """``value`` to ``digits`` digits, "n/a" for None."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def between(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval as "[0.120, 0.340]", "" without one."""
    return "" if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]"
