"""A :class:`~repgls_jax.evidence.view.Study` as lines for a terminal, with or without colour.

Without colour the same marks say the same: brackets hold the words that name a finding and end in a sign and a
number, "[effusion +3]"; underscores hold the deciding cue; braces hold text that is not read; a bar at the margin
shows lines with deciding evidence.
"""

import dataclasses
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator

from repgls_jax import findings as findings_lib
from repgls_jax.evidence import view

SIGNS = {findings_lib.POSITIVE: "+", findings_lib.UNCERTAIN: "?", findings_lib.NEGATIVE: "-"}
# Told apart by lightness as well as by hue, on dark and on light ground.
_COLOURS = {findings_lib.POSITIVE: "38;5;37", findings_lib.UNCERTAIN: "38;5;208", findings_lib.NEGATIVE: "38;5;245"}
_BOLD, _DIM, _UNDERLINE = "1", "2", "4"
_NARROWEST = 40
LEGEND = "[+ positive]  [? uncertain]  [- negative]  _cue_  {not read}  | deciding evidence;  3a: overruled or agreeing"


@dataclasses.dataclass(frozen=True, slots=True)
class _Cell:
    character: str
    style: tuple[str, ...] = ()
    deciding: bool = False


def lines(study: view.Study, width: int, colour: bool) -> Iterator[str]:
    """The study's lines, each at most ``width`` columns (40 at least), without line ends.

    Args:
      study: what to show.
      width: columns of the terminal.
      colour: whether the terminal takes ANSI styles; if not, no escape sequence is given.
    """
    width = max(width, _NARROWEST)
    yield _paint(f"study {study.study_id}", (_BOLD,), colour)
    for field, pieces in study.fields.items():
        yield ""
        yield _paint(field.upper(), (_BOLD,), colour)
        yield from _flow(list(_cells(pieces, study.readings, colour)), width, colour)
    if not study.fields:
        yield "(no text)"
    if study.cut:
        yield f"(… {study.cut:,} more characters, not read)"
    yield ""
    yield from _table(study, width, colour)


def tag(reading: view.Reading) -> str:
    """Sign and number of a reading: "+3", "?4a"."""
    return SIGNS[reading.state] + reading.number


def _cells(pieces: Iterable[view.Piece], readings: list[view.Reading], colour: bool) -> Iterator[_Cell]:
    ignored = False
    cue: tuple[int, ...] = ()
    for piece in pieces:
        if not colour and bool(cue) != bool(piece.cues):
            yield _Cell("_", deciding=piece.deciding)
        if ignored != (piece.kind == view.IGNORED):
            yield _Cell("}" if ignored else "{", (_DIM,))
        ignored, cue = piece.kind == view.IGNORED, piece.cues
        for group in piece.opens:
            yield _Cell("[", _colours(readings, group), piece.deciding)
        style = _colours(readings, piece.mentions) + ((_UNDERLINE,) if piece.cues else ())
        style += (_DIM,) if piece.kind != view.READ else ()
        yield from (_Cell(c, style, piece.deciding) for c in piece.text)
        for group in piece.closes:
            yield from (_Cell(c, _colours(readings, group), piece.deciding) for c in _closing(readings, group))
    if cue and not colour:
        yield _Cell("_")
    if ignored:
        yield _Cell("}", (_DIM,))


def _closing(readings: list[view.Reading], group: tuple[int, ...]) -> str:
    return "".join(f"\u00a0{tag(readings[k])}" for k in group) + "]"


def _colours(readings: list[view.Reading], marks: tuple[int, ...]) -> tuple[str, ...]:
    """The colour of the marks' state; bold where they decide, without a colour where states differ."""
    chosen = [readings[k] for k in marks if readings[k].decides] or [readings[k] for k in marks]
    states = {reading.state for reading in chosen}
    bold = (_BOLD,) if any(reading.decides for reading in chosen) else ()
    return (_COLOURS[chosen[0].state], *bold) if len(states) == 1 else bold


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _flow(cells: list[_Cell], width: int, colour: bool) -> Iterator[str]:
    """Wraps cells at spaces, long words anywhere; two columns at the left are the margin."""
    room = width - 2
    line: list[_Cell] = []
    used = blank = 0
    for cell in [*cells, _Cell("\n")]:
        if cell.character == "\n":
            if line or blank == 0:
                yield _line(line, colour)
            blank = 0 if line else blank + 1
            line, used = [], 0
            continue
        line.append(cell)
        used += _columns(cell.character)
        if used > room:
            at = max((i for i, c in enumerate(line) if c.character == " "), default=-1)
            head, line = (line[:at], line[at + 1 :]) if at > 0 else (line[:-1], line[-1:])
            yield _line(head, colour)
            used = sum(_columns(c.character) for c in line)


def _line(cells: list[_Cell], colour: bool) -> str:
    text = ""
    style: tuple[str, ...] = ()
    for cell in cells:
        if colour and cell.style != style:
            text += "\x1b[0m" if style else ""
            text += f"\x1b[{';'.join(cell.style)}m" if cell.style else ""
            style = cell.style
        text += " " if cell.character == "\u00a0" else cell.character
    margin = "| " if any(cell.deciding for cell in cells) else "  "
    return (margin + text + ("\x1b[0m" if style else "")).rstrip(" ")


def _paint(text: str, style: tuple[str, ...], colour: bool) -> str:
    return f"\x1b[{';'.join(style)}m{text}\x1b[0m" if colour else text


def _table(study: view.Study, width: int, colour: bool) -> Iterator[str]:
    if not study.readings:
        yield "no finding is mentioned" if study.labeller else "the evidence file has no row of this study"
    for reading in study.readings:
        state = findings_lib.STATES[reading.state]
        origin = "follows from the other findings" if reading.derived else f"{reading.cue or 'bare'}, {reading.section}"
        if reading.decides:
            head = f"{tag(reading):>4}  {reading.finding:<26} {state:<9} {reading.p:.2f}  "
            rest = origin + ("" if reading.derived else f', "{reading.words}"')
            indent = 8
        else:
            head = f"{tag(reading):>10}  "
            rest = f'{state} {reading.p:.2f}, {origin}, "{reading.words}"; {reading.why}'
            indent = 12
        style = (_COLOURS[reading.state], _BOLD) if reading.decides else (_COLOURS[reading.state],)
        wrapped = textwrap.wrap(head + rest, width, subsequent_indent=" " * indent, break_on_hyphens=False)
        for line in wrapped or [head]:
            yield _paint(line, style, colour)
