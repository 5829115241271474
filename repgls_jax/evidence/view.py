"""A report as it was read: which words name a finding, which cue decides, what was overruled and why.

Pure. In: a report and the engine, or a report and its rows of an evidence file. Out: a :class:`Study`, which
:mod:`repgls_jax.evidence.terminal` and :mod:`repgls_jax.evidence.view_page` draw. All text of a Study is safe to show:
control characters and the like stand as visible symbols. It is still private: it goes to who asked, and nowhere else.
"""

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import workers
from repgls_jax.reports import engine as engine_lib
from repgls_jax.reports import sections
from repgls_jax.reports.resolve import Evidence

READ, HEADING, IGNORED = "read", "heading", "ignored"
_LAST_HEADING = re.compile(r"[A-Za-z][A-Za-z /&()]{2,26}[ \t*]*:?\s*\Z")
_STATES = (findings_lib.POSITIVE, findings_lib.UNCERTAIN, findings_lib.NEGATIVE)
_WORDS = 60  # characters of a mention quoted in the table

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Reading:
    """One reading of one finding.

    Attributes:
      number: its mark in the text: "3" for the reading that decides the third finding, "3a", "3b" for the others of
        that finding; "" for a finding that follows by rule and has no words of its own.
      finding: canonical name.
      state: label state of the wording.
      p: probability of presence that the wording expresses, [0, 1].
      cue: id of the deciding cue, "" for a bare mention.
      section, field: where it stands.
      sentence, mention, cue_span: half-open character offsets into the field; cue_span is (-1, -1) without a cue.
      words: the mention as text to show, shortened.
      decides: it gives the report's label.
      why: of a reading that does not decide, why another does.
    """

    number: str
    finding: str
    state: int
    p: float
    cue: str
    section: str
    field: str
    sentence: Span
    mention: Span
    cue_span: Span
    words: str
    decides: bool
    why: str = ""

    @property
    def derived(self) -> bool:
        """It follows from the other findings; no words of the report say it."""
        return self.cue.startswith("rule:")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of text over which nothing changes.

    Attributes:
      text: as to be shown.
      kind: READ, HEADING, or IGNORED (a section that does not count, such as the history).
      deciding: part of a sentence that carries deciding evidence.
      mentions, cues: indices of the study's readings whose mention, or cue, covers the piece.
      opens, closes: groups of such indices whose common mention starts, or ends, with the piece; outermost first.
    """

    text: str
    kind: str
    deciding: bool
    mentions: tuple[int, ...]
    cues: tuple[int, ...]
    opens: tuple[tuple[int, ...], ...]
    closes: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """A report and its readings.

    Attributes:
      study_id: as to be shown.
      fields: name -> pieces in text order, for the fields that have text.
      readings: each deciding reading followed by the others of its finding; what follows by rule is last.
      labeller, version: what read it, "" where an evidence file has no row of it.
      cut: characters beyond the engine's limit, which are neither read nor shown.
    """

    study_id: str
    fields: dict[str, list[Piece]]
    readings: list[Reading]
    labeller: str
    version: str
    cut: int


def visible(text: str) -> str:
    """``text`` with everything that could steer a terminal or reorder a line as a visible symbol.

    Control characters become their Unicode pictures, other characters without a shape (direction overrides,
    zero-width characters, lone surrogates) their code point in brackets, all spaces a plain one. Line ends stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _symbol(c) for c in text.replace("\r\n", "\n"))


def _symbol(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return character
    if character == "\t" or (character.isspace() and code > 0xFF and character not in "\u2028\u2029") or code == 0xA0:
        return " "
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\u27e8U+{code:04X}\u27e9"


def why(other: Evidence, decision: Evidence) -> str:
    """Why ``other`` does not decide; the rules are those of :mod:`repgls_jax.reports.resolve`."""
    if other.state == decision.state:
        return "agrees" if math.isclose(other.p, decision.p, abs_tol=1e-6) else "agrees; the other wording gives p"
    concluding = (other.section == sections.IMPRESSION, decision.section == sections.IMPRESSION)
    if concluding == (False, True):
        return "overruled: the impression wins over the findings"
    if concluding == (True, False):
        if other.state == findings_lib.NEGATIVE:
            return "overruled: a sign or a qualified negation yields to a claim of presence"
        if other.weak and not decision.weak:
            return "overruled: a sign in the impression yields to the finding's own name"
        return "overruled: a weaker word in the impression does not undo the findings"
    if other.state == findings_lib.NEGATIVE:
        return "overruled: a claim of presence outweighs a negation"
    if other.weak and decision.p < other.p:
        return "overruled: a hedged sign says nothing where the finding itself is spoken of"
    return "overruled: the stronger claim wins"


def _place(e: Evidence) -> tuple[str, str, int, int, str, int]:
    return e.finding, e.field, e.mention_start, e.mention_end, e.cue, e.cue_start


def live(report: Mapping[str, str], engine: engine_lib.Engine) -> Study:
    """The report as the rule engine reads it now, with the readings that it overrules.

    Args:
      report: study_id, and the fields of :data:`repgls_jax.reports.engine.FIELDS` that it has.
      engine: gives the vocabulary as well.
    """
    others: dict[str, dict[Any, Evidence]] = defaultdict(dict)
    for e in engine.candidates(report):
        others[e.finding].setdefault(_place(e), e)
    readings: list[Reading] = []
    for n, decision in enumerate(_rules_last(engine.read(report)), 1):
        readings.append(_reading(report, decision, str(n), ""))
        rest = [e for place, e in others[decision.finding].items() if place != _place(decision)]
        readings += [_reading(report, e, f"{n}{_letters(i)}", why(e, decision)) for i, e in enumerate(rest)]
    return _study(report, readings, "lexicon", engine.version)


def _rules_last(found: Iterable[Evidence]) -> list[Evidence]:
    return sorted(found, key=lambda e: e.cue.startswith("rule:"))


def _letters(i: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


def _reading(report: Mapping[str, str], e: Evidence, number: str, reason: str) -> Reading:
    mention, cue = (e.mention_start, e.mention_end), (e.cue_start, e.cue_end)
    place = (e.section, e.field, (e.start, e.end), mention, cue, _quote(report[e.field], mention))
    number = "" if e.cue.startswith("rule:") else number
    return Reading(number, e.finding, e.state, e.p, e.cue, *place, decides=not reason, why=reason)


def _quote(text: str, span: Span) -> str:
    words = " ".join(visible(text[span[0] : min(span[1], span[0] + _WORDS + 1)]).split())
    return words if len(words) <= _WORDS else words[: _WORDS - 1] + "…"


def stored(report: Mapping[str, str], rows: Sequence[Mapping[str, Any]], where: str) -> Study:
    """The report with its rows of an evidence file; such files hold no overruled readings.

    Args:
      report: as for :func:`live`.
      rows: the study's rows, with the columns of :data:`repgls_jax.sidecars.EVIDENCE`.
      where: what holds the rows, for messages.

    Raises:
      ValueError: the rows were made from another text, or a value of theirs is impossible.
    """
    digest = workers.report_hash(report)
    said = visible(report["study_id"])
    if any(row["report_hash"] != digest for row in rows):
        raise ValueError(
            f"{where} was made from another text of study {said!r} (its report_hash differs from {digest}): "
            "the reports changed; extract again, or give the reports it was made from"
        )
    for row in rows:
        _check(report, row, f"{where}, study {said!r}, finding {row['finding']!r}")
    readings: list[Reading] = []
    for row in sorted(rows, key=lambda row: row["cue"].startswith("rule:")):
        readings.append(_row(report, row, "" if row["cue"].startswith("rule:") else str(len(readings) + 1)))
    labeller, version = (visible(rows[0]["labeller"]), visible(rows[0]["version"])) if rows else ("", "")
    return _study(report, readings, labeller, version)


def _row(report: Mapping[str, str], row: Mapping[str, Any], number: str) -> Reading:
    mention = row["mention"], row["mention_end"]
    return Reading(
        number=number,
        finding=visible(row["finding"]),
        state=row["state"],
        p=row["p"],
        cue=visible(row["cue"]),
        section=visible(row["section"]),
        field=row["field"],
        sentence=(row["start"], row["end"]),
        mention=mention,
        cue_span=(row["cue_start"], row["cue_end"]),
        words=_quote(report.get(row["field"]) or "", mention),
        decides=True,
    )


def _check(report: Mapping[str, str], row: Mapping[str, Any], where: str) -> None:
    if any(value is None for value in row.values()) or row["field"] not in engine_lib.FIELDS:
        raise ValueError(f"{where}: a value is missing, or the field is unknown; the file is damaged, extract again")
    if row["state"] not in _STATES or not 0 <= row["p"] <= 1:
        raise ValueError(f"{where}: state {row['state']}, p {row['p']}; expected -1, 0 or 1, and a p in [0, 1]")
    length = len(report.get(row["field"]) or "")
    pairs = [("start", "end"), ("mention", "mention_end"), ("cue_start", "cue_end")]
    for first, last in pairs:
        a, b = row[first], row[last]
        if not 0 <= a <= b <= length and not (first == "cue_start" and a == b == -1):
            raise ValueError(f"{where}: {first} {a}, {last} {b}; expected a span of the field's {length} characters")


def _study(report: Mapping[str, str], readings: list[Reading], labeller: str, version: str) -> Study:
    fields: dict[str, list[Piece]] = {}
    cut = 0
    for field in engine_lib.FIELDS:
        text = report.get(field) or ""
        cut += max(0, len(text) - engine_lib.MAX_CHARS)
        if text.strip():
            fields[field] = _pieces(text[: engine_lib.MAX_CHARS], field, readings)
    return Study(visible(report["study_id"]), fields, readings, labeller, version, cut)


def _kinds(text: str, default: str) -> list[tuple[str, int, int]]:
    """The field from end to end as spans of READ, HEADING and IGNORED text."""
    spans: list[tuple[str, int, int]] = []
    at = 0
    for _, start, end in [*sections.split(text, default), ("", len(text), len(text))]:
        gap = text[at:start]
        last = _LAST_HEADING.search(gap) if end > start else None
        name = " ".join(last.group().rstrip(": *\t\n").lower().split()) if last else ""
        heading = at + last.start() if last and sections.HEADINGS.get(name) not in (None, IGNORED) else start
        said = at + len(text[at:heading].rstrip())
        spans += [(IGNORED, at, said), (READ, said, heading), (HEADING, heading, start), (READ, start, end)]
        at = end
    return [span for span in spans if span[2] > span[1]]


def _pieces(text: str, field: str, readings: Sequence[Reading]) -> list[Piece]:
    """Cuts a field wherever a mark, a sentence with deciding evidence, or a section starts or ends."""
    events: dict[int, list[tuple[str, int, int]]] = defaultdict(list)  # offset -> (what, +1 or -1, reading)
    marks: dict[Span, list[int]] = defaultdict(list)

    def put(what: str, span: Span, value: int) -> Span | None:
        start, end = min(span[0], len(text)), min(span[1], len(text))
        if not 0 <= start < end:
            return None  # no cue, or beyond what is shown
        events[start].append((what, 1, value))
        events[end].append((what, -1, value))
        return start, end

    for k, reading in enumerate(readings):
        if reading.field == field and not reading.derived:
            put("cue", reading.cue_span, k)
            if reading.decides:
                put("sentence", reading.sentence, k)
            mark = put("mention", reading.mention, k)
            if mark:
                marks[mark].append(k)
    opens: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    closes: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for (start, end), group in sorted(marks.items(), key=lambda mark: (mark[0][0], -mark[0][1])):
        opens[start].append(tuple(group))
        closes[end].insert(0, tuple(group))
    kinds = _kinds(text, engine_lib.FIELDS[field])
    starts = {start: kind for kind, start, _ in kinds}
    cuts = sorted({0, len(text), *events, *starts})
    active: dict[str, set[int]] = {"mention": set(), "cue": set(), "sentence": set()}
    kind, pieces = READ, []
    for start, end in itertools.pairwise(cuts):
        kind = starts.get(start, kind)
        for what, step, value in events[start]:
            (active[what].add if step > 0 else active[what].discard)(value)
        over, cue = tuple(sorted(active["mention"])), tuple(sorted(active["cue"]))
        groups = tuple(opens[start]), tuple(closes[end])
        pieces.append(Piece(visible(text[start:end]), kind, bool(active["sentence"]), over, cue, *groups))
    return pieces
