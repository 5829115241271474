"""Further small drawings of the report page, in the manner of :mod:`repgls_jax.results.charts`."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from repgls_jax.results.charts import COLOURS, Frame, Line, dots_of, label, path_of, rule, short, svg, ticks


def fall(lines: Sequence[Line], description: str, top: float, level: float | None = None) -> Markup:
    """Risk against coverage on [0, 1] x [0, about ``top``], with a horizontal reference at ``level``."""
    marks = ticks(0.0, max(top, 1e-3), 2)
    f = Frame(160, 156, (30, 6, 6, 20), (0, 1), (0, marks[-1]))
    parts = []
    for v in marks:
        x, y = f.at(0, v)
        parts += [rule(f, "grid", 0, v, 1, v), label(x - 4, y + 3.2, short(v), "end")]
    for v, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts += [rule(f, "grid", v, 0, v, marks[-1]), label(f.at(v, 0)[0], 150, short(v), anchor)]
    if level is not None:
        parts.append(rule(f, "reference", 0, level, 1, level))
    for line in lines:
        parts += [path_of(f, line), dots_of(f, line) if len(line.x) < 2 else ""]
    return svg(160, 156, description, parts)


def confusion(cells: Mapping[str, int], finding: str, colour: int = 0) -> Markup:
    """Calls (columns) of what is labelled (rows), each row shaded by its shares: what is on the diagonal is right."""
    rows = (("present", ("tp", "fn")), ("absent", ("fp", "tn")))
    said = ", ".join(f"{name} {cells[name]:,}" for name in ("tp", "fn", "fp", "tn"))
    parts = [label(66, 11, "called"), label(120, 11, "not called")]
    for i, (name_of, pair) in enumerate(rows):
        whole = max(sum(cells[name] for name in pair), 1)
        parts.append(label(34, 38 + 40 * i, name_of, "end"))
        for j, name in enumerate(pair):
            share, x, y = cells[name] / whole, 40 + 54 * j, 16 + 40 * i
            parts += [
                f'<rect class="bar s{colour % COLOURS}" x="{x}" y="{y}" width="52" height="38" rx="2" '
                f'opacity="{0.06 + 0.4 * share:.2f}"/>',
                f'<text class="count" x="{x + 26}" y="{y + 18}" text-anchor="middle">{cells[name]:,}</text>',
                f'<text class="share" x="{x + 26}" y="{y + 30}" text-anchor="middle">{share:.0%}</text>',
            ]
    return svg(150, 98, f"Confusion of {finding}: {said}", parts)


def difference(
    value: float, low: float | None, high: float | None, test: Mapping[str, float] | None, reach: float
) -> Markup:
    """A difference on [-reach, reach] around 0 with its interval, and below it DeLong's, where there is one."""
    f = Frame(200, 20, (6, 2, 6, 2), (-reach, reach), (0, 4))
    parts = [rule(f, "grid", v, 0, v, 4) for v in (-reach, reach)]
    parts.append(rule(f, "axis", 0, 0, 0, 4))
    if low is not None and high is not None:
        parts.append(rule(f, "whisker s0", low, 2.4, high, 2.4))
    x, y = f.at(value, 2.4)
    parts.append(f'<circle class="dot s0" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    if test is not None:
        parts.append(rule(f, "reference", test["low"], 0.8, test["high"], 0.8))
    return Markup('<svg viewBox="0 0 200 20" aria-hidden="true">' + "".join(parts) + "</svg>")
