"""The simulated reader's report: what is said of each finding, and in which words.

Certainty -> phrase -> sentence. A finding is asserted from certainty ``phrases.SURE`` up, denied up to
``phrases.DENIED``, and hedged between, with a phrase whose band holds the certainty. Most findings that are denied go
unmentioned, as in real reports. The impression repeats the phrase of the findings section, so a report has one wording
per finding.
"""

import dataclasses
import functools

import numpy as np

from repgls_jax.phantom import anatomy, layout, lesions, phrases, population, reader, terms
from repgls_jax.phantom import config as config_lib
from repgls_jax.phantom.terms import Term

# How often a reader denies what is not there.
DENY_RATE = {
    "Enlarged Cardiomediastinum": 0.45, "Cardiomegaly": 0.65, "Lung Opacity": 0.4, "Lung Lesion": 0.12, "Edema": 0.35,
    "Consolidation": 0.6, "Pneumonia": 0.2, "Atelectasis": 0.08, "Pneumothorax": 0.75, "Pleural Effusion": 0.75,
    "Pleural Other": 0.07, "Fracture": 0.15, "Support Devices": 0.05,
}  # fmt: skip
_LUNG = ("Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")
_ALTERNATIVES = ("Atelectasis", "Pneumonia", "Consolidation")
_CLEAR_LUNGS = ("The lungs are clear.", "Lungs are clear bilaterally.", "Lungs are clear.")
_NORMAL_SILHOUETTE = (
    "The cardiomediastinal silhouette is normal.",
    "Cardiomediastinal silhouette is within normal limits.",
    "Heart and mediastinal contours are normal.",
)
_IMPRESSED = 0.36  # findings with this certainty or more reach the impression


@dataclasses.dataclass(frozen=True)
class Written:
    """A report: its texts, reader number, ``belief`` float64 [13], and finding -> phrase id."""

    findings: str
    impression: str
    report: str
    reader: int
    belief: np.ndarray
    wording: dict[str, str]


@dataclasses.dataclass
class _Draft:
    """A report in the making."""

    random: np.random.Generator
    state: population.State
    prior: population.State | None
    certainty: dict[str, float]
    taste: dict[str, float]
    wording: dict[str, str] = dataclasses.field(default_factory=dict)
    body: list[str] = dataclasses.field(default_factory=list)
    summary: list[str] = dataclasses.field(default_factory=list)

    def pick(self, choices: tuple[str, ...]) -> str:
        return layout.pick(self.random, choices)

    def chance(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def place(self, name: str) -> lesions.Place:
        return lesions.place_of(name, self.state.places[population.NAMES.index(name)])

    def contrast(self, name: str) -> float:
        return float(self.state.contrast[population.NAMES.index(name)])

    def term(self, name: str) -> Term:
        return terms.term_of(name, self.place(name), self.contrast(name), self.random.random(3))


def fill(template: str, term: Term, side: str = "", degree: str = "") -> str:
    """Puts a term into a template of :mod:`phrases` and makes it a sentence."""
    text = template.replace("{x}", term.text)
    text = text.replace("{is}", "are" if term.plural else "is").replace("{has}", "have" if term.plural else "has")
    text = text.replace("{side}", side).replace("{degree}", degree)
    start = text.find("[")
    if start >= 0:
        end = text.index("]")
        inner = text[start + 1 : end]
        article = ("an " if inner[0] in "aeiou" else "a ") if term.count else ""
        text = text[:start] + article + inner + text[end + 1 :]
    return text[0].upper() + text[1:]


@functools.lru_cache(maxsize=1024)
def _taste(config: config_lib.PhantomConfig, number: int) -> dict[str, float]:
    """How fond reader ``number`` is of each phrase."""
    random = population.stream(config.seed, config_lib.READER, number, 1)
    liking = np.exp(0.7 * random.standard_normal(len(phrases.BY_CUE)))
    return {
        cue: float(like) * (3.0 if phrase.common else 1.0)
        for (cue, phrase), like in zip(phrases.BY_CUE.items(), liking, strict=True)
    }


def _choose(draft: _Draft, pool: list[phrases.Phrase]) -> phrases.Phrase:
    weights = [draft.taste[phrase.cue] for phrase in pool]
    at = draft.random.random() * sum(weights)
    for phrase, weight in zip(pool, weights, strict=True):
        at -= weight
        if at <= 0:
            return phrase
    return pool[-1]


def _mentioned(draft: _Draft, name: str, brevity: float, mention_only: bool) -> bool:
    q = draft.certainty[name]
    if q >= phrases.SURE:
        return draft.chance(0.98)
    if q > phrases.DENIED:
        low = 0.1 if mention_only or name == "Support Devices" else 0.3
        return draft.chance(0.95 if q >= 0.36 else 0.7 if q >= 0.18 else low)
    rate = DENY_RATE[name] * (1.25 - 0.6 * brevity)
    if draft.prior is not None and draft.prior.truth[population.NAMES.index(name)]:
        rate = max(rate, 0.6)
    return draft.chance(rate * (0.12 if mention_only else 1.0))


def _assert(draft: _Draft, name: str) -> str:
    k = population.NAMES.index(name)
    degree = terms.degree(draft.contrast(name))
    if draft.prior is not None and draft.chance(0.6):
        if not draft.prior.truth[k]:
            return fill(draft.pick(phrases.NEW), draft.term(name))
        ratio = draft.contrast(name) / max(float(draft.prior.contrast[k]), 1e-3)
        pool = phrases.MORE if ratio > 1.4 else phrases.LESS if ratio < 0.7 else phrases.SAME
        if name in ("Support Devices", "Fracture"):
            pool = phrases.SAME
        return fill(draft.pick(pool), draft.term(name))
    if name in terms.ASSERTING and draft.chance(0.7):
        return fill(draft.pick(terms.ASSERTING[name]), Term(""), degree=degree)
    return fill(draft.pick(phrases.ASSERTIONS), draft.term(name))


def _hedge(draft: _Draft, name: str, phrase: phrases.Phrase) -> str:
    term = draft.term(name)
    if phrase.high <= 0.25:  # doubted things are named without place
        term = Term(terms.SHORT[name])
    return fill(draft.pick(phrase.templates), term, side="right" if draft.place(name).side < 0 else "left")


def _say(draft: _Draft, name: str, phrase_id: str, sentence: str, again: str = "") -> None:
    draft.wording[name] = phrase_id
    draft.body.append(sentence)
    if again:
        draft.summary.append(again)


def _with_cause(draft: _Draft, names: set[str]) -> None:
    """A sign that is sure with a cause that is not: "Hazy opacity in the left lower lobe, likely pneumonia."."""
    sure = "Lung Opacity" in names and draft.certainty["Lung Opacity"] >= phrases.SURE
    doubted = [n for n in terms.CAUSES if n in names and phrases.DENIED < draft.certainty[n] < phrases.SURE]
    even = [n for n in _ALTERNATIVES if n in doubted and 0.3 < draft.certainty[n] < 0.68]
    sign = fill("[{x}]", draft.term("Lung Opacity")) if sure else ""
    if len(even) >= 2 and draft.chance(0.7):
        a, b = (terms.CAUSES[n] for n in even[:2])
        text = draft.pick(phrases.VERSUS_PHRASE.templates).replace("{a}", a).replace("{b}", b)
        text = f"{sign}, {a} versus {b}." if sign else text[0].upper() + text[1:]
        for name in even[:2]:
            draft.wording[name] = phrases.VERSUS
        names.difference_update(even[:2])
    elif sign and doubted and draft.chance(0.5):
        phrase = _choose(draft, phrases.suited("", draft.certainty[doubted[0]]))
        if not phrase.tail:
            return
        text = f"{sign}, {phrase.tail.replace('{x}', terms.CAUSES[doubted[0]])}."
        draft.wording[doubted[0]] = phrase.cue
        names.discard(doubted[0])
    else:
        return
    if sign:
        draft.wording["Lung Opacity"] = phrases.ASSERT
        names.discard("Lung Opacity")
    draft.body.append(text)
    draft.summary.append(text)


def _positives(draft: _Draft, names: set[str]) -> None:
    """Everything that is asserted or hedged; takes it out of ``names``."""
    _with_cause(draft, names)
    for name in [n for n in population.NAMES if n in names]:
        q = draft.certainty[name]
        hedges = phrases.suited(name, q)
        if q >= phrases.SURE:
            keep = name != "Support Devices" or draft.chance(0.15)
            _say(draft, name, phrases.ASSERT, _assert(draft, name), _assert(draft, name) if keep else "")
        elif q > phrases.DENIED or (hedges and draft.chance(0.3)):
            phrase = _choose(draft, hedges)
            again = _hedge(draft, name, phrase) if q >= _IMPRESSED else ""
            _say(draft, name, phrase.cue, _hedge(draft, name, phrase), again)
        else:
            continue
        names.discard(name)


def _listed(nouns: list[str], last: str) -> str:
    return (
        nouns[0]
        if len(nouns) == 1
        else ", ".join(nouns[:-1]) + ("," if len(nouns) > 2 else "") + f" {last} {nouns[-1]}"
    )


def _denials(draft: _Draft, names: set[str]) -> None:
    """Everything that is denied: resolved, normal, or in lists."""
    left = [n for n in population.NAMES if n in names]
    draft.wording.update(dict.fromkeys(left, phrases.NEGATE))
    for name in list(left):
        was = draft.prior is not None and bool(draft.prior.truth[population.NAMES.index(name)])
        if was and name != "Fracture" and draft.chance(0.7):
            _say(draft, name, phrases.RESOLVED, fill(draft.pick(phrases.RESOLUTIONS), Term(terms.SHORT[name])))
            left.remove(name)
    calm = max(draft.certainty[n] for n in _LUNG) < 0.3
    for pair, sentences, fits in (
        (("Lung Opacity", "Consolidation"), _CLEAR_LUNGS, calm),
        (("Enlarged Cardiomediastinum", "Cardiomegaly"), _NORMAL_SILHOUETTE, True),
    ):
        if fits and set(pair) <= set(left) and draft.chance(0.5):
            draft.body.append(draft.pick(sentences))
            left = [n for n in left if n not in pair]
    for name in list(left):
        if name in terms.DENYING and draft.chance(0.15 if name == "Pleural Effusion" else 0.85):
            draft.body.append(draft.pick(terms.DENYING[name]))
            left.remove(name)
    draft.random.shuffle(left)
    while left:
        take = min(len(left), 1 + int(draft.random.random() * 3))
        nouns = [draft.pick(tuple(terms.DENIED[n].split("|"))) for n in left[:take]]
        plural = take == 1 and left[0] == "Support Devices"
        left = left[take:]
        draft.body.append(fill(draft.pick(phrases.DENIALS), Term(_listed(nouns, "or"), plural=plural)))


def write(config: config_lib.PhantomConfig, index: int, state: population.State, body: anatomy.Body) -> Written:
    """The report on study ``index``.

    Args:
      config: of the data set.
      index: of the study.
      state: its truth, contrasts and places.
      body: gives the view.

    Returns:
      Texts with either ``report`` or findings and impression filled.
    """
    patient, visit = population.patient_of(index)
    random = population.stream(config.seed, config_lib.WRITING, index)
    number = int(random.random() * config.readers)
    who = reader.reader_of(config, number)
    belief = reader.beliefs(config, state, who, (patient, visit))
    certainty = dict(zip(population.NAMES, reader.expressed(belief, who.hedging).tolist(), strict=True))
    prior = population.state_of(config, patient, visit - 1) if visit else None
    draft = _Draft(random, state, prior, certainty, _taste(config, number))
    names = {n for n in population.NAMES if _mentioned(draft, n, who.brevity, config.mention_only)}
    _positives(draft, names)
    _denials(draft, names)
    draft.body += [layout.aside(random, certainty["Fracture"] < 0.1) for _ in range(int(random.random() * 2.6))]
    random.shuffle(draft.body)
    clear = max(q for q, bad in zip(certainty.values(), population.PATHOLOGIES, strict=True) if bad) < 0.2
    impression, normal = layout.conclusion(random, draft.summary, clear, certainty["Support Devices"] < 0.2)
    if normal:
        draft.wording["No Finding"] = phrases.NORMAL
    findings = " ".join(draft.body)
    findings, impression = (layout.misspell(random, text, config.typos) for text in (findings, impression))
    if random.random() < config.free_text:
        text = layout.free_text(random, body, bool(visit), findings, impression)
        return Written("", "", text, number, belief, draft.wording)
    if random.random() < 0.08 and draft.body:  # all in the impression
        findings, impression = "", f"{findings} {impression}" if normal else findings
    return Written(findings, impression, "", number, belief, draft.wording)
