"""The certainty of each mention, from the cues that govern it.

A hedge on the cause is no hedge on the sign: in "opacity, likely atelectasis" the cue stands after the opacity and
leaves it asserted. Alternatives share their probability.
"""

import dataclasses

from repgls_jax.reports import groups as groups_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import reach
from repgls_jax.reports.mentions import HEADS, Item

PLAIN, QUALIFIED, SIGN = 0, 1, 2
# Hedges that may explain a shadow away, and the cues that say how far they do, by the least belief in the explanation.
_EXPLAINS = ("definite", "probable", "suggestive", "possible")
_VERDICTS = ((0.9, "unlikely:is-artifact"), (0.65, "unlikely:likely-artifact"), (0.0, "possible:may-be-artifact"))
_PARTLY = frozenset(("part", "partly", "partially"))
# What a blunted angle is a sign of, and the words that give it another cause.
_BLUNTED = "Pleural Effusion"
_CAUSAL = frozenset(("due", "from", "secondary", "related", "because", "by", "attributable"))


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
    governed = reach.govern(items, tokens, lexicon, groups)
    readings: list[Reading] = []
    nothing, blunted = False, None
    for k in groups:
        item = items[k]
        nothing |= item.nothing
        if item.statement and 0 < item.findings.get(_BLUNTED, 0) < 1:
            blunted = k
        if item.kind == "mention":
            cues = governed.get(k, [])
            if cues and any(c.cue is not None and c.cue.category == "ignored" for c in cues):
                continue
            qualifier = _qualifier(items, k)
            for finding, base in item.findings.items():
                readings.append(_decide(item, finding, base, cues, shares.get(k), qualifier))
    if nothing:
        _explain_away(readings, items, tokens, governed, shares, lexicon)
    if blunted is not None:
        _other_cause(readings, items, tokens, governed, shares, blunted)
    return _merge_alternatives(readings, items, shares) if shares else readings


def _decide(
    item: Item, finding: str, base: float, cues: list[Item], share: groups_lib.Share | None, qualifier: float
) -> Reading:
    """Certainty of one finding of a mention under the cues that govern it."""
    negation = [c for c in cues if c.cue is not None and c.cue.category in reach.NEGATIVE]
    hedges = [c for c in cues if c.cue is not None and c.cue.category not in reach.NEGATIVE]
    span = (item.i, item.j)
    sign = SIGN if item.statement or base != 1.0 else PLAIN
    if negation and hedges and negation[-1].cue is not None and negation[-1].cue.p >= reach.QUALIFIED:
        by = min(hedges, key=_p)  # "possible nodule, not definitely seen": both are said
        cue_id = by.cue.id if by.cue is not None else ""
        return Reading(finding, round((_p(by) + _p(negation[-1])) / 2, 4), cue_id, sign, span, (by.i, by.j))
    if negation:
        by = negation[-1]
        assert by.cue is not None
        p = max(by.cue.p, qualifier)
        weak = sign or (QUALIFIED if p >= 0.06 else PLAIN)
        if base < 0.1:  # "heart size is not normal"; another negation's list does not reach a statement
            if by.cue.id != "negated:not":
                return Reading(finding, base, "", SIGN, span, (-1, -1))
            p = 0.9 if len(item.findings) == 1 else 0.5  # "lungs are not clear" leaves open which finding it is
        return Reading(finding, p, by.cue.id, weak, span, (by.i, by.j))
    p, cue_id, where = base, "", (-1, -1)
    cue = None
    if hedges:
        by, belief = _weakest(hedges)
        cue = by.cue
        p, cue_id, where = _hedged(base, belief), cue.id if cue else "", (by.i, by.j)
    ceiling = p
    if share is not None and base >= 0.3:
        part, link, _ = share
        shared = part * (0.8 + 0.2 * p) if cue else part * base
        if shared < p:
            p = shared
            if link.cue is not None and (cue is None or cue.p > part):
                cue_id, where = link.cue.id, (link.i, link.j)
    return Reading(finding, round(p, 4), cue_id, sign, span, where, ceiling)


def _explain_away(
    readings: list[Reading],
    items: list[Item],
    tokens: list[str],
    governed: reach.Governed,
    shares: dict[int, groups_lib.Share],
    lexicon: lexicon_lib.Lexicon,
) -> None:
    """Lowers what is hedged to be nothing: "nodule, likely a nipple shadow" is hardly a nodule."""
    seen: Item | None = None  # what stands before
    verdicts: dict[tuple[int, int], tuple[lexicon_lib.Cue, Item]] = {}
    for k, item in enumerate(items):
        hedges = [c for c in governed.get(k, []) if c.cue is not None and c.cue.category in _EXPLAINS]
        if item.nothing and hedges and k not in shares and seen is not None:
            if not _PARTLY.isdisjoint(tokens[seen.j : item.i]):
                continue  # "enlarged, which may in part be due to technique"
            by = min(hedges, key=_p)
            name = next(name for least, name in _VERDICTS if _p(by) >= least)
            # A heart "enlarged, likely due to technique" is in doubt, no more.
            verdicts[seen.i, seen.j] = lexicon.cues[_VERDICTS[-1][1] if seen.statement else name], by
        if item.kind in HEADS:
            seen = item if item.kind == "mention" else None
    for reading in readings:
        if reading.tokens in verdicts:
            cue, by = verdicts[reading.tokens]
            if reading.p > cue.p:
                reading.p, reading.cue, reading.cue_tokens = cue.p, cue.id, (by.i, by.j)


def _other_cause(
    readings: list[Reading],
    items: list[Item],
    tokens: list[str],
    governed: reach.Governed,
    shares: dict[int, groups_lib.Share],
    blunted: int,
) -> None:
    """Reads a blunted angle whose cause is named: an effusion is the less likely, and a scar there is the pleura's.

    DECISION: an asserted cause leaves the effusion unmentioned; a hedged one of belief b leaves it .15 + .5 (1 - b).
    """
    sign = items[blunted]
    span, named = (sign.i, sign.j), False
    for k in range(blunted + 1, len(items)):
        item = items[k]
        if item.kind not in HEADS:
            continue
        hedges = [c for c in governed.get(k, []) if c.cue is not None and c.cue.category in _EXPLAINS]
        if not hedges and k not in shares and _CAUSAL.isdisjoint(tokens[sign.j : item.i]):
            return
        if item.kind == "alternative" and "scarring" in tokens[item.i : item.j]:
            readings.append(_decide(item, "Pleural Other", 1.0, governed.get(k, []), shares.get(k), 0.0))
        named |= _BLUNTED in item.findings or k in shares  # "effusion or scarring": the effusion is named beside it
        if named:
            continue
        belief = min((_p(c) for c in hedges), default=1.0)
        for reading in [r for r in readings if r.finding == _BLUNTED and r.tokens == span]:
            if belief == 1.0:
                readings.remove(reading)
            else:
                by = min(hedges, key=_p)
                reading.p = round(min(reading.p, 0.15 + 0.5 * (1 - belief)), 4)
                reading.cue, reading.cue_tokens = by.cue.id if by.cue else "", (by.i, by.j)


def _weakest(hedges: list[Item]) -> tuple[Item, float]:
    """The hedge that decides, and its p; "unlikely, but not excluded" lies between the two."""
    by = min(hedges, key=_p)
    if by.cue is not None and by.cue.category == "unlikely":
        for other in hedges:
            if other.cue is not None and other.cue.category == "cannot-exclude":
                return by, (_p(by) + _p(other)) / 2
    return by, _p(by)


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
