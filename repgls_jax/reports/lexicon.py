"""The data behind the rule engine: cues, finding vocabularies and grammar, loaded, checked and compiled.

``lexicon.csv`` holds the certainty cues, ``findings.json`` the names of each finding, ``grammar.json`` the words
that shape a cue's reach. All three are data: a site can bring its own files.
"""

import csv
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from repgls_jax import findings as findings_lib
from repgls_jax.reports import patterns

HERE = pathlib.Path(__file__).parent

CATEGORIES = (
    "definite",
    "probable",
    "suggestive",
    "possible",
    "cannot-exclude",
    "unlikely",
    "negated",
    "resolved",
    "resolving",
    "technical-doubt",
    "borderline",
    "differential",
    "ignored",
)
DIRECTIONS = ("forward", "backward", "comparison")
SCOPES = ("clause", "phrase", "noun", "measure")
# Words from this length on are also known by their slips; shorter ones would turn into other words.
_LONG = 8
COLUMNS = ("id", "cue", "category", "p", "p_low", "p_high", "direction", "scope", "source", "notes")


@dataclasses.dataclass(frozen=True, slots=True)
class Cue:
    """One certainty cue.

    Attributes:
      id: stable name, "category:words".
      cue: its pattern (see :mod:`repgls_jax.reports.patterns`).
      category: one of :data:`CATEGORIES`.
      p: probability of presence that it gives a finding in its reach; nan for "ignored".
      p_low, p_high: range that readers are known or judged to span.
      direction: "forward" (acts on what follows), "backward" (on what stands before) or "comparison" ("more likely
        than": what stands before gets p, what follows 1 - p).
      scope: "clause" (runs through lists until something breaks it), "phrase" (one coordinated group), or the two
        parts of "suspicion for pneumonia is low": "noun" (a phrase whose strength may be stated behind the finding) and
        "measure" (that statement, which counts only there).
      source, notes: where p comes from; remarks.
    """

    id: str
    cue: str
    category: str
    p: float
    p_low: float
    p_high: float
    direction: str
    scope: str
    source: str
    notes: str


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """What a token pattern stands for; every field but one is usually empty.

    Attributes:
      cue: a certainty cue.
      findings: what a mention speaks of: canonical name -> p, less than 1 where it is only a sign of the finding.
      role: grammar role ("break", "stop", "and", "or", "and_or", "comma", "continue", "done", "echo", "over", "pseudo",
        "alternative", "qualifier", "subject", "predicate"), or "".
      name: subject or predicate name; "nothing" for an alternative that is no finding at all ("nipple shadow").
      qualifier: p that a negated mention keeps under this adjective ("no large ..."), 0 if none.
    """

    cue: Cue | None = None
    findings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    role: str = ""
    name: str = ""
    qualifier: float = 0.0


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """Everything the engine needs, compiled.

    Attributes:
      cues: id -> cue; a comparison has two, one for each side.
      trie: one trie over all patterns, holding :class:`Term`.
      forms: token -> the form used in patterns.
      fresh: tokens that open a new statement after a comma.
      statements: (subject, predicate) -> {finding: p}.
      digest: hash of the three files; part of the evidence's version.
    """

    cues: Mapping[str, Cue]
    trie: patterns.Trie
    forms: Mapping[str, str]
    fresh: frozenset[str]
    statements: Mapping[tuple[str, str], Mapping[str, float]]
    digest: str


def read_cues(text: str, where: str) -> list[Cue]:
    """Parses and checks a cue table.

    Raises:
      ValueError: a column is missing, or cues are malformed; the message lists every fault with its line.
    """
    rows = csv.DictReader(io.StringIO(text))
    missing = [c for c in COLUMNS if c not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(f"{where} lacks the columns {missing}; expected {', '.join(COLUMNS)}")
    cues: list[Cue] = []
    faults: list[str] = []
    seen: set[str] = set()
    for line, row in enumerate(rows, 2):
        ignored = row["category"] == "ignored"
        try:
            numbers = [float("nan") if ignored else float(row[k]) for k in ("p", "p_low", "p_high")]
            patterns.expand(row["cue"])
        except ValueError as error:
            faults.append(f"line {line}: {error}")
            continue
        p, low, high = numbers
        if not ignored and not 0 <= low <= p <= high <= 1:
            faults.append(f"line {line}: p {p} with range [{low}, {high}]; expected 0 <= p_low <= p <= p_high <= 1")
        for column, allowed in (("category", CATEGORIES), ("direction", DIRECTIONS), ("scope", SCOPES)):
            if row[column] not in allowed:
                faults.append(f"line {line}: {column} {row[column]!r}; expected one of {', '.join(allowed)}")
        for key in (row["id"], row["cue"]):
            if key in seen or not key:
                faults.append(f"line {line}: {key!r} is empty or stands twice")
            seen.add(key)
        cues.append(Cue(row["id"], row["cue"], row["category"], p, low, high, *(row[k] for k in COLUMNS[6:])))
    if faults:
        raise ValueError(f"{where} has {len(faults)} faults; correct them:\n" + "\n".join(faults))
    return cues


def other_side(cue: Cue) -> Cue:
    """What a comparison says of the finding after it: a cue of its own, so that a site can calibrate either side."""
    p, low, high = (round(1 - value, 4) for value in (cue.p, cue.p_high, cue.p_low))
    category = "unlikely" if p < 0.5 else "probable"
    name = f"{category}:{cue.id.partition(':')[2]}-after"
    words = f"{cue.cue} (what follows)"
    return dataclasses.replace(
        cue, id=name, cue=words, category=category, p=p, p_low=low, p_high=high, direction="forward", scope="comparison"
    )


def load(folder: pathlib.Path = HERE) -> Lexicon:
    """Loads ``lexicon.csv``, ``findings.json`` and ``grammar.json`` of a folder (default: the package's own).

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is malformed; the message says where.
    """
    texts = {n: (folder / n).read_text("utf-8") for n in ("lexicon.csv", "findings.json", "grammar.json")}
    cues = read_cues(texts["lexicon.csv"], "lexicon.csv")
    vocabulary = json.loads(texts["findings.json"])
    grammar = json.loads(texts["grammar.json"])
    known = set(findings_lib.UNION.findings) - {findings_lib.NO_FINDING}
    if set(vocabulary["findings"]) != known:
        wrong = sorted(set(vocabulary["findings"]) ^ known)
        raise ValueError(f"findings.json and the union vocabulary differ in {wrong}; every finding needs an entry")
    forms = {form: token for token, others in vocabulary["forms"].items() for form in others}
    slips = {slip: token for token, others in vocabulary["forms"].items() for slip in _slips((token, *others))}
    others = [other_side(c) for c in cues if c.direction == "comparison"]
    terms: dict[tuple[str, ...], Term] = {}
    _add_grammar(terms, grammar, forms)
    _add_cues(terms, cues, forms)
    _add_mentions(terms, vocabulary["findings"], forms)
    trie: patterns.Trie = {}
    for row, term in terms.items():
        patterns.insert(trie, row, term)
    known_tokens = {token for row in terms for token in row}
    forms = {**{slip: token for slip, token in slips.items() if slip not in known_tokens}, **forms}
    statements = {tuple(k.rsplit(" ", 1)): v for k, v in grammar["statements"].items()}
    # The rules are code: evidence of other code is other evidence.
    code = [file.read_text("utf-8") for file in sorted(HERE.glob("*.py"))]
    digest = hashlib.sha256("\0".join([*texts.values(), *code]).encode()).hexdigest()[:12]
    return Lexicon(
        {c.id: c for c in [*cues, *others]}, trie, forms, frozenset(grammar["fresh_start"]), statements, digest
    )


def vocabulary_texts(folder: pathlib.Path = HERE) -> dict[str, dict[str, Any]]:
    """Finding -> its names as written in ``findings.json``: patterns under "names", "weak" and "not"."""
    return dict(json.loads((folder / "findings.json").read_text("utf-8"))["findings"])


def _slips(words: Iterable[str]) -> Iterator[str]:
    """Long words as they are mistyped: a letter left out, doubled, or in its neighbour's place."""
    for word in words:
        for i in range(1, len(word) if len(word) >= _LONG and word.isalpha() else 0):
            yield word[:i] + word[i + 1 :]
            yield word[: i + 1] + word[i:]
            yield word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]


def _rows(pattern: str, forms: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [tuple(forms.get(token, token) for token in row) for row in patterns.expand(pattern)]


def _add(terms: dict[tuple[str, ...], Term], row: tuple[str, ...], **fields: Any) -> None:
    """Adds fields to the term of a row: one phrase may be a cue and a predicate ("borderline")."""
    terms[row] = dataclasses.replace(terms.get(row, Term()), **fields)


def _add_grammar(terms: dict[tuple[str, ...], Term], grammar: dict[str, Any], forms: Mapping[str, str]) -> None:
    roles = {
        "pseudo": "pseudo",
        "alternatives": "alternative",
        "continue": "continue",
        "scope_breaks": "stop",
        "clause_breaks": "break",
        "and": "and",
        "or": "or",
        "and_or": "and_or",
        "comma": "comma",
        "done": "done",
        "echo": "echo",
        "over": "over",
    }
    for key, role in roles.items():
        for pattern in grammar[key]:
            for row in _rows(pattern, forms):
                _add(terms, row, role=role)
    for pattern in grammar["nothing"]:
        for row in _rows(pattern, forms):
            _add(terms, row, role="alternative", name="nothing")
    for key, role in (("subjects", "subject"), ("predicates", "predicate")):
        for name, members in grammar[key].items():
            for row in (row for pattern in members for row in _rows(pattern, forms)):
                _add(terms, row, role=role, name=name)
    for pattern, p in grammar["qualifiers"].items():
        for row in _rows(pattern, forms):
            _add(terms, row, qualifier=p)


def _add_cues(terms: dict[tuple[str, ...], Term], cues: list[Cue], forms: Mapping[str, str]) -> None:
    for cue in cues:
        term = Term(cue=cue)
        for row in _rows(cue.cue, forms):
            terms[row] = dataclasses.replace(terms[row], cue=cue) if row in terms else term


def _add_mentions(terms: dict[tuple[str, ...], Term], vocabulary: dict[str, Any], forms: Mapping[str, str]) -> None:
    """Adds the findings' phrases; a phrase also speaks of the findings named by the phrases inside it."""
    named: dict[tuple[str, ...], dict[str, float]] = {}
    barred: dict[tuple[str, ...], set[str]] = {}
    for finding, entry in vocabulary.items():
        for pattern in entry["names"]:
            for row in _rows(pattern, forms):
                named.setdefault(row, {})[finding] = 1.0
        for pattern, p in entry["weak"].items():
            for row in _rows(pattern, forms):
                named.setdefault(row, {})[finding] = float(p)
        for pattern in entry["not"]:
            for row in _rows(pattern, forms):
                barred.setdefault(row, set()).add(finding)
    for row in {**named, **barred}:
        inside: dict[str, float] = {}
        for i in range(len(row)):
            for j in range(i + 1, len(row) + 1):
                part = named.get(row[i:j], {})
                stop = barred.get(row[i:j], set())
                inside.update({f: p for f, p in part.items() if f not in stop})
        inside.update(named.get(row, {}))
        found = {f: p for f, p in inside.items() if f not in barred.get(row, set())}
        if found:
            _add(terms, row, findings=found, role="")
        else:
            _add(terms, row, findings={}, role=terms.get(row, Term()).role or "pseudo")
