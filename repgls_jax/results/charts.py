"""Small charts as inline SVG text for the report page.

Colours, strokes and fonts come from the page's style sheet by class, so that one drawing serves light, dark
and print; the classes s0, s1, ... are the runs. Every chart is an image with a text alternative.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

COLOURS = 6  # classes s0..s5 in the style sheet; more runs repeat them
MOST_BUCKETS = 160


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart: x and y of equal length, the class of its colour, and its name for the text alternative."""

    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    name: str = ""
    dots: bool = False
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
    """Maps data to the pixels of a drawing of ``width`` x ``height`` with margins (left, top, right, bottom)."""

    width: float
    height: float
    margin: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self.margin
        u = (x - self.x[0]) / (self.x[1] - self.x[0])
        v = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + u * (self.width - left - right), self.height - bottom - v * (self.height - top - bottom)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that span [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def short(value: float) -> str:
    """A tick's label: 12k, 0.25, 1e-05."""
    if value and abs(value) >= 1000:
        for size, mark in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{mark}"
    return f"{value:g}"


def path_of(frame: Frame, line: Line) -> str:
    """The line, broken where a value is not finite."""
    parts, pen = [], "M"
    for x, y in zip(line.x, line.y, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        px, py = frame.at(x, y)
        parts.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
    style = " dashed" if line.dashed else ""
    return f'<path class="line s{line.colour % COLOURS}{style}" d="{"".join(parts)}"/>'


def dots_of(frame: Frame, line: Line) -> str:
    """A dot for every point of a line."""
    at = [frame.at(x, y) for x, y in zip(line.x, line.y, strict=True)]
    return "".join(f'<circle class="dot s{line.colour % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in at)


def rule(frame: Frame, kind: str, x0: float, y0: float, x1: float, y1: float) -> str:
    """A straight line between two points of the data, of the class ``kind``."""
    (a, b), (c, d) = frame.at(x0, y0), frame.at(x1, y1)
    return f'<line class="{kind}" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>'


def label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """Text at a place of the drawing."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(width: float, height: float, description: str, parts: Sequence[str]) -> Markup:
    """A drawing with its text alternative."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}">'
    return Markup(head + "".join(parts) + "</svg>")


def square(
    lines: Sequence[Line],
    description: str,
    *,
    limit: float = 1.0,
    diagonal: bool = False,
    level: float | None = None,
) -> Markup:
    """A square chart on [0, limit]^2: ROC, precision-recall, reliability.

    Args:
      lines: what to draw; none draws an empty frame that says so.
      description: text alternative.
      limit: upper end of both axes.
      diagonal: draws y = x, chance or perfect calibration.
      level: draws a horizontal reference.
    """
    f = Frame(160, 156, (24, 6, 6, 20), (0, limit), (0, limit))
    if not lines:
        middle = label(*f.at(limit / 2, limit / 2), "not defined")
        left, top = f.at(0, limit)
        box = f'<rect class="void" x="{left}" y="{top}" width="130" height="130" rx="3"/>'
        return svg(160, 156, description, [box, middle])
    parts = []
    for v in (0.0, limit / 2, limit):
        parts += [rule(f, "grid", 0, v, limit, v), rule(f, "grid", v, 0, v, limit)]
        x, y = f.at(v, v)
        anchor = "start" if v == 0 else "end" if v == limit else "middle"
        parts += [label(x, 150, short(v), anchor), label(19, y + 3.2, short(v), "end")]
    if diagonal:
        parts.append(rule(f, "reference", 0, 0, limit, limit))
    if level is not None:
        parts.append(rule(f, "reference", 0, level, limit, level))
    for line in lines:
        parts += [path_of(f, line), dots_of(f, line) if line.dots else ""]
    return svg(160, 156, description, parts)


def thin(line: Line) -> Line:
    """``line`` with at most the lowest and the highest point of each of MOST_BUCKETS stretches, so no spike is lost."""
    n = len(line.x)
    if n <= 2 * MOST_BUCKETS:
        return line
    y = np.asarray(line.y, np.float64)
    low, high = np.where(np.isfinite(y), y, np.inf), np.where(np.isfinite(y), y, -np.inf)
    kept = {0, n - 1}
    for stretch in np.array_split(np.arange(n), MOST_BUCKETS):
        kept |= {int(stretch[low[stretch].argmin()]), int(stretch[high[stretch].argmax()])}
    index = sorted(kept)
    return dataclasses.replace(line, x=[line.x[i] for i in index], y=[line.y[i] for i in index])


def series(lines: Sequence[Line], description: str) -> Markup:
    """Values against the step, with round axis numbers. Lines without a finite value are left out."""
    finite = [[v for v in line.y if math.isfinite(v)] for line in lines]
    values, steps = [v for ys in finite for v in ys], [x for line in lines for x in line.x]
    if not values:
        return svg(350, 190, description, [label(175, 95, "no finite value")])
    xs, ys = ticks(min(steps), max(steps)), ticks(min(values), max(values))
    f = Frame(350, 190, (44, 8, 10, 22), (min(steps), max(*steps, min(steps) + 1)), (ys[0], ys[-1]))
    parts = []
    for v in ys:
        parts += [rule(f, "grid", f.x[0], v, f.x[1], v), label(38, f.at(f.x[0], v)[1] + 3.5, short(v), "end")]
    parts += [label(f.at(v, ys[0])[0], 184, short(v)) for v in xs if f.x[0] <= v <= f.x[1]]
    for line, known in zip(lines, finite, strict=True):
        if known:
            small = thin(line)
            parts += [path_of(f, small), dots_of(f, small) if len(small.x) < 2 else ""]
    return svg(350, 190, description, parts)


def histogram(values: np.ndarray, low: float, high: float, bins: int, description: str, colour: int = 0) -> Markup:
    """Shares of ``values`` in ``bins`` bins of equal width on [low, high], the tallest bar as high as the chart."""
    counts, edges = np.histogram(values, bins, (low, high))
    f = Frame(160, 90, (6, 6, 6, 18), (low, high), (0, max(int(counts.max()), 1)))
    parts = [rule(f, "grid", (low + high) / 2, 0, (low + high) / 2, f.y[1])]
    for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True):
        (x0, base), (x1, top) = f.at(a, 0), f.at(b, float(count))
        if count:
            height = max(base - top, 0.8)  # one value among thousands still shows
            parts.append(
                f'<rect class="bar s{colour % COLOURS}" x="{x0 + 0.4:.1f}" y="{base - height:.1f}" '
                f'width="{x1 - x0 - 0.8:.1f}" height="{height:.1f}"/>'
            )
    parts.append(rule(f, "axis", low, 0, high, 0))
    for v, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end")):
        parts.append(label(f.at(v, 0)[0], 85, short(v), anchor))
    return svg(160, 90, description, parts)


def interval(value: float, low: float | None, high: float | None, start: float, colour: int = 0) -> Markup:
    """A value on [start, 1] as a dot with its interval: one row of a forest plot, no text alternative."""
    f = Frame(200, 20, (6, 2, 6, 2), (start, 1), (0, 2))
    parts = [rule(f, "grid", v, 0, v, 2) for v in ticks(start, 1, 5) if start <= v <= 1]
    if low is not None and high is not None:
        parts.append(rule(f, f"whisker s{colour % COLOURS}", max(low, start), 1, high, 1))
    x, y = f.at(max(value, start), 1)
    parts.append(f'<circle class="dot s{colour % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    return Markup('<svg viewBox="0 0 200 20" aria-hidden="true">' + "".join(parts) + "</svg>")
