"""Ways in which English says how probable something is: what the RGN learns of wording that the lexicon does not hold.

The lexicon holds what radiologists are known to write, for a rule engine that must not be wrong. ``expressions.csv``
is broader and judged by eye: about a thousand expressions of general English, each with the probability that a reader
would take from it, written from common knowledge without sight of the phantom's phrases. Nothing is read off reports
by it; it only teaches.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

from repgls_jax.reports import lexicon

PATH = lexicon.HERE / "expressions.csv"
SLOT = "{x}"
# Words that carry no certainty of their own.
_EMPTY = frozenset(
    {
        *("a", "an", "the", "this", "that", "these", "those", "there", "it", "its", "i", "we", "one", "you"),
        *("is", "are", "was", "be", "been", "being", "am", "do", "does", "did", "has", "have", "had"),
        *("to", "of", "for", "in", "on", "at", "with", "as", "by", "from", "about", "into", "and", "or", "if", "so"),
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """One expression.

    Attributes:
      text: lower case, with the finding's place as :data:`SLOT`.
      p: probability of presence that it gives the finding, in (0, 1).
    """

    text: str
    p: float

    @property
    def words(self) -> list[str]:
        """Its words, without the finding."""
        return self.text.replace(SLOT, " ").replace(",", " ").split()


def load(path: pathlib.Path = PATH) -> tuple[Expression, ...]:
    """The expressions of a file with the columns "expression" and "p".

    Raises:
      ValueError: a row has not exactly one place for the finding, no probability in (0, 1), or stands there twice.
    """
    made: dict[str, Expression] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            text, p = row.get("expression") or "", row.get("p") or ""
            try:
                value = float(p)
            except ValueError:
                value = float("nan")
            if text.count(SLOT) != 1 or text in made or not 0 < value < 1:
                raise ValueError(
                    f"{path.name}, line {number}: {text!r} with p {p!r}; expected one that stands there once, "
                    f"with one {SLOT}, and a probability between 0 and 1"
                )
            made[text] = Expression(text, value)
    return tuple(made.values())


def content(words: Iterable[str], forms: Mapping[str, str]) -> frozenset[str]:
    """The words that carry certainty, each in its basic form; all of them where none does."""
    known = [forms.get(word, word) for word in words]
    return frozenset(word for word in known if word not in _EMPTY) or frozenset(known)


def without(
    expressions: Iterable[Expression], held_out: Iterable[Iterable[str]], forms: Mapping[str, str]
) -> tuple[Expression, ...]:
    """The expressions that do not hold all content words of any of the wordings ``held_out``, each given as words."""
    banned = {content(words, forms) for words in held_out}
    kept = []
    for one in expressions:
        own = {forms.get(word, word) for word in one.words}
        if not any(words <= own for words in banned):
            kept.append(one)
    return tuple(kept)
