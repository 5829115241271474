"""The rule engine: a report in, evidence out. Pure, deterministic and picklable.

Every decision can be traced: each :class:`~repgls_jax.reports.resolve.Evidence` names its cue, and gives the offsets
of its sentence, of the words that name the finding, and of the cue.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from repgls_jax import __version__
from repgls_jax import findings as findings_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import mentions, patterns, resolve, scope, sections, sentences
from repgls_jax.reports import override as override_lib
from repgls_jax.reports.resolve import Evidence

# Fields of a report, with the section that their text belongs to until a heading says otherwise.
FIELDS = {"findings": "findings", "impression": "impression", "report": "other"}
# Longer fields are read up to here; a chest report has a few thousand characters.
MAX_CHARS = 200_000
_MAX_SENTENCE = 4_000  # characters; run-on text without a full stop is cut into pieces of this length
_CACHE, _CACHE_CHARS = 20_000, 400  # sentences kept, and the longest one kept: a bound on memory

# finding, p, cue id, weak, mention start and end, cue start and end; offsets count from the sentence's start
# and the one side that the sentence names
_Row = tuple[str, float, str, int, int, int, int, int, str]


class Engine:
    """Reads reports with a lexicon.

    Attributes:
      vocabulary: findings that evidence is given for.
      version: package version and hash of the lexicon, and of the override if there is one.
    """

    def __init__(
        self,
        vocabulary: findings_lib.Vocabulary,
        lexicon: lexicon_lib.Lexicon | None = None,
        override: override_lib.Override | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.lexicon = lexicon_lib.load() if lexicon is None else lexicon
        self.override = override
        self.version = f"{__version__}+lexicon.{self.lexicon.digest}"
        if override is not None:
            self.version += f"{override_lib.VERSION}{override.digest}"
        self._wanted = frozenset(vocabulary.findings)
        self._cache: dict[str, list[_Row]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def sentence(self, text: str) -> list[_Row]:
        """All readings of one sentence, for every finding of the union vocabulary."""
        cached = self._cache.get(text)
        if cached is not None:
            return cached
        tokens, starts, ends = patterns.tokenise(text, self.lexicon.forms)
        hits = patterns.find(self.lexicon.trie, tokens)
        rows: list[_Row] = []
        read = mentions.clauses(hits, tokens, self.lexicon)
        side = resolve.side(tokens) if read else ""
        for clause in read:
            for r in scope.read(clause, tokens, self.lexicon):
                cue = (-1, -1) if r.cue_tokens[0] < 0 else (starts[r.cue_tokens[0]], ends[r.cue_tokens[1] - 1])
                mention = starts[r.tokens[0]], ends[r.tokens[1] - 1]
                rows.append((r.finding, r.p, r.cue, r.weak, *mention, *cue, side))
        if len(text) <= _CACHE_CHARS:
            if len(self._cache) >= _CACHE:
                self._cache.clear()
            self._cache[text] = rows
        return rows

    def candidates(self, report: Mapping[str, Any]) -> list[Evidence]:
        """Every mention of a report that counts, before conflicts are resolved, in text order."""
        found: list[Evidence] = []
        for field, default in FIELDS.items():
            text = (report.get(field) or "")[:MAX_CHARS]
            if not text:
                continue
            for section, begin, end in sections.split(text, default):
                for start, stop in sentences.split(text, begin, end):
                    for at in range(start, stop, _MAX_SENTENCE):
                        until = min(stop, at + _MAX_SENTENCE)
                        for f, p, cue, weak, ms, me, cs, ce, side in self.sentence(text[at:until]):
                            if cs >= 0:
                                cs, ce = cs + at, ce + at
                            where = at, until, ms + at, me + at, cs, ce
                            found.append(Evidence(f, p, cue, section, field, *where, weak, side))
        return found

    def read(self, report: Mapping[str, Any]) -> list[Evidence]:
        """What a report says of each finding of the vocabulary.

        Args:
          report: fields "findings", "impression" and/or "report"; each may be missing, None or empty.

        Returns:
          At most one piece of evidence per finding, in the vocabulary's order; findings that are not mentioned have
          none. "No Finding" is there whenever the report has text.
        """
        by_finding: dict[str, list[Evidence]] = {}
        for e in self.candidates(report):
            if e.finding in self._wanted:
                by_finding.setdefault(e.finding, []).append(e)
        found = [resolve.resolve(by_finding[f]) for f in self.vocabulary.findings if f in by_finding]
        said = found
        if self.override is not None:  # after the conflicts, which wording decides
            found = [self.override.apply(e) for e in found]
        if findings_lib.NO_FINDING in self._wanted:
            lengths = {field: len((report.get(field) or "").strip()) for field in FIELDS}
            field = max(lengths, key=lambda name: lengths[name])
            if lengths[field]:
                text = str(report[field])[:MAX_CHARS]
                normal = resolve.no_finding(found, field, FIELDS[field], len(text))
                if self.override is not None:
                    by_wording = resolve.no_finding(said, field, FIELDS[field], len(text))
                    normal = dataclasses.replace(normal, said=by_wording.p)
                found.insert(0, normal)
        return found
