"""Coordinated groups of mentions ("atelectasis and effusion") and alternatives that share their probability.

Heads are the mentions of a clause and the nouns that can be an alternative to one ("scarring", "artifact").
"""

import itertools
from collections.abc import Sequence

from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports.mentions import HEADS, Item

# p of each of n alternatives (convention: about .5 each of two); "and/or" leaves more to each.
_SHARE = {1: 0.5, 2: 0.5, 3: 0.38}
_SHARE_MANY = 0.3
_SHARE_AND_OR = 0.55
# A cause named after one of these is no alternative to it: "opacity, atelectasis or pneumonia".
_SIGNS = frozenset(("Lung Opacity",))
# Nor does a list of findings turn these into alternatives: "cardiomegaly, effusion or pleural thickening".
_APART = frozenset(("Cardiomegaly", "Enlarged Cardiomediastinum", "Fracture", "Support Devices"))

# Doubts that stand behind a list without "and": "mass, effusion, nodule cannot be excluded".
_DOUBTS = ("cannot-exclude", "possible")

_JOINTS = ("and", "or", "and_or", "comma")
_TRANSPARENT = (*_JOINTS, "qualifier", "continue", "done", "subject")
_ALTERNATIVE = ("or", "comma or", "and_or")
_REACH = 9  # tokens between two heads of a group

Link = tuple[str, Item | None]  # how two heads are joined, and the joining word; "" if they are not
Share = tuple[float, Item, int]  # share of an alternative, the joining word, number of the set of alternatives


def find(
    items: Sequence[Item], tokens: Sequence[str], lexicon: lexicon_lib.Lexicon
) -> tuple[dict[int, int], dict[int, Share]]:
    """Groups and alternatives of a clause.

    Returns:
      head -> number of its group, and head -> share for the heads that are alternatives; heads are indices of items.
    """
    heads = [k for k, item in enumerate(items) if item.kind in HEADS]
    shares: dict[int, Share] = {}
    if len(heads) == 1:
        _lone(items, heads, tokens, shares)
        return {heads[0]: 0}, shares
    links = [_link(items, a, b, tokens, lexicon) for a, b in itertools.pairwise(heads)]
    open_lists = _open_lists(items, heads, links)
    _open_commas(items, heads, links, open_lists)
    groups: dict[int, int] = {}
    number = 0
    for n, k in enumerate(heads):
        number += n > 0 and not links[n - 1][0]
        groups[k] = number
    _joined(items, heads, links, open_lists, shares)
    _lone(items, heads, tokens, shares)
    return groups, shares


def _link(items: Sequence[Item], left: int, right: int, tokens: Sequence[str], lexicon: lexicon_lib.Lexicon) -> Link:
    """How two neighbouring heads are joined: "", "and", "or", "and_or", "comma", "comma and", "comma or"."""
    if items[left].statement or items[right].statement or items[right].i - items[left].j > _REACH:
        return "", None
    joints: list[Item] = []
    for item in items[left + 1 : right]:
        firm = item.kind == "cue" and item.cue is not None and item.cue.category == "definite"
        if item.kind not in _TRANSPARENT and not firm:
            return "", None
        if item.kind in _JOINTS:
            joints.append(item)
    if not joints:  # words side by side name one thing, or lack their comma
        return ("and", items[left]) if items[left].j == items[right].i else ("", None)
    comma = "comma " if joints[0].kind == "comma" else ""
    last = joints[-1]
    if last.kind == "and_or":
        return last.kind, last
    if last.kind == "or":
        return comma + last.kind, last
    if last.j < len(tokens) and tokens[last.j] in lexicon.fresh:
        return "", None
    return (comma + last.kind if last.kind == "and" else last.kind), last


def _open_lists(items: Sequence[Item], heads: list[int], links: list[Link]) -> dict[int, Item]:
    """Lists that end in something unknown ("atelectasis, or underlying chronic change"): number of head -> "or"."""
    found: dict[int, Item] = {}
    for n, k in enumerate(heads):
        if n < len(links) and links[n][0]:
            continue
        rest = [item for item in items[k + 1 : k + 4] if item.kind != "comma"]
        if not rest or rest[0].kind not in ("or", "and_or") or rest[0].i - items[k].j > 2:
            continue
        if len(rest) == 1 or rest[1].kind not in (*HEADS, "cue") or rest[1].i - rest[0].j > 3:
            found[n] = rest[0]
    return found


def _open_commas(items: Sequence[Item], heads: list[int], links: list[Link], open_lists: dict[int, Item]) -> None:
    """Cuts at commas outside lists: a comma alone joins nothing unless "and", "or" or a doubt closes its list later."""
    closed = False
    for n in range(len(links) - 1, -1, -1):
        kind = links[n][0]
        closed = closed or n + 1 in open_lists or _doubted(items, heads, links, n)
        if kind == "comma":
            if not closed:
                links[n] = ("", None)
        else:
            closed = bool(kind)


def _doubted(items: Sequence[Item], heads: list[int], links: list[Link], n: int) -> bool:
    """Whether a list of three or more ends after link ``n`` in a doubt: "mass, effusion, nodule cannot be excluded"."""
    if n < 1 or links[n][0] != "comma" or links[n - 1][0] != "comma" or heads[n + 1] + 1 == len(items):
        return False
    last, after = items[heads[n + 1]], items[heads[n + 1] + 1]
    doubt = after.cue is not None and after.cue.direction == "backward" and after.cue.category in _DOUBTS
    return doubt and after.kind == "cue" and after.i - last.j <= 1


def _joined(
    items: Sequence[Item],
    heads: list[int],
    links: list[Link],
    open_lists: dict[int, Item],
    shares: dict[int, Share],
) -> None:
    """Shares of heads joined by "or", "versus", "and/or", with the list before them."""
    n = 0
    while n < len(links):
        end = n
        while end < len(links) and links[end][0] in ("comma", *_ALTERNATIVE):
            end += 1
        first = n
        if end > n and links[n][0] == "comma" and _is_sign(items[heads[n]]):
            first += 1
        while first < end and links[first][0] == "comma" and _is_apart(items[heads[first]]):
            first += 1
        joints = [link for link in links[first:end] if link[0] in _ALTERNATIVE]
        if end > first and end in open_lists:
            joints.append(("or", open_lists[end]))
        if joints:
            loose = any(kind == "and_or" for kind, _ in joints)
            share = _SHARE_AND_OR if loose else _SHARE.get(end - first + 1 + (end in open_lists), _SHARE_MANY)
            word = joints[-1][1]
            assert word is not None
            shares.update(dict.fromkeys(heads[first : end + 1], (share, word, first)))
        n = end + 1


def _is_sign(item: Item) -> bool:
    return item.kind == "mention" and len(item.findings) == 1 and not _SIGNS.isdisjoint(item.findings)


def _is_apart(item: Item) -> bool:
    return item.kind == "mention" and not _APART.isdisjoint(item.findings)


def _lone(items: Sequence[Item], heads: list[int], tokens: Sequence[str], shares: dict[int, Share]) -> None:
    """Alternatives whose other half is not in the vocabulary ("nodule versus vessel on end")."""
    known = set(heads)
    for k, item in enumerate(items):
        if item.kind not in ("or", "and_or"):
            continue
        before = k - 2 if items[k - 1].kind == "comma" and tokens[item.i - 1] == "," else k - 1
        left = items[before] if before in known else None
        right = items[k + 1] if k + 1 in known and items[k + 1].i - item.j <= 3 else None
        # An "or" must touch its mention; "versus" may stand behind a few words of place.
        gap = 4 if tokens[item.i] == "versus" and before == k - 1 else 1
        share = _SHARE_AND_OR if item.kind == "and_or" else _SHARE[2]
        after = next((other for other in items[k + 1 : k + 3] if other.kind != "comma"), None)
        if after is not None and after.cue is not None and after.kind == "cue" and after.i - item.j <= 2:
            share = 1 - after.cue.p  # "atelectasis or, less likely, pneumonia"
        if left is not None and right is None and item.i - left.j <= gap and share > 0:
            shares.setdefault(before, (share, item, -1 - k))
        elif right is not None and k < heads[0] and tokens[item.i] == "versus":
            shares.setdefault(k + 1, (share, item, -1 - k))
