"""The words of the phantom's reports against the beliefs behind them."""

import collections
import dataclasses
import functools
import itertools
import re

import numpy as np
import pytest

from repgls_jax import phantom
from repgls_jax.findings import CHEXPERT
from repgls_jax.phantom import anatomy, layout, phrases, population, report, terms

CONFIG = phantom.PhantomConfig(seed=2, reader_bias=0.0)
BODY = anatomy.body_of(CONFIG, 0, 0)


@functools.cache
def _written(config: phantom.PhantomConfig, count: int = 1500) -> list[report.Written]:
    """Reports without their films, which cost the most."""
    states = ((i, population.state_of(config, *population.patient_of(i))) for i in range(count))
    return [report.write(config, i, state, BODY) for i, state in states]


def _text(written: report.Written) -> str:
    return " ".join(filter(None, (written.findings, written.impression, written.report)))


def _pairs(config: phantom.PhantomConfig) -> list[tuple[float, str]]:
    """(belief, phrase id) of everything that is said of the thirteen findings."""
    order = CHEXPERT.findings[1:]
    return [
        (float(w.belief[order.index(name)]), phrase)
        for w in _written(config)
        for name, phrase in w.wording.items()
        if name in order
    ]


def test_wording_follows_belief():
    by_phrase = collections.defaultdict(list)
    for belief, phrase in _pairs(CONFIG):
        by_phrase[phrase].append(belief)
    common = {phrase: float(np.mean(b)) for phrase, b in by_phrase.items() if len(b) >= 15}
    assert len(common) > 30
    meant, held = zip(*((phrases.probability(p), b) for p, b in common.items()), strict=True)
    ranks = [np.argsort(np.argsort(v)) for v in (meant, held)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    belief, said = zip(*((b, phrases.probability(p)) for b, p in _pairs(CONFIG)), strict=True)
    assert np.corrcoef(belief, said)[0, 1] > 0.95


@pytest.mark.parametrize("name", population.NAMES)
def test_every_certainty_has_a_phrase_for_every_finding(name: str):
    for q in np.linspace(phrases.DENIED, phrases.SURE, 200, endpoint=False):
        suited = phrases.suited(name, float(q))
        assert suited
        for phrase in suited:
            assert abs(phrase.p - q) < 0.3


def test_phrase_table_is_sound():
    cues = [phrase.cue for phrase in phrases.BY_CUE.values()]
    assert len(set(cues)) == len(phrases.HEDGES) + sum(map(len, phrases.OWN_HEDGES.values())) + 1
    for phrase in phrases.BY_CUE.values():
        assert 0 <= phrase.low <= phrase.p <= phrase.high <= 1, phrase.cue
        assert phrase.templates
    listed = phrases.hedge_phrases()
    assert listed == sorted(listed, key=lambda pair: -pair[1])
    assert sum(not phrase.common for phrase in phrases.HEDGES) >= 10
    with pytest.raises(KeyError):
        phrases.probability("no such phrase")


def test_every_phrase_is_used_and_says_its_cue():
    used = {phrase for _, phrase in _pairs(CONFIG)}
    hedging = dataclasses.replace(CONFIG, hedging=2.0, seed=5)
    used |= {phrase for _, phrase in _pairs(hedging)}
    assert not {phrase.cue for phrase in phrases.HEDGES} - used
    for phrase in phrases.HEDGES:
        if " " in phrase.cue:
            words = set(phrase.cue.split())
            assert all(words & set(re.findall(r"[a-z]+", t.lower())) for t in phrase.templates), phrase.cue


def test_negation_takes_many_forms():
    text = " ".join(map(_text, _written(CONFIG)))
    for form in (
        r"\bNo \w+ or pleural effusion|\bNo pneumothorax or",
        r"[Nn]o evidence of",
        r"Negative for",
        r"is no longer seen|has resolved",
        r"[Ll]ungs are clear",
        r"[Hh]eart size is normal",
        r"silhouette is normal",
        r"\bNo [\w ]+, [\w ]+, or ",
        r"No definite",
    ):
        assert re.search(form, text), form


def test_reports_hold_doubt_on_causes_alternatives_priors_and_distractors():
    text = " ".join(map(_text, _written(CONFIG)))
    for form in (
        r"pacit(y|ies)[\w ]*, (most )?likely \w+",
        r"versus",
        r"[Uu]nchanged",
        r"INDICATION:|Indication:",
        r"Degenerative changes",
        r"COMPARISON:|Comparison:",
        r"borderline",
        r"1\. .* 2\. ",
    ):
        assert re.search(form, text), form


def test_no_template_is_left_unfilled():
    text = " ".join(map(_text, _written(CONFIG)))
    assert not re.search(r"[{}\[\]]|  |\.\.|\ba [aeiou]|\ban [^aeiou\W]", text)


def test_sides_in_the_report_are_the_sides_in_the_film():
    from repgls_jax.phantom import lesions

    k = population.NAMES.index("Pneumothorax")
    checked = 0
    for i, written in enumerate(_written(dataclasses.replace(CONFIG, typos=0.0))):
        said = set(re.findall(r"\b(right|left)[\w ]*pneumothorax", _text(written)))
        if said:
            state = population.state_of(CONFIG, *population.patient_of(i))
            place = lesions.place_of("Pneumothorax", state.places[k])
            assert said == {terms.side_word(place)}
            checked += 1
    assert checked > 20


def test_options_of_the_writing():
    def denied(config: phantom.PhantomConfig) -> float:
        return float(np.mean([list(w.wording.values()).count(phrases.NEGATE) for w in _written(config)]))

    terse = dataclasses.replace(CONFIG, mention_only=True)
    assert denied(terse) < 0.25 * denied(CONFIG)
    plain = {phrase for _, phrase in _pairs(dataclasses.replace(CONFIG, hedging=0.0))}
    assert plain == {phrases.ASSERT, phrases.NEGATE, phrases.RESOLVED}

    def hedged(config: phantom.PhantomConfig) -> float:
        return float(np.mean([0 < phrases.probability(p) < 1 for _, p in _pairs(config)]))

    assert hedged(dataclasses.replace(CONFIG, hedging=2.0)) > hedged(CONFIG) + 0.1
    free = [bool(w.report) for w in _written(CONFIG)]
    assert np.mean(free) == pytest.approx(CONFIG.free_text, abs=0.05)


def test_reports_vary():
    texts = [_text(w) for w in _written(CONFIG)]
    assert len(set(texts)) > 0.97 * len(texts)
    assert len(set(itertools.chain.from_iterable(t.split(". ") for t in texts))) > 1500


def test_misspelling_keeps_short_words_and_follows_its_rate():
    random = np.random.default_rng(0)
    text = "no pneumothorax or pleural effusion " * 200
    changed = layout.misspell(random, text, 0.2).split(" ")
    pairs = list(zip(changed, text.split(" "), strict=True))
    assert all(a == b for a, b in pairs if len(b) < 5)
    assert 0.15 < np.mean([a != b for a, b in pairs if len(b) >= 5]) < 0.25
    assert layout.misspell(random, text, 0.0) == text
