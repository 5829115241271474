"""The reach of cues: which of them govern which mention.

Forward cues ("no", "may represent") act on mentions after them, backward cues ("is possible", "has resolved") on the
nearest group before them. A negation runs through a list; a hedge through one coordinated group; both end at a verb,
at "with", or where a new statement opens.
"""

import dataclasses

from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports.mentions import HEADS, Item

NEGATIVE = ("negated", "resolved")
QUALIFIED = 0.05  # p from which a negation is a weak one: "not definitely seen"
# A hedge behind a negated finding undoes the negation ("no effusion, but a tiny one cannot be excluded") unless its p
# is so high that it is what was negated ("no effusion is suspected"), or so low that it repeats it.
_FIRM, _SLIGHT = 0.6, 0.25
# Tokens after which a hedge that follows a mention cannot reach on.
_CLOSERS = frozenset((",", ";", ")", "on", "in", "at", "given", "by"))
# Words that may follow "is likely" when it speaks of what stands before it; others make it "is likely old".
_AFTER_LIKELY = _CLOSERS | {"but", "and", "or", "though", "although", "however", "because", "as", "with", "present"}
# Words of hedges that take a whole statement: "unclear whether ...", "I doubt that ...".
_ASKING = frozenset(("whether", "if", "that", "doubt", "suspect", "think", "believe", "feel"))
# Words that equate the thing in doubt with a diagnosis: "unclear whether the density is a nodule".
_COPULAS = frozenset(("is", "are", "was", "were", "represents", "represent", "reflects", "reflect", "indicates"))
# Hedges that may end a sentence and speak of what stands before ("atelectasis at the base, probably"): categories and
# last words. Others do not: "a mass at the base, suspicious".
_TRAILING = ("probable", "possible", "unlikely")
_TRAILING_WORDS = frozenset(("suspected", "suggested", "questioned"))
# Words that turn back to what was just denied.
_TURNS = frozenset(("but", "although", "though", "however", "yet"))

Governed = dict[int, list[Item]]  # index of a mention -> the cues that govern it


def govern(items: list[Item], tokens: list[str], lexicon: lexicon_lib.Lexicon, groups: dict[int, int]) -> Governed:
    """Cues by the mention they act on.

    Args:
      items: items of one clause.
      tokens: tokens of the sentence.
      groups: head (index of ``items``) -> number of its coordinated group.
    """
    forward = _Forward(items, tokens, lexicon, groups)
    for k, item in enumerate(items):
        if item.kind == "cue" and acts_forward(items, k, tokens):
            forward.cue(k)
        elif item.kind == "stop":
            forward.stop(k)
        elif item.kind == "done":
            # "no effusion seen, nodule in ..." closes the negation; "seen or" does not
            forward.suspended |= k + 1 < len(items) and items[k + 1].kind in ("comma", "and")
        elif item.kind in ("comma", "and"):
            forward.joint(k)
        elif item.kind in HEADS:
            forward.head(k)
    _backward(items, tokens, groups, forward.governed)
    if "as" in tokens:
        _echoed(items, groups, forward.governed)
    return forward.governed


@dataclasses.dataclass(slots=True)
class _Forward:
    """The pass of forward cues over a clause.

    Attributes:
      negation: the negation at work; suspended between a verb and the "or" that resumes its list.
      hedges: hedges that wait for a group, or govern ``group``.
      rejected: "over" in "favor A over B", and ``loser`` the group of B.
    """

    items: list[Item]
    tokens: list[str]
    lexicon: lexicon_lib.Lexicon
    groups: dict[int, int]
    governed: Governed = dataclasses.field(default_factory=dict)
    negation: Item | None = None
    suspended: bool = False
    hedges: list[Item] = dataclasses.field(default_factory=list)
    group: int | None = None
    rejected: Item | None = None
    loser: int = -1

    def cue(self, k: int) -> None:
        items, item = self.items, self.items[k]
        assert item.cue is not None
        broken = k > 0 and items[k - 1].kind in ("comma", "and") and items[k - 1].j == item.i
        if item.cue.category in NEGATIVE and item.cue.scope == "clause":
            self.negation, self.suspended, self.hedges, self.group = item, False, [], None
            return
        if self.negation is not None and not self.suspended and not broken and self.tokens[item.i] != "known":
            return  # "no opacity to suggest pneumonia", but "no enlargement of the known nodule"
        self.negation = None
        if self.group is not None:
            self.hedges, self.group = [], None
        self.hedges = [*self.hedges, item]

    def stop(self, k: int) -> None:
        self.suspended = True
        word = self.tokens[self.items[k].i]
        touched = self.group is None and self.hedges and self.hedges[-1].j == self.items[k].i  # "there probably is"
        asked = self._asks() and (word in _COPULAS or (word == "there" and self.group is None))
        opened = (
            self.group is None and self.hedges and _opens(self.hedges[0], self.items)
        )  # "in the right setting, this is"
        if not (asked or (touched and word in _COPULAS) or opened):
            self.hedges, self.group = [], None

    def joint(self, k: int) -> None:
        """A comma or "and": may open a new statement, and a comma ends the wait of a hedge."""
        items, item = self.items, self.items[k]
        if self.negation is not None:
            fresh = item.j < len(self.tokens) and self.tokens[item.j] in self.lexicon.fresh
            if (fresh and not _list_goes_on(items, k)) or _stands_alone(items, k, self.tokens):
                self.negation = None
        waits = self.group is None and self.hedges and self.hedges[-1].j != item.i and not self._runs_on()
        aside = k > 1 and items[k - 1].kind == "comma" and items[k - 2].j == items[k - 1].i  # "probable, if small, ..."
        if item.kind == "comma" and waits and not aside and not _list_goes_on(items, k) and items[k - 1].kind != "or":
            self.hedges = []

    def head(self, k: int) -> None:
        items, groups = self.items, self.groups
        resumed = self.suspended and k > 0 and items[k - 1].kind == "or"
        if self.negation is not None and (not self.suspended or resumed):
            self.governed.setdefault(k, []).append(self.negation)
        if not self.hedges:
            return
        if k > 0 and items[k - 1].kind == "over" and any(h.cue and h.cue.category == "probable" for h in self.hedges):
            self.rejected, self.loser = items[k - 1], groups[k]
        if groups[k] == self.loser and self.rejected is not None:
            self.governed.setdefault(k, []).append(self.rejected)
            return
        if self.group is not None and self._asks() and self._equated(k):
            for other in [h for h in self.governed if groups[h] == self.group]:  # the density is there: is it a nodule?
                self.governed[other] = [cue for cue in self.governed[other] if cue not in self.hedges]
            self.group = None
        if self.group is None or groups[k] == self.group or self._runs_on():
            self.group = groups[k]
            self.governed.setdefault(k, []).extend(self.hedges)

    def _runs_on(self) -> bool:
        """Whether the last hedge governs a whole list: "the differential includes A, B, C"."""
        return self.hedges[-1].cue is not None and self.hedges[-1].cue.scope == "clause"

    def _asks(self) -> bool:
        """Whether the last hedge takes a statement: "unclear whether", "I doubt that"."""
        return bool(self.hedges) and not _ASKING.isdisjoint(self.tokens[self.hedges[-1].i : self.hedges[-1].j])

    def _equated(self, k: int) -> bool:
        """Whether a copula stands between head ``k`` and the head before it."""
        before = next((item for item in reversed(self.items[:k]) if item.kind in HEADS), None)
        return before is not None and not _COPULAS.isdisjoint(self.tokens[before.j : self.items[k].i])


def _stands_alone(items: list[Item], k: int, tokens: list[str]) -> bool:
    """Whether what follows a comma is a sentence of its own: "no effusion, pneumothorax is present"."""
    kinds = [item.kind for item in items[max(0, k - 2) : k + 4]]
    return kinds == ["cue", "mention", "comma", "mention", "stop", "done"] and tokens[items[k + 3].i] == "present"


def acts_forward(items: list[Item], k: int, tokens: list[str]) -> bool:
    """Whether a cue governs what follows it; its table entry says so, but hedges also turn around.

    "is likely" stands after its finding, yet looks ahead in "this is likely atelectasis"; "suspected" stands before
    it, yet looks back in "tiny effusion suspected".
    """
    cue, item = items[k].cue, items[k]
    assert cue is not None
    forward = cue.direction == "forward"
    if cue.category == "ignored" or cue.scope == "comparison" or (cue.category == "negated" and item.j - item.i > 1):
        return forward
    if cue.category == "negated" and forward:  # "pneumothorax: no", "consolidation - nil"
        return item.j < len(tokens) or k == 0 or tokens[items[k - 1].i] not in (":", ",")
    if tokens[item.i] == "?" and item.j == len(tokens):  # "consolidation at the left base?"
        return not any(other.kind in HEADS for other in items[:k])
    following = next((other for other in items[k + 1 :] if other.kind not in ("qualifier", "subject")), None)
    if cue.category in NEGATIVE and not forward:  # "resolved effusion" against "effusion has resolved"
        bare = not any(other.kind in HEADS for other in items[:k])
        return bare and following is not None and following.kind in HEADS and following.i - item.j <= 3
    if not forward:
        if item.j < len(tokens) and tokens[item.j] in ("by", "on"):  # "edema is suggested by the densities"
            return False
        opens = k == 0 and following is not None and following.kind == "comma"  # "in the right setting, this may be"
        return opens or (following is not None and following.kind in HEADS and following.i - item.j <= 5)
    closed = item.j == len(tokens) or tokens[item.j] in _CLOSERS
    before = items[k - 1] if k else None
    if k > 1 and tokens[items[k - 1].i] == ":":  # "pneumonia: possible"
        before = items[k - 2]
        named = before.kind in HEADS and before.j == items[k - 1].i
        return not (named and (closed or not any(other.kind in HEADS for other in items[k + 1 :])))
    trailing = cue.category in _TRAILING or tokens[item.j - 1] in _TRAILING_WORDS
    if trailing and item.j == len(tokens):  # "atelectasis at the base, probably"
        return not any(other.kind in HEADS for other in items[:k])
    if k > 1 and tokens[items[k - 1].i] == "," and k + 2 < len(items) and tokens[items[k + 1].i] == ",":
        # "pneumonia, less likely, is not excluded"
        return not (items[k - 2].kind in HEADS and items[k + 2].kind == "cue" and items[k + 1].i == item.j)
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


def _backward(items: list[Item], tokens: list[str], groups: dict[int, int], governed: Governed) -> None:
    """Cues that act on the nearest group before them; they override what stood before the mention."""
    for k, item in enumerate(items):
        if item.kind != "cue" or acts_forward(items, k, tokens):
            continue
        if tokens[item.j - 1] == "likely" and item.j < len(tokens) and tokens[item.j] not in _AFTER_LIKELY:
            continue
        group: int | None = None
        nearest = True
        for h in range(k - 1, -1, -1):
            other = items[h]
            if tokens[other.i] == ":" and h and items[h - 1].kind in HEADS and items[h - 1].j == other.i:
                continue
            turned = other.kind == "stop" and not _TURNS.isdisjoint(tokens[other.j : item.i])
            if other.kind in ("stop", "subject") and group is None and not turned:
                break  # not at "is" in "no effusion is seen, although a tiny one cannot be excluded"
            if other.kind in HEADS:
                if group is None:
                    group = groups[h]
                if groups[h] != group:
                    break
                if not other.statement:
                    governed[h] = _followed(governed.get(h, []), item, nearest)
                nearest = False


def _followed(before: list[Item], item: Item, nearest: bool) -> list[Item]:
    """The cues of a mention, once a backward cue follows it."""
    categories = [c.cue.category for c in before if c.cue is not None]
    assert item.cue is not None
    if "ignored" in categories:
        return before  # "if effusion is suspected"
    if item.cue.scope == "measure":
        return [item] if any(c.cue is not None and c.cue.scope == "noun" for c in before) else before
    hedge = _is_hedge(item)
    negated = not set(NEGATIVE).isdisjoint(categories)
    if hedge and negated and (item.cue.p >= _FIRM or (item.cue.p < _SLIGHT and not nearest)):
        return before
    leaves = item.cue.category == "negated" and item.cue.p >= QUALIFIED  # "possible nodule, not definitely seen"
    return [item, *(c for c in before if _is_hedge(c) and (hedge or leaves))]


def _echoed(items: list[Item], groups: dict[int, int], governed: Governed) -> None:
    """Gives what stands after "as is" the cues of what stands before: "edema is not excluded, as is pneumonia"."""
    for k, item in enumerate(items):
        if item.kind != "echo":
            continue
        before = next((h for h in range(k - 1, -1, -1) if items[h].kind in HEADS), None)
        after = next((h for h in range(k + 1, len(items)) if items[h].kind in HEADS), None)
        if before in governed and after is not None:
            governed.update((h, list(governed[before])) for h in groups if groups[h] == groups[after])


def _opens(hedge: Item, items: list[Item]) -> bool:
    """Whether a hedge stands before all that it speaks of, though it usually follows: "in the right setting, ..."."""
    return hedge is items[0] and hedge.cue is not None and hedge.cue.direction == "backward"


def _is_hedge(item: Item) -> bool:
    return item.cue is not None and item.cue.category not in NEGATIVE and item.cue.category != "ignored"
