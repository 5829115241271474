"""How a simulated reader words a certainty: the phrase table of the phantom.

Written for the phantom alone and kept apart from the lexicon that reads reports, so that reading the phantom's
reports is a fair trial: some of these phrases are ones that a lexicon would not hold.

In a template, ``{x}`` is the finding without article, ``[...]`` puts the article that the finding's noun needs in
front, and ``{is}`` and ``{has}`` agree with it. ``tail`` follows a sign that is itself certain ("Hazy opacity, likely
pneumonia").
"""

import dataclasses

ASSERT, NEGATE, RESOLVED, NORMAL, VERSUS = "assert", "negate", "resolved", "normal", "versus"
SURE, DENIED = 0.93, 0.07  # certainties from which a finding is asserted, and up to which it is denied


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One way to word doubt.

    Attributes:
      cue: the words that carry the doubt; also the phrase's id.
      p: probability of presence that the phrase stands for.
      low, high: certainties in which readers use it, low <= p <= high.
      templates: sentences.
      tail: what follows a sign whose cause is in doubt, or "".
      common: a typical list of hedges would hold it.
    """

    cue: str
    p: float
    low: float
    high: float
    templates: tuple[str, ...]
    tail: str = ""
    common: bool = True


_VERY, _LIKELY, _SUSPECT, _EVEN, _OPEN, _DOUBT = (
    (0.86, 0.93),
    (0.74, 0.9),
    (0.6, 0.8),
    (0.36, 0.64),
    (0.18, 0.42),
    (0.07, 0.22),
)
_BARE = (0.03, 0.1)


def _p(cue: str, p: float, band: tuple[float, float], *templates: str, tail: str = "", common: bool = True) -> Phrase:
    return Phrase(cue, p, band[0], band[1], templates, tail, common)


def _rare(cue: str, p: float, band: tuple[float, float], *templates: str, tail: str = "") -> Phrase:
    return _p(cue, p, band, *templates, tail=tail, common=False)


HEDGES: tuple[Phrase, ...] = (
    _p(
        "most likely", 0.9, _VERY, "Findings most likely represent [{x}].", "Most likely [{x}].", tail="most likely {x}"
    ),
    _p(
        "consistent with",
        0.9,
        _VERY,
        "Findings are consistent with [{x}].",
        "Appearance is consistent with [{x}].",
        tail="consistent with {x}",
    ),
    _p(
        "compatible with",
        0.88,
        _VERY,
        "Findings compatible with [{x}].",
        "This is compatible with [{x}].",
        tail="compatible with {x}",
    ),
    _p("very likely", 0.9, _VERY, "[{x}] {is} very likely.", "Very likely [{x}].", tail="very likely {x}"),
    _p("in keeping with", 0.88, _VERY, "Appearances are in keeping with [{x}].", tail="in keeping with {x}"),
    _rare(
        "almost certainly",
        0.93,
        _VERY,
        "This is almost certainly [{x}].",
        "There {is} almost certainly [{x}].",
        tail="almost certainly {x}",
    ),
    _rare("little doubt", 0.92, _VERY, "There is little doubt that this is [{x}].", "Little doubt as to [{x}]."),
    _rare("typical of", 0.88, _VERY, "The pattern is typical of [{x}].", tail="typical of {x}"),
    _p("likely", 0.8, _LIKELY, "There {is} likely [{x}].", "[likely {x}].", tail="likely {x}"),
    _p(
        "probable",
        0.8,
        _LIKELY,
        "[probable {x}].",
        "There {is} [probable {x}].",
        "[{x}] {is} probable.",
        tail="probable {x}",
    ),
    _p("probably", 0.79, _LIKELY, "There {is} probably [{x}].", "Probably [{x}].", tail="probably {x}"),
    _p("presumed", 0.82, _LIKELY, "[presumed {x}].", tail="presumed {x}"),
    _p("favored", 0.77, _LIKELY, "[{x}] {is} favored.", "Findings favor [{x}].", tail="favored to be {x}"),
    _rare("leading consideration", 0.76, _LIKELY, "[{x}] {is} the leading consideration."),
    _rare("in all likelihood", 0.85, _LIKELY, "In all likelihood there {is} [{x}].", tail="in all likelihood {x}"),
    _rare("the odds are on", 0.78, _LIKELY, "The odds are on [{x}]."),
    _p(
        "suspicious for",
        0.68,
        _SUSPECT,
        "Findings are suspicious for [{x}].",
        "Suspicious for [{x}].",
        tail="suspicious for {x}",
    ),
    _p(
        "suggestive of",
        0.7,
        _SUSPECT,
        "Findings suggestive of [{x}].",
        "Appearance is suggestive of [{x}].",
        tail="suggestive of {x}",
    ),
    _p(
        "concerning for",
        0.68,
        _SUSPECT,
        "Findings are concerning for [{x}].",
        "Concerning for [{x}].",
        tail="concerning for {x}",
    ),
    _p("worrisome for", 0.69, _SUSPECT, "Appearance is worrisome for [{x}].", tail="worrisome for {x}"),
    _p("suspected", 0.66, _SUSPECT, "[{x}] {is} suspected.", "[suspected {x}].", tail="suspected {x}"),
    _p("suspicion of", 0.65, _SUSPECT, "There is suspicion of [{x}].", tail="with suspicion of {x}"),
    _rare("points toward", 0.7, _SUSPECT, "The pattern points toward [{x}].", tail="pointing toward {x}"),
    _rare("would lean toward", 0.65, _SUSPECT, "On balance I would lean toward [{x}]."),
    _rare("has the look of", 0.68, _SUSPECT, "This has the look of [{x}].", tail="with the look of {x}"),
    _p(
        "possible",
        0.48,
        _EVEN,
        "[possible {x}].",
        "[{x}] {is} possible.",
        "There {is} [possible {x}].",
        tail="possibly {x}",
    ),
    _p(
        "may represent",
        0.5,
        _EVEN,
        "Findings may represent [{x}].",
        "This may represent [{x}].",
        tail="which may represent {x}",
    ),
    _p("could represent", 0.46, _EVEN, "Findings could represent [{x}].", tail="which could represent {x}"),
    _p("may be present", 0.48, _EVEN, "[{x}] may be present.", "There may be [{x}]."),
    _p("might reflect", 0.45, _EVEN, "Appearance might reflect [{x}].", tail="which might reflect {x}"),
    _p(
        "raises the possibility of",
        0.48,
        _EVEN,
        "This raises the possibility of [{x}].",
        tail="raising the possibility of {x}",
    ),
    _p("equivocal", 0.48, _EVEN, "Findings are equivocal for [{x}].", tail="equivocal for {x}"),
    _rare("perhaps", 0.45, _EVEN, "Perhaps [{x}].", "There {is} perhaps [{x}].", tail="perhaps {x}"),
    _rare("hard to say whether", 0.48, _EVEN, "It is hard to say whether there {is} [{x}]."),
    _rare("as likely as not", 0.5, _EVEN, "[{x}] {is} as likely as not present."),
    _rare("conceivably", 0.4, _EVEN, "This is conceivably [{x}].", tail="conceivably {x}"),
    _rare("jury is out on", 0.5, _EVEN, "The jury is out on [{x}]."),
    _p(
        "cannot be excluded",
        0.3,
        _OPEN,
        "[{x}] cannot be excluded.",
        "[{x}] can not be entirely excluded.",
        tail="{x} cannot be excluded",
    ),
    _p(
        "not excluded",
        0.3,
        _OPEN,
        "[{x}] {is} not excluded.",
        "[{x}] {is} not definitely excluded.",
        tail="{x} not excluded",
    ),
    _p("difficult to exclude", 0.32, _OPEN, "[{x}] {is} difficult to exclude.", "Difficult to exclude [{x}]."),
    _p("cannot rule out", 0.3, _OPEN, "Cannot rule out [{x}].", "One cannot rule out [{x}]."),
    _p("questionable", 0.35, _OPEN, "[questionable {x}].", "There {is} [questionable {x}].", tail="questionable {x}"),
    _rare("would be hard to dismiss", 0.32, _OPEN, "[{x}] would be hard to dismiss."),
    _rare("slim chance of", 0.22, _OPEN, "There is a slim chance of [{x}]."),
    _rare(
        "remains a consideration",
        0.35,
        _OPEN,
        "The possibility of [{x}] remains a consideration.",
    ),
    _rare("if clinically warranted consider", 0.28, _OPEN, "If clinically warranted consider [{x}]."),
    _p("unlikely", 0.14, _DOUBT, "[{x}] {is} unlikely.", "[{x}] {is} felt to be unlikely.", tail="unlikely to be {x}"),
    _p(
        "less likely",
        0.17,
        _DOUBT,
        "[{x}] {is} less likely.",
        "[{x}] {is} considered less likely.",
        tail="less likely {x}",
    ),
    _p("doubtful", 0.15, _DOUBT, "[{x}] {is} doubtful.", tail="doubtful for {x}"),
    _p("not favored", 0.16, _DOUBT, "[{x}] {is} not favored."),
    _rare("improbable", 0.12, _DOUBT, "[{x}] {is} improbable."),
    _rare("remote possibility", 0.12, _DOUBT, "[{x}] {is} only a remote possibility."),
    _rare("would be surprising", 0.1, _DOUBT, "[{x}] would be surprising."),
    _p("no definite", 0.06, _BARE, "No definite {x}.", "No definite {x} {is} seen."),
    _p("no convincing", 0.06, _BARE, "No convincing {x}.", "No convincing evidence of {x}."),
)

VERSUS_PHRASE = Phrase(
    VERSUS, 0.5, 0.3, 0.68, ("{a} versus {b}.", "{a} or {b}.", "Differential includes {a} versus {b}.")
)

# Doubt that is worded for one finding only; the sentence needs no noun.
OWN_HEDGES: dict[str, tuple[Phrase, ...]] = {
    "Cardiomegaly": (
        Phrase("borderline", 0.5, 0.3, 0.7, ("Heart size is borderline.", "The heart is borderline in size.")),
        Phrase("upper limits of normal", 0.18, 0.07, 0.35, ("Heart size is at the upper limits of normal.",)),
        Phrase("mildly prominent heart", 0.65, 0.55, 0.85, ("The heart appears mildly prominent.",), common=False),
    ),
    "Enlarged Cardiomediastinum": (
        Phrase("mediastinum prominent", 0.55, 0.4, 0.8, ("The upper mediastinum appears somewhat prominent.",)),
        Phrase("technique widens mediastinum", 0.2, 0.08, 0.4, ("Mediastinal width may be accentuated by technique.",)),
    ),
    "Edema": (Phrase("vascular congestion", 0.5, 0.3, 0.72, ("There is mild pulmonary vascular congestion.",)),),
    "Pleural Effusion": (
        Phrase(
            "blunting may reflect",
            0.5,
            0.36,
            0.68,
            ("Blunting of the {side} costophrenic angle may reflect a small effusion.",),
        ),
        Phrase("trace if any", 0.25, 0.15, 0.4, ("Trace {side} pleural fluid, if any.",), common=False),
    ),
    "Fracture": (
        Phrase(
            "age-indeterminate deformity", 0.55, 0.4, 0.75, ("Deformity of a {side} rib, of uncertain significance.",)
        ),
    ),
}

ASSERTIONS = (
    "There {is} [{x}].",
    "[{x}].",
    "[{x}] {is} seen.",
    "[{x}] {is} present.",
    "[{x}] {is} noted.",
    "[{x}] {is} demonstrated.",
    "[{x}] {is} identified.",
)
DENIALS = (
    "No {x}.",
    "There {is} no {x}.",
    "No evidence of {x}.",
    "No {x} {is} seen.",
    "No {x} {is} identified.",
    "There is no evidence of {x}.",
    "No radiographic evidence of {x}.",
    "Negative for {x}.",
)
RESOLUTIONS = (
    "The previously seen {x} {has} resolved.",
    "{x} {is} no longer seen.",
    "Interval resolution of the {x}.",
    "The prior {x} {has} cleared.",
)
SAME = ("Unchanged {x}.", "[{x}] {is} unchanged.", "Stable {x}.", "Again seen {is} [{x}].", "Persistent {x}.")
MORE = (
    "[{x}] {has} increased since the prior study.",
    "Interval worsening of the {x}.",
    "The {x} {is} larger than before.",
)
LESS = ("[{x}] {has} decreased since the prior study.", "Interval improvement of the {x}.", "Residual {x}.")
NEW = ("New {x}.", "Interval development of [{x}].", "[{x}], new since the prior study.")

BY_CUE = {phrase.cue: phrase for phrase in (*HEDGES, *(p for own in OWN_HEDGES.values() for p in own), VERSUS_PHRASE)}
_PLAIN = {ASSERT: 1.0, NEGATE: 0.0, RESOLVED: 0.0, NORMAL: 0.0}


def probability(phrase_id: str) -> float:
    """Probability of presence that a value of a record's ``wording`` stands for; KeyError for an unknown id."""
    return _PLAIN[phrase_id] if phrase_id in _PLAIN else BY_CUE[phrase_id].p


def hedge_phrases() -> list[tuple[str, float]]:
    """Every general hedge as (its words, probability of presence), from the surest to the most doubtful."""
    return sorted(((phrase.cue, phrase.p) for phrase in HEDGES), key=lambda pair: -pair[1])


def suited(name: str, certainty: float) -> list[Phrase]:
    """Phrases a reader may use for finding ``name`` at ``certainty``; empty where it is asserted or denied outright."""
    pool = HEDGES + OWN_HEDGES.get(name, ())
    return [phrase for phrase in pool if phrase.low <= certainty < phrase.high]
