"""From matched phrases to the items of a clause: mentions, cues, links between them, and statements.

A *statement* is a subject with a predicate ("heart size is within normal limits", "normal heart size"); it becomes a
mention of the findings that the pair speaks of, with p 0 where the wording is normal.
"""

import dataclasses
from collections.abc import Sequence

from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import patterns

# How far, in tokens, a predicate may stand from its subject.
_AFTER, _BEFORE = 8, 3
# Kinds that stand for a thing: what a cue governs and what "or" joins.
HEADS = ("mention", "alternative")
# Subjects that mostly say where a finding is, and words that make a place of any subject.
_PLACES = frozenset(("lungs", "one lung", "pleura"))
_PREPOSITIONS = frozenset(("in", "of", "at", "over", "within", "on", "to", "overlying", "behind", "near", "along"))
# Words between "but" and a doubt about what stands before it: "but a tiny one cannot be excluded".
_RESUMING = frozenset(
    (
        "a", "an", "the", "one", "ones", "it", "its", "this", "that", "these", "they", "presence", "tiny", "small",
        "very", "trace", "subtle", "early", "minimal", "also", "still", "underlying", "superimposed", "is", "are",
        "was", "were", ",",
    )
)  # fmt: skip
# Words after which a subject that waits for its predicate is given up.
_DROP_SUBJECT = frozenset(("with", "there", "since", "following", "adjacent", "overlying", "causing"))


@dataclasses.dataclass(slots=True)
class Item:
    """One item of a clause.

    Attributes:
      kind: "mention", "alternative", "cue", "stop", "and", "or", "and_or", "comma", "qualifier", "continue", "done",
        "echo", "over", "subject" (of a statement of its own: "the heart border is not seen").
      i, j: its tokens, half open.
      cue: of kinds "cue", "or", "and_or", "over".
      findings: finding -> p as asserted (mentions only).
      statement: the mention comes from a subject and a predicate.
      nothing: an alternative that is no finding at all ("nipple shadow").
      qualifier: p left under negation, 0 if the item is no qualifier.
    """

    kind: str
    i: int
    j: int
    cue: lexicon_lib.Cue | None = None
    findings: dict[str, float] = dataclasses.field(default_factory=dict)
    statement: bool = False
    nothing: bool = False
    qualifier: float = 0.0


def clauses(hits: Sequence[patterns.Hit], tokens: list[str], lexicon: lexicon_lib.Lexicon) -> list[list[Item]]:
    """The clauses of a sentence, each as its items in text order; phrases that do not count are dropped."""
    if not any(hit[0].findings or hit[0].role == "predicate" for hit in hits):
        return []  # most of a report's other sentences end here
    result: list[list[Item]] = []
    current: list[patterns.Hit] = []
    for k, hit in enumerate(hits):
        if hit[0].role == "break" and not _goes_on(hits, k, tokens):
            result.append(_clause(current, tokens, lexicon))
            current = []
        elif hit[0].role != "break":
            current.append(hit)
    result.append(_clause(current, tokens, lexicon))
    return [items for items in result if any(item.kind == "mention" for item in items)]


def _goes_on(hits: Sequence[patterns.Hit], k: int, tokens: list[str]) -> bool:
    """Whether what follows a clause break still speaks of the clause before it.

    "Pneumonia is less likely but not excluded"; "pneumonia, while unlikely, is not excluded"; "no effusion, but a tiny
    one cannot be excluded"; "lungs are hyperexpanded but otherwise clear".
    """
    rest = [hit for hit in hits[k + 1 : k + 5] if hit[0].role not in ("break", "stop", "pseudo")]
    if not rest:
        return False
    cue = rest[0][0].cue
    if cue is not None and cue.direction == "backward":
        return _RESUMING.issuperset(tokens[hits[k][2] : rest[0][1]])
    if cue is not None and len(rest) > 1 and rest[1][0].name == "nothing":  # "but this may be due to technique"
        return _RESUMING.issuperset(tokens[hits[k][2] : rest[0][1]])
    if cue is not None and rest[0][1] == hits[k][2]:
        ends = rest[0][2] == len(tokens)  # "possible but less likely"
        if ends or (len(rest) > 1 and rest[1][0].role == "comma" and rest[1][1] == rest[0][2]):
            return True
    own = len(rest) > 1 and rest[1][1] - rest[0][2] <= 2 and "with" not in tokens[rest[0][2] : rest[1][1]]
    own = own and bool(rest[1][0].role == "subject" or rest[1][0].findings)  # "; unchanged left effusion"
    return rest[0][0].role == "predicate" and not own


def _clause(hits: list[patterns.Hit], tokens: list[str], lexicon: lexicon_lib.Lexicon) -> list[Item]:
    bound, used = _bind(hits, tokens, lexicon)
    items: list[Item] = []
    for k, (term, i, j) in enumerate(hits):
        if k in bound:
            items.extend(bound[k])
        if k in used:
            continue
        if term.findings:
            items.append(Item("mention", i, j, findings=dict(term.findings)))
        elif term.role in ("or", "and_or"):
            items.append(Item(term.role, i, j, cue=term.cue))
        elif term.role == "over":
            if _chooses(hits, k):
                items.append(Item("over", i, j, cue=term.cue))
        elif term.cue is not None and term.cue.scope == "measure" and not _measured(hits[:k]):
            items.append(Item("stop", i, j))  # "volumes are low"
        elif term.cue is not None:
            items.extend(Item("cue", i, j, cue=cue) for cue in _sides(term.cue))
        elif term.role == "alternative" and k + 1 < len(hits) and hits[k + 1][0].findings and hits[k + 1][1] == j:
            continue  # "aspiration pneumonia" is one thing
        elif term.role in ("stop", "continue") and tokens[j - 1] == "with" and _compound(hits, k):
            items.append(Item("and", i, j))
        elif term.role in ("stop", "and", "comma", "alternative", "continue", "done", "echo"):
            items.append(Item(term.role, i, j, nothing=term.name == "nothing"))
        elif term.role == "subject" and term.name not in _PLACES and not _located(tokens, i):
            items.append(Item("subject", i, j))
        elif term.qualifier:
            items.append(Item("qualifier", i, j, qualifier=term.qualifier))
    return items


def _sides(cue: lexicon_lib.Cue) -> list[lexicon_lib.Cue]:
    """A cue as it is, or, if it compares, what it says of the finding before it and of the one after it."""
    if cue.direction != "comparison":
        return [cue]
    return [dataclasses.replace(cue, direction="backward", scope="comparison"), lexicon_lib.other_side(cue)]


def _measured(hits: list[patterns.Hit]) -> bool:
    """Whether something with a strength is spoken of: "suspicion for pneumonia"."""
    return any(hit[0].cue is not None and hit[0].cue.scope == "noun" for hit in hits)


def _chooses(hits: list[patterns.Hit], k: int) -> bool:
    """Whether "over" stands between two things ("favor atelectasis over pneumonia") and not before a place."""
    if not 0 < k < len(hits) - 1:
        return False
    things = [hit[0].findings or hit[0].role == "alternative" for hit in (hits[k - 1], hits[k + 1])]
    return all(things) and hits[k + 1][1] - hits[k][2] <= 1


def _compound(hits: list[patterns.Hit], k: int) -> bool:
    """Whether "with" makes one diagnosis of two findings: "likely effusion with atelectasis".

    "May be infection here associated with a consolidation" leaves room for a word or two.
    """
    if not 0 < k < len(hits) - 1:
        return False
    (left, _, end), (term, i, j), (right, start, _) = hits[k - 1 : k + 2]
    room = 2 if term.role == "continue" else 0
    hedged = any(hit[0].cue is not None and hit[0].cue.category not in ("negated", "resolved") for hit in hits[:k])
    return hedged and bool(left.findings and right.findings) and i - end <= room and start - j <= room


def _located(tokens: list[str], i: int) -> bool:
    """Whether a preposition stands shortly before token ``i``: "opacity in the left hilum"."""
    return any(token in _PREPOSITIONS for token in tokens[max(0, i - 3) : i])


def _bind(
    hits: list[patterns.Hit], tokens: list[str], lexicon: lexicon_lib.Lexicon
) -> tuple[dict[int, list[Item]], set[int]]:
    """Pairs subjects with predicates.

    Returns:
      Mentions by the index of the later hit of their pair, and the indices of predicates that were used up.
    """
    bound: dict[int, list[Item]] = {}
    used: set[int] = set()
    waiting: list[int] = []  # subjects without a predicate yet
    active: int | None = None  # a predicate that stands before its subjects
    reach = 0  # where the active predicate's list has come to
    verb = False

    def pair(subject: int, predicate: int, at: int) -> None:
        used.add(predicate)
        findings = lexicon.statements.get((hits[subject][0].name, hits[predicate][0].name))
        if findings:
            i = min(hits[subject][1], hits[predicate][1])
            j = max(hits[subject][2], hits[predicate][2])
            item = Item("mention", i, j, findings=dict(findings), statement=True)
            bound.setdefault(at, []).append(item)

    for k, (term, i, j) in enumerate(hits):
        if term.role == "subject":
            if active is not None and i - reach <= _BEFORE:
                pair(k, active, k)
                reach = j
                if hits[active][0].name == "stable":
                    waiting.append(k)
            else:
                active = None
                waiting.append(k)
                verb = False
        elif term.role == "predicate":
            following = hits[k + 1] if k + 1 < len(hits) else None
            if following is not None and following[0].findings and following[1] == j:
                continue  # "large effusion": the adjective belongs to the mention
            ahead = following is not None and following[0].role == "subject" and following[1] - j <= 2
            near = bool(waiting) and i - hits[waiting[-1]][2] <= _AFTER
            touches = near and i == hits[waiting[-1]][2]  # "heart size normal lungs are clear"
            if near and (verb or touches or not ahead):
                for subject in waiting:
                    pair(subject, k, k)
                if term.name != "stable":
                    waiting = []
                active = None
            else:
                waiting, active, reach = [], k, j
        elif term.findings:
            waiting, active = [], None
        elif term.role == "stop":
            active = None
            verb = True
            if tokens[i] in _DROP_SUBJECT:
                waiting = []
        elif active is not None and term.role in ("and", "comma"):
            if term.role == "comma" and hits[active][0].name not in ("normal", "clear"):
                active = None
            else:
                reach = j
    return bound, used
