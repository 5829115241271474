"""Sections of a report: which part describes, which concludes, and which does not count.

History, indication, technique and the like name findings that nobody claims to see; they are left out. A field may
hold headings of its own ("FINDINGS: ... IMPRESSION: ..."), on separate lines or run together.
"""

import re

FINDINGS, IMPRESSION, OTHER, IGNORED = "findings", "impression", "other", "ignored"

# Heading (lower-cased) -> section. A heading that is not listed changes nothing ("Heart: normal").
HEADINGS = {
    **dict.fromkeys(
        (
            "findings",
            "finding",
            "report",
            "description",
            "chest findings",
            "results",
            "imaging",
            "imaging notes",
            "imaging findings",
            "imaging examination",
            "radiographic findings",
            "radiological findings",
            "radiology",
            "cxr",
        ),
        FINDINGS,
    ),
    **dict.fromkeys(
        (
            "impression",
            "impressions",
            "conclusion",
            "conclusions",
            "opinion",
            "summary",
            "final impression",
            "findings/impression",
            "findings and impression",
            "findings & impression",
            "interpretation",
        ),
        IMPRESSION,
    ),
    **dict.fromkeys(
        (
            "history",
            "clinical history",
            "medical history",
            "past medical history",
            "clinical information",
            "clinical indication",
            "clinical data",
            "clinical statement",
            "indication",
            "indications",
            "indication for exam",
            "reason for exam",
            "reason for examination",
            "reason for study",
            "reason",
            "presentation",
            "case presentation",
            "clinical presentation",
            "clinical details",
            "clinical indications",
            "clinical context",
            "clinical question",
            "history of present illness",
            "past history",
            "hpi",
            "pmh",
            "laboratory test",
            "laboratory tests",
            "labs",
            "technique",
            "procedure",
            "exam",
            "examination",
            "examinations",
            "exams",
            "study",
            "type of examination",
            "comparison",
            "comparisons",
            "comparison study",
            "priors",
            "recommendation",
            "recommendations",
            "recommendation(s)",
            "notification",
            "attestation",
            "dose",
            "contrast",
            "views",
            "diagnosis on admission",
            "admitting diagnosis",
        ),
        IGNORED,
    ),
    **dict.fromkeys(("wet read", "addendum", "provisional findings", "preliminary report", "final report"), OTHER),
    **dict.fromkeys(("discussion", "case discussion", "comment", "comments"), OTHER),
}
# Headings of a description by organ; they end text that does not count, and change nothing elsewhere.
_ORGANS = frozenset(
    (
        "lungs", "lung", "lungs and pleura", "lungs/pleura", "pleura", "pleural space", "pleural spaces", "heart",
        "cardiac", "heart and mediastinum", "mediastinum", "cardiomediastinum", "cardiomediastinal silhouette", "bones",
        "osseous structures", "bones and soft tissues", "lines", "lines and tubes", "lines/tubes", "support devices",
        "tubes and lines", "devices", "hardware", "airways", "chest wall", "diaphragm",
    )
)  # fmt: skip

# A heading stands before a colon, at a line's start or after a sentence; or alone on its line, in capitals.
_HEADING = re.compile(
    r"(?:^|(?<=[\n.!?:]))[ \t_*]*\b([A-Za-z][A-Za-z /&()]{2,26}?)[ \t*]*:"
    r"|(?:^|(?<=\n))[ \t]*([A-Z][A-Z /&]{3,24})[ \t]*(?=\n)"
)
# In capitals also inside running text.
_INLINE = re.compile(r"(?<=\s)(FINDINGS|IMPRESSION|CONCLUSION|INDICATION|HISTORY|COMPARISON|TECHNIQUE)()[ \t]*:")
_BLANK = re.compile(r"\n[ \t]*\n")
# What is said under these is one sentence; without another heading the description follows ("Comparison: none. The
# heart is enlarged.").
_BRIEF = frozenset(
    (
        "technique", "procedure", "exam", "examination", "study", "views", "comparison", "comparisons",
        "comparison study", "priors",
    )
)  # fmt: skip
_END = re.compile(r"\.(?=\s)|\n(?=\s*[A-Z])")


def split(text: str, default: str) -> list[tuple[str, int, int]]:
    """The sections of a field as ``(section, start, end)`` in text order.

    Args:
      text: the field.
      default: section of text before any heading: "findings", "impression" or "other".

    Returns:
      Spans of sections that count; ignored ones are left out. A paragraph after an ignored section that has no
      heading of its own counts as "other": free-style reports put the description there. So does what follows the
      first sentence of a comparison or technique that no heading follows, and of a history that opens a field of
      findings or an impression.
    """
    if ":" not in text and "\n" not in text:
        return [(default, 0, len(text))]
    matches = [*_HEADING.finditer(text), *_INLINE.finditer(text)]
    named = [(m.start(), m.end(), " ".join((m.group(1) or m.group(2)).lower().split())) for m in matches]
    # A field of findings that opens with a history and names no other heading goes on to describe.
    led = {name for start, _, name in named if default != OTHER and not text[:start].strip()}
    brief_ones = {name for name in _BRIEF | led if HEADINGS.get(name) == IGNORED}
    known = [(start, end, HEADINGS[name], name in brief_ones) for start, end, name in named if name in HEADINGS]
    known = sorted(known + [(start, start, "", False) for start, _, name in named if name in _ORGANS])
    spans: list[tuple[str, int, int]] = []
    section, begin, brief = default, 0, False
    for start, end, following, short in [*known, (len(text), len(text), OTHER, False)]:
        if start < begin or (not following and section != IGNORED):
            continue
        if brief and start == len(text) and not _BLANK.search(text.rstrip(), begin):
            stop = _END.search(text, begin)
            section, begin = (default, stop.end()) if stop else (IGNORED, begin)
        _add(spans, section, text, begin, start)
        section, begin, brief = following or FINDINGS, end, short
    return spans


def _add(spans: list[tuple[str, int, int]], section: str, text: str, begin: int, end: int) -> None:
    if section == IGNORED:
        # The ignored text ends at the first empty line that has text before it.
        lead = begin + len(text[begin:end]) - len(text[begin:end].lstrip())
        blank = _BLANK.search(text, lead, end)
        if blank is None:
            return
        section, begin = OTHER, blank.end()
    if text[begin:end].strip():
        spans.append((section, begin, end))
