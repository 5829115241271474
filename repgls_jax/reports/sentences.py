"""Sentences of a report, as character offsets.

A report's full stop is a weak sign: decimals ("1.5 cm"), abbreviations ("vs."), list numbers ("2. No effusion") and
missing spaces ("seen.The") all occur. Single line breaks are wrapping; an empty line or a list item starts anew.
"""

import re

# Candidates for a boundary: end punctuation (with or without the space that should follow), an empty line, a line
# that opens with a bullet, and a list number inside the text. The run of punctuation is possessive and never starts
# inside itself, so that "!!!!..." takes linear time.
_BOUNDARY = re.compile(
    r"(?<![.?!])[.?!]++(?=\s|$|[A-Z][a-z])"  # "seen. The", "seen.The"
    r"|\n[ \t]*\n\s*"  # empty line
    r"|\n(?=[ \t]*(?:[-*\u2022]|\d{1,2}[.)])[ \t])"  # a list item on its own line
    r"|\s(?=\d{1,2}[.)]\s+[A-Z])"  # "clear 3. No effusion"
    r"|\.(?=\d{1,2}\.\s+[A-Z])"  # "clear.3. No effusion"
)
_LAST_WORD = re.compile(r"[A-Za-z0-9]+(?:\.[A-Za-z]+)*$")
_ABBREVIATIONS = frozenset(
    (
        "dr", "mr", "mrs", "ms", "st", "vs", "e.g", "i.e", "etc", "approx", "ca", "cf", "resp", "incl",
        "fig", "esp", "pt", "pts", "a.m", "p.m", "u.s", "al", "inc", "dept",
    )
)  # fmt: skip
_LETTER = re.compile(r"[^\W_]")
_ITEM = re.compile(r"\s*(?:\(?\d{1,2}[.)]|[-*\u2022])?\s*")


def split(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Offsets ``(start, end)`` of the sentences of ``text[start:end]``, without surrounding space and list numbers."""
    end = len(text) if end is None else end
    spans: list[tuple[int, int]] = []
    begin = start
    for match in _BOUNDARY.finditer(text, start, end):
        if match.group()[0] == "." and _is_abbreviation(text, begin, match.start()):
            continue
        if match.group() == "?" and _is_query(text, begin, match.start()):
            continue
        _add(spans, text, begin, match.end())
        begin = match.end()
    _add(spans, text, begin, end)
    return spans


def _is_query(text: str, begin: int, mark: int) -> bool:
    """Whether the question mark at ``mark`` opens what follows: "? small effusion", "opacity, ? pneumonia"."""
    if not text[begin:mark].strip():
        return True
    following = text[mark + 1 : mark + 3].lstrip(" ")
    return text[mark - 1] in " ,(:/-" and (following[:1].islower() or following == text[mark + 1 : mark + 3])


def _is_abbreviation(text: str, begin: int, dot: int) -> bool:
    """Whether the full stop at ``dot`` belongs to its word: an abbreviation, an initial or a list number."""
    window = max(begin, dot - 12)
    last = _LAST_WORD.search(text, window, dot)
    if last is None:
        return False
    word = last.group().lower()
    if word in _ABBREVIATIONS:
        return True
    # "1." opens an item when nothing stands before it; "Smith J." is an initial.
    return word.isdigit() and len(word) <= 2 and not text[begin : last.start()].strip()


def _add(spans: list[tuple[int, int]], text: str, begin: int, end: int) -> None:
    head = _ITEM.match(text, begin, end)
    if head is not None:
        begin = head.end()
    while end > begin and text[end - 1].isspace():
        end -= 1
    if _LETTER.search(text, begin, end):
        spans.append((begin, end))
