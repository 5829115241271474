"""Sentences made from the lexicon's cues and from general English: what the RGN learns besides a data set's reports.

In a data set a few dozen wordings make up most of what is hedged; the lexicon knows hundreds, each with its certainty,
and :mod:`repgls_jax.reports.expressions` what English has besides. Here each is put beside names of findings, among
words that say nothing of certainty. The texts are this project's own. They have the form of reports and evidence, so
that everything that reads those reads them.

In: a lexicon, expressions and a vocabulary. Out: a table of reports and one of evidence.
"""

import functools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.reports import expressions as expressions_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import patterns

LABELLER = "cue-sentences"
FIELD = "report"
_PER_STUDY = 3  # sentences of a made report, each about another finding
_BARE = 0.15  # share of sentences without a cue: plain assertions
_ENGLISH = 0.5  # share of the others that are expressions of general English, where these are given
_LEADS = ("", "", "", "", "again,", "overall,", "on the lateral view,", "at the right base,", "in the left lower lobe,")
# Words that say nothing of certainty; "" leaves them out.
_BEFORE = (
    "", "", "", "there is", "this is", "findings", "findings are", "appearance is", "the pattern is", "this",
    "in the left lower lobe", "opacity at the right base,", "on the lateral view,", "again", "also", "now", "overall",
)  # fmt: skip
_DEGREES = ("", "", "", "small", "mild", "moderate", "large", "focal", "subtle", "new", "acute", "underlying", "trace")
_PLACES = (
    "", "", "", "on the left", "on the right", "in the left lower lobe", "at the right base", "in the right upper lobe",
    "bilaterally", "at the apex", "in the retrocardiac region",
)  # fmt: skip
_AFTER = ("", "", "", "", "since the prior study", "as before", "unchanged", "in this patient", "clinically")
_PLAIN = ("", "is seen", "is noted", "is present", "is identified", "is unchanged", "is stable", "has increased")
_OTHER_FORM = 0.15  # share of words, where they have one, in another form or mistyped
_NAMES = 40  # names of a finding that are used: their patterns stand for thousands


def cues(lexicon: lexicon_lib.Lexicon) -> list[lexicon_lib.Cue]:
    """The cues that a sentence can be made of: those with a certainty that act on one finding alone."""
    scopes = ("clause", "phrase")
    return [c for c in lexicon.cues.values() if not math.isnan(c.p) and c.scope in scopes]


@functools.lru_cache(maxsize=4096)
def _rows(pattern: str) -> list[tuple[str, ...]]:
    return patterns.expand(pattern)


def _names(vocabulary: findings_lib.Vocabulary, texts: dict[str, Any]) -> dict[str, list[str]]:
    """Finding -> names that assert it."""
    made = {}
    for finding in vocabulary.findings:
        if finding in texts:
            rows = [" ".join(row) for pattern in texts[finding]["names"] for row in _rows(pattern)]
            made[finding] = rows[:: max(1, len(rows) // _NAMES)][:_NAMES]
    return made


def make(
    lexicon: lexicon_lib.Lexicon,
    vocabulary: findings_lib.Vocabulary,
    count: int,
    seed: int,
    only: Collection[str] | None = None,
    expressions: Sequence[expressions_lib.Expression] = (),
) -> tuple[pa.Table, pa.Table]:
    """``count`` made reports of three sentences each.

    Args:
      lexicon: gives cues, names and forms of words.
      vocabulary: findings that are spoken of.
      count: of reports.
      seed: of all choices; the same for the same arguments.
      only: ids of the cues to use, of :func:`cues`; all by default. Without any, all sentences are plain.
      expressions: of general English, used besides the cues; their cue in the evidence is their text.

    Returns:
      (reports, evidence): columns study_id and "report"; and the columns of :data:`repgls_jax.sidecars.EVIDENCE`.
    """
    random = np.random.default_rng(seed)
    pool = [cue for cue in cues(lexicon) if only is None or cue.id in only]
    names = _names(vocabulary, lexicon_lib.vocabulary_texts())
    spoken = list(names)
    surface: dict[str, list[str]] = {}
    for form, token in lexicon.forms.items():
        if " " not in form and len(form) > 2:
            surface.setdefault(token, []).append(form)
    reports: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number in range(count):
        text = ""
        for k in random.permutation(len(spoken))[:_PER_STUDY]:
            cue = None if not pool or random.random() < _BARE else pool[random.integers(len(pool))]
            name = _pick(random, names[spoken[k]])
            said = ("", 1.0) if cue is None else (cue.id, cue.p)
            if cue is not None and expressions and random.random() < _ENGLISH:
                english = _pick(random, expressions)
                said = english.text, english.p
                before, after = _expressed(random, english)
            else:
                before, after = _sentence(random, cue, surface)
            start = len(text)
            mention = start + len(before)
            text += f"{before}{name}{after}. "
            span = start, len(text) - 1
            rows.append(evidence(f"made{number}", spoken[k], *said, span, mention, len(name)))
        reports.append({"study_id": f"made{number}", FIELD: text})
    return pa.Table.from_pylist(reports), table(rows, vocabulary)


def _pick(random: np.random.Generator, choices: Any) -> Any:
    return choices[random.integers(len(choices))]


def _sentence(
    random: np.random.Generator, cue: lexicon_lib.Cue | None, surface: dict[str, list[str]]
) -> tuple[str, str]:
    """What stands before and after the finding's name."""
    place, after, degree = (_pick(random, words) for words in (_PLACES, _AFTER, _DEGREES))
    lead = _pick(random, _BEFORE)
    if cue is None:
        return _joined(lead, degree, then=True), _joined(place, _pick(random, _PLAIN), after)
    # Patterns hold one form of a word; reports hold them all.
    tokens = [
        _pick(random, surface[t]) if t in surface and random.random() < _OTHER_FORM else t
        for t in _pick(random, _rows(cue.cue))
    ]
    words = " ".join(tokens)
    if cue.direction == "backward":
        return _joined(degree, then=True), _joined(place, words, after)
    return _joined(lead, words, degree, then=True), _joined(place, after)


def _expressed(random: np.random.Generator, english: expressions_lib.Expression) -> tuple[str, str]:
    """The same for an expression."""
    before, after = english.text.split(expressions_lib.SLOT)
    lead, degree, place = (_pick(random, words) for words in (_LEADS, _DEGREES, _PLACES))
    return _joined(lead, before.strip(), degree, then=True), _joined(place) + after


def _joined(*parts: str, then: bool = False) -> str:
    """The parts that are not empty, with a blank before (or, with ``then``, after) them."""
    text = " ".join(part for part in parts if part)
    return text and (f"{text} " if then else f" {text}")


def evidence(
    study: str, finding: str, cue: str, p: float, span: tuple[int, int], mention: int, length: int
) -> dict[str, Any]:
    """A row of evidence about a made report: its sentence is ``span``, the finding's name starts at ``mention``."""
    return {
        "study_id": study,
        "finding": finding,
        "state": findings_lib.state_of(p),
        "p": p,
        "cue": cue,
        "section": "other",
        "field": FIELD,
        "start": span[0],
        "end": span[1],
        "mention": mention,
        "mention_end": mention + length,
        "cue_start": -1,
        "cue_end": -1,
        "labeller": LABELLER,
        "version": "",
        "prompt_hash": "",
        "report_hash": "",
    }


def table(rows: list[dict[str, Any]], vocabulary: findings_lib.Vocabulary) -> pa.Table:
    """Rows of :func:`evidence` as a table of evidence."""
    return pa.Table.from_pylist(rows, schema=sidecars.with_vocabulary(sidecars.EVIDENCE, vocabulary))
