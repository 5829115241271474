"""Drawings of corpus statistics as inline SVG; colours come from the page's style sheet by class (see charts)."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from repgls_jax.results import charts

STATES = ("positive", "uncertain", "negative")  # classes of bars, in drawing order
_BAR, _HEIGHT = 260, 20
_ROW, _LABEL = 22, 192  # a heat map's row height, and room for the names of its rows


def stack(counts: Sequence[int], limit: int, description: str) -> Markup:
    """A bar of three stretches, by state, ``limit`` being the whole width."""
    parts, x = [f'<rect class="empty" x="0" y="4" width="{_BAR}" height="12" rx="2"/>'], 0.0
    for name, count in zip(STATES, counts, strict=True):
        width = _BAR * count / max(limit, 1)
        if count:
            parts.append(f'<rect class="{name}" x="{x:.2f}" y="4" width="{max(width, 0.6):.2f}" height="12"/>')
        x += width
    return charts.svg(_BAR, _HEIGHT, description, parts)


def whisker(value: float, low: float, high: float, limit: float) -> Markup:
    """A share on [0, limit] as a dot with its interval; decoration, the numbers stand beside it."""
    f = charts.Frame(120, _HEIGHT, (5, 2, 5, 2), (0, limit), (0, 2))
    (x, y), (a, _), (b, _) = f.at(value, 1), f.at(low, 1), f.at(min(high, limit), 1)
    parts = [f'<line class="grid" x1="{gx:.1f}" y1="2" x2="{gx:.1f}" y2="18"/>' for gx in (5, 60, 115)]
    parts.append(f'<line class="whisker" x1="{a:.1f}" y1="{y:.1f}" x2="{b:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    return Markup('<svg viewBox="0 0 120 20" aria-hidden="true">' + "".join(parts) + "</svg>")


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    shade: Sequence[Sequence[float | None]],
    cells: Sequence[Sequence[str]],
    hints: Sequence[Sequence[str]],
    description: str,
    *,
    cell: float,
    slanted: bool = False,
) -> Markup:
    """A matrix of shaded cells.

    Args:
      rows, columns: names.
      shade: how strong each cell is, [0, 1]; the eye sees its square root, so that small shares show. None is void.
      cells: text in each cell.
      hints: what is told when a pointer rests on it.
      description: text alternative.
      cell: width of a column in pixels.
      slanted: column names at an angle, for long ones.
    """
    top = 142 if slanted else 22
    parts = []
    for j, name in enumerate(columns):
        x = _LABEL + (j + 0.5) * cell
        turn = f' transform="rotate(-48 {x:.1f} {top - 7})"' if slanted else ""
        anchor = "start" if slanted else "middle"
        parts.append(f'<text x="{x:.1f}" y="{top - 7}" text-anchor="{anchor}"{turn}>{escape(name)}</text>')
    for i, name in enumerate(rows):
        y = top + i * _ROW
        middle = f"{y + _ROW / 2 + 3.5:.1f}"
        parts.append(f'<text class="name" x="{_LABEL - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        for j, value in enumerate(shade[i]):
            x = _LABEL + j * cell
            box = f'x="{x + 0.75:.2f}" y="{y + 0.75:.2f}" width="{cell - 1.5:.2f}" height="{_ROW - 1.5}" rx="2"'
            if value is None:
                parts.append(f'<rect class="void" {box}/>')
                continue
            strength = math.sqrt(min(max(value, 0.0), 1.0))
            ink = "over" if strength > 0.72 else "under"
            parts.append(f'<g><title>{escape(hints[i][j])}</title><rect class="empty" {box}/>')
            parts.append(f'<rect class="heat" {box} fill-opacity="{strength:.3f}"/>')
            centre = f"{x + cell / 2:.1f}"
            parts.append(f'<text class="{ink}" x="{centre}" y="{middle}" text-anchor="middle">{cells[i][j]}</text></g>')
    right = 70 if slanted else 6
    return charts.svg(_LABEL + len(columns) * cell + right, top + len(rows) * _ROW + 6, str(description), parts)
