"""Which cue governs which mention, and the certainty that follows.

Forward cues ("no", "may represent") act on mentions after them, backward cues ("is possible", "has resolved") on the
nearest group before them. A negation runs through a list; a hedge through one coordinated group; both end at a verb,
at "with", or where a new statement opens. A hedge on the cause is no hedge on the sign: in "opacity, likely
atelectasis" the cue stands after the opacity and leaves it asserted. Alternatives share their probability.
"""

import dataclasses

from repgls_jax.reports import groups as groups_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports.mentions import HEADS, Item

# Tokens after which a hedge that follows a mention cannot reach on.
_CLOSERS = frozenset((",", ";", ")", "on", "in", "at", "given", "by"))
_NEGATIVE = ("negated", "resolved")
PLAIN, QUALIFIED, SIGN = 0, 1, 2


@dataclasses.dataclass(slots=True)
class Reading:
    """One mention, read.

    Attributes:
      finding: canonical name.
      p: certainty, [0, 1].
      cue: id of the deciding cue, "" for a bare mention.
      weak: PLAIN, QUALIFIED (a negation such as "no large ...") or SIGN (a sign or a statement); the weaker yields.
      tokens, cue_tokens: half-open token spans; cue_tokens is (-1, -1) without a cue.
    """

    finding: str
    p: float
    cue: str
    weak: int
    tokens: tuple[int, int]
    cue_tokens: tuple[int, int]
    ceiling: float = 1.0  # p that the hedge alone gives; alternatives that name one finding twice add up to it


def read(items: list[Item], tokens: list[str], lexicon: lexicon_lib.Lexicon) -> list[Reading]:
    """Reads the mentions of one clause, in text order."""
    groups, shares = groups_lib.find(items, tokens, lexicon)
    governed = _forward(items, tokens, lexicon, groups)
    _backward(items, tokens, groups, governed)
    readings: list[Reading] = []
    for k in groups:
        item = items[k]
        if item.kind == "mention":
            cues = governed.get(k, [])
            if any(c.cue is not None and c.cue.category == "ignored" for c in cues):
                continue
            qualifier = _qualifier(items, k)
            for finding, base in item.findings.items():
                readings.append(_decide(item, finding, base, cues, shares.get(k), qualifier))
    return _merge_alternatives(readings, items, shares)


def _decide(
    item: Item, finding: str, base: float, cues: list[Item], share: groups_lib.Share | None, qualifier: float
) -> Reading:
    """Certainty of one finding of a mention under the cues that govern it."""
    negation = [c for c in cues if c.cue is not None and c.cue.category in _NEGATIVE]
    hedges = [c for c in cues if c.cue is not None and c.cue.category not in _NEGATIVE]
    span = (item.i, item.j)
    if negation:
        by = negation[-1]
        assert by.cue is not None
        p = max(by.cue.p, qualifier)
        weak = SIGN if item.weak else QUALIFIED if p >= 0.06 else PLAIN
        if base < 0.1:  # "heart size is not normal"; another negation's list does not reach a statement
            if by.cue.id != "negated:not":
                return Reading(finding, base, "", SIGN, span, (-1, -1))
            p = 0.9
        return Reading(finding, p, by.cue.id, weak, span, (by.i, by.j))
    p, cue_id, where = base, "", (-1, -1)
    cue = None
    if hedges:
        by = min(hedges, key=_p)
        cue = by.cue
        p, cue_id, where = _hedged(base, _p(by)), cue.id if cue else "", (by.i, by.j)
    ceiling = p
    if share is not None and base >= 0.3:
        part, link, _ = share
        shared = part * (0.8 + 0.2 * p) if cue else part * base
        if shared < p:
            p = shared
            if link.cue is not None and (cue is None or cue.p > part):
                cue_id, where = link.cue.id, (link.i, link.j)
    return Reading(finding, round(p, 4), cue_id, SIGN if item.weak else PLAIN, span, where, ceiling)


def _p(item: Item) -> float:
    return item.cue.p if item.cue is not None else 1.0


def _hedged(base: float, p: float) -> float:
    """Certainty of a mention under a hedge of certainty ``p``; ``base`` is what it claims without the hedge."""
    if base == 1.0:
        return p
    if base < 0.3:  # a statement of normality: doubt about it is some belief in the finding
        return max(base, 1 - p) if p < 0.9 else base
    return base * (0.5 + 0.5 * p)  # doubt about a sign of the finding


def _qualifier(items: list[Item], k: int) -> float:
    """p that adjectives right before a mention leave under negation ("no large effusion")."""
    p = 0.0
    for other in reversed(items[:k]):
        if other.kind != "qualifier":
            break
        p = max(p, other.qualifier)
    return p


def _forward(
    items: list[Item], tokens: list[str], lexicon: lexicon_lib.Lexicon, groups: dict[int, int]
) -> dict[int, list[Item]]:
    """Cues that act on the mentions after them: mention index -> cues."""

    def runs_on(cues: list[Item]) -> bool:  # "the differential includes A, B, C"
        return cues[-1].cue is not None and cues[-1].cue.scope == "clause"

    governed: dict[int, list[Item]] = {}
    negation: Item | None = None
    suspended = False
    hedges: list[Item] = []  # hedges that wait for, or govern, one group
    group: int | None = None
    for k, item in enumerate(items):
        cue = item.cue if item.kind == "cue" else None
        if cue is not None and _acts_forward(items, k, tokens):
            broken = k > 0 and items[k - 1].kind in ("comma", "and") and items[k - 1].j == item.i
            if cue.category in _NEGATIVE and cue.scope == "clause":
                negation, suspended, hedges, group = item, False, [], None
            elif negation is not None and not suspended and not broken:
                continue  # "no opacity to suggest pneumonia"
            else:
                negation = None
                if group is not None:
                    hedges, group = [], None
                hedges = [*hedges, item]
        elif item.kind == "stop":
            suspended, hedges, group = True, [], None
        elif item.kind == "done":
            # "no effusion seen, nodule in ..." closes the negation; "seen or" does not
            suspended = suspended or (k + 1 < len(items) and items[k + 1].kind in ("comma", "and"))
        elif item.kind in ("comma", "and"):
            fresh = item.j < len(tokens) and tokens[item.j] in lexicon.fresh
            if fresh and not _list_goes_on(items, k):
                negation = None
            if item.kind == "comma" and group is None and hedges and hedges[-1].j != item.i and not runs_on(hedges):
                hedges = []
        elif item.kind in HEADS:
            resumed = suspended and k > 0 and items[k - 1].kind == "or"
            if negation is not None and (not suspended or resumed):
                governed.setdefault(k, []).append(negation)
            if hedges and (group is None or groups[k] == group or runs_on(hedges)):
                group = groups[k]
                governed.setdefault(k, []).extend(hedges)
    return governed


def _acts_forward(items: list[Item], k: int, tokens: list[str]) -> bool:
    """Whether a cue governs what follows it; its table entry says so, but hedges also turn around.

    "is likely" stands after its finding, yet looks ahead in "this is likely atelectasis"; "suspected" stands before
    it, yet looks back in "tiny effusion suspected".
    """
    cue, item = items[k].cue, items[k]
    assert cue is not None
    forward = cue.direction == "forward"
    if cue.category in ("negated", "ignored"):
        return forward
    following = next((other for other in items[k + 1 :] if other.kind not in ("qualifier", "subject")), None)
    if cue.category == "resolved" and not forward:  # "resolved effusion" against "effusion has resolved"
        bare = not any(other.kind in HEADS for other in items[:k])
        return bare and following is not None and following.kind in HEADS and following.i - item.j <= 3
    if not forward:
        return following is not None and following.kind in HEADS and following.i - item.j <= 5
    closed = item.j == len(tokens) or tokens[item.j] in _CLOSERS
    before = items[k - 1] if k else None
    touches = before is not None and before.kind in HEADS and item.i - before.j <= 1
    return not (closed and touches and cue.category != "definite")


def _list_goes_on(items: list[Item], k: int) -> bool:
    """Whether the list after a comma is closed by "or": then "moderate" in it opens no new statement."""
    for item in items[k + 1 :]:
        if item.kind == "or":
            return True
        if item.kind == "stop" or (item.kind == "cue"):
            return False
    return False


def _backward(items: list[Item], tokens: list[str], groups: dict[int, int], governed: dict[int, list[Item]]) -> None:
    """Cues that act on the nearest group before them; they override what stood before the mention."""
    for k, item in enumerate(items):
        if item.kind != "cue" or _acts_forward(items, k, tokens):
            continue
        group: int | None = None
        for h in range(k - 1, -1, -1):
            other = items[h]
            if other.kind in ("stop", "subject") and group is None:
                break
            if other.kind in HEADS:
                if group is None:
                    group = groups[h]
                if groups[h] != group:
                    break
                if not other.statement:
                    governed[h] = [item, *(c for c in governed.get(h, []) if _is_hedge(c) and _is_hedge(item))]


def _is_hedge(item: Item) -> bool:
    return item.cue is not None and item.cue.category not in _NEGATIVE and item.cue.category != "ignored"


def _merge_alternatives(
    readings: list[Reading], items: list[Item], shares: dict[int, groups_lib.Share]
) -> list[Reading]:
    """Adds up alternatives that name one finding twice: "nodule or granuloma" is a lung lesion either way."""
    span_set = {(items[k].i, items[k].j): share for k, share in shares.items()}
    seen: dict[tuple[str, int], Reading] = {}
    result: list[Reading] = []
    for reading in readings:
        share = span_set.get(reading.tokens)
        key = (reading.finding, share[2]) if share is not None else None
        if key is not None and key in seen and reading.p > 0.1:
            first = seen[key]
            first.p = round(min(first.ceiling, reading.ceiling, first.p + reading.p), 4)
            continue
        if key is not None:
            seen[key] = reading
        result.append(reading)
    return result
