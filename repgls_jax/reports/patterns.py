"""Token patterns, and the trie that finds all of them in one pass over a sentence.

A pattern is a row of slots: ``cannot|can't be [entirely|completely] excluded``. ``a|b`` is a choice, ``[...]`` may be
left out. Patterns are expanded to plain token rows and put into one trie; a sentence is read left to right and the
longest row that fits wins, so a longer phrase that does not count ("pericardial effusion") shields its words.
Matching time is linear in the sentence (rows are at most :data:`MAX_TOKENS` long): there is no backtracking.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_TOKENS = 12
MAX_ROWS = 2000

# Words (with an inner apostrophe), numbers, blanks of de-identification, and the punctuation that carries meaning.
# Hyphens vanish ("ground-glass" is "ground glass") but for a dash between spaces, which reads as a comma.
TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+(?:\.\d+)?|___+|\+/-|[,;:/?()&]|(?<=\s)(?:--?|\u2013|\u2014)(?=\s)")
_DASHES = frozenset(("-", "--", "\u2013", "\u2014"))
_SLOT = re.compile(r"\[([^\]]*)\]|(\S+)")

END = ""  # key of a trie node that holds what ends there; no token is empty

Hit = tuple[Any, int, int]  # (what the pattern stands for, first token, one past the last token)
Trie = dict[str, Any]


def expand(pattern: str) -> list[tuple[str, ...]]:
    """All token rows of a pattern.

    Raises:
      ValueError: the pattern is empty, stands for more than MAX_ROWS rows, or for a row longer than MAX_TOKENS.
    """
    slots: list[list[tuple[str, ...]]] = []
    for optional, choice in _SLOT.findall(pattern):
        options = [tuple(TOKEN.findall(option)) for option in (optional or choice).split("|")]
        slots.append(([()] if optional else []) + options)
    count = 1
    for slot in slots:
        count *= len(slot)
    if count > MAX_ROWS:
        raise ValueError(f"pattern {pattern!r} stands for {count} rows; expected at most {MAX_ROWS}: split it")
    rows = list(dict.fromkeys(tuple(itertools.chain(*row)) for row in itertools.product(*slots)))
    rows = [row for row in rows if row]
    if not rows or max(map(len, rows)) > MAX_TOKENS:
        raise ValueError(f"pattern {pattern!r} is empty or longer than {MAX_TOKENS} tokens")
    return rows


def insert(trie: Trie, row: Iterable[str], value: Any) -> None:
    """Puts a row into the trie; a value already there is replaced."""
    node = trie
    for token in row:
        node = node.setdefault(token, {})
    node[END] = value


def tokenise(text: str, forms: Mapping[str, str]) -> tuple[list[str], list[int], list[int]]:
    """Tokens of a sentence, lower-cased and in the form that patterns use, with their character offsets."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few letters change length; offsets must not shift
        lowered = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    if "\u2019" in lowered:
        lowered = lowered.replace("\u2019", "'")
    matches = list(TOKEN.finditer(lowered))
    words = [match.group() for match in matches]
    tokens = ["," if word in _DASHES else forms.get(word, word) for word in words]
    return tokens, [match.start() for match in matches], [match.end() for match in matches]


def find(trie: Trie, tokens: list[str]) -> list[Hit]:
    """Leftmost-longest matches, which do not overlap."""
    hits: list[Hit] = []
    i, n = 0, len(tokens)
    while i < n:
        node = trie.get(tokens[i])
        if node is None:
            i += 1
            continue
        value, stop = node.get(END), i + 1
        j = i + 1
        while j < n:
            node = node.get(tokens[j])
            if node is None:
                break
            j += 1
            found = node.get(END)
            if found is not None:
                value, stop = found, j
        if value is None:
            i += 1
        else:
            hits.append((value, i, stop))
            i = stop
    return hits
