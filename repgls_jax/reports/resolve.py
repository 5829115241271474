"""One reading per finding from many: conflicts between sentences and sections.

The impression wins over the findings section. Inside a section a claim of presence, however hedged, beats a negation;
among such claims the stronger wins. What is only a sign or a qualified negation ("no large effusion", "lungs clear")
yields to a plain mention.
"""

import dataclasses
from collections.abc import Sequence

from repgls_jax import findings as findings_lib
from repgls_jax.reports import scope

# Words for these stand for several things ("opacity", "infiltrate"): a hedged word in the impression does not undo a
# sign that the findings section asserts.
_SIGNS = frozenset(("Lung Opacity", "Lung Lesion"))
# "No acute fracture" leaves an old one: its sign ("deformity") stands beside it.
_LASTING = frozenset(("Fracture",))
# One of several may be removed or cleared: another that is there still counts.
_SEVERAL = frozenset(("Support Devices",))
_SIDES = frozenset(("left", "right"))
RULE_NO_FINDING = "rule:no-finding"


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What a report says of one finding, and where.

    Attributes:
      finding: canonical name.
      p: probability of presence that the wording expresses, [0, 1].
      cue: id of the deciding cue, "" for a bare mention.
      section: "findings", "impression" or "other".
      field: field of the report that the offsets point into.
      start, end: the sentence.
      mention_start, mention_end: the words that name the finding.
      cue_start, cue_end: the words of the cue, (-1, -1) without one.
      weak: see :class:`repgls_jax.reports.scope.Reading`.
      side: "left" or "right" if the sentence names only that side, else "".
      said: p that the wording expresses, where :attr:`p` has been calibrated to a site; else None.
    """

    finding: str
    p: float
    cue: str
    section: str
    field: str
    start: int
    end: int
    mention_start: int
    mention_end: int
    cue_start: int
    cue_end: int
    weak: int = scope.PLAIN
    side: str = ""
    said: float | None = None

    @property
    def state(self) -> int:
        """Label state of the wording."""
        return findings_lib.state_of(self.p if self.said is None else self.said)


def side(tokens: Sequence[str]) -> str:
    """The one side that the tokens of a sentence name, or ""."""
    named = _SIDES.intersection(tokens)
    return next(iter(named)) if len(named) == 1 else ""


def _present(e: Evidence) -> bool:
    return e.state != findings_lib.NEGATIVE


def within(candidates: Sequence[Evidence]) -> Evidence:
    """The reading that stands for one section (at least one candidate, all of one finding)."""
    if len(candidates) == 1:
        return candidates[0]
    plain = scope.QUALIFIED if candidates[0].finding in _LASTING else scope.SIGN
    named = any(e.weak < plain for e in candidates)
    # A hedged sign (blunting, congestion) says nothing new where the finding itself is spoken of.
    pool = [e for e in candidates if not (named and e.weak == scope.SIGN and 0.1 < e.p < 1.0)]
    present = [e for e in pool if _present(e)]
    if present:
        return max(present, key=lambda e: e.p)
    return min(pool, key=lambda e: (e.weak, e.p))


def resolve(candidates: Sequence[Evidence]) -> Evidence:
    """The reading that stands for the report, from all candidates of one finding (at least one)."""
    conclusion = [e for e in candidates if e.section == "impression"]
    body = [e for e in candidates if e.section != "impression"]
    if not conclusion or not body:
        return within(conclusion or body)
    ours, theirs = within(conclusion), within(body)
    if ours.finding in _SEVERAL and _present(theirs):
        return ours if ours.p >= theirs.p else theirs
    if ours.side and ours.state != findings_lib.POSITIVE:  # doubt on the left leaves what is asserted on the right
        across = [e for e in body if e.side not in ("", ours.side) and e.weak == scope.PLAIN]
        if across and within(across).state == findings_lib.POSITIVE:
            return within(across)
    if not _present(ours):
        # "no significant effusion" concludes what a blunted angle left open, but not what was seen for itself
        return theirs if ours.weak and _present(theirs) and (theirs.weak <= ours.weak or theirs.p == 1.0) else ours
    if ours.weak and not theirs.weak and ours.p < 1.0:
        return theirs
    if ours.finding in _SIGNS and ours.p < theirs.p:
        return theirs
    return ours


def no_finding(found: Sequence[Evidence], field: str, section: str, end: int) -> Evidence:
    """The row of "No Finding": p = 1 - the largest p of the other findings, devices left out.

    It points at the text as a whole (the longest field), since no single sentence carries it.
    """
    p = max((e.p for e in found if e.finding != "Support Devices"), default=0.0)
    return Evidence(findings_lib.NO_FINDING, round(1.0 - p, 6), RULE_NO_FINDING, section, field, 0, end, 0, end, -1, -1)
