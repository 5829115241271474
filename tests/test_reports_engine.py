"""Properties of the rule engine: negation flips, offsets point at words, hostile text is harmless, the same in is the
same out."""

import itertools
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repgls_jax import findings as findings_lib
from repgls_jax.reports import engine as engine_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import override, patterns, resolve, sections, sentences

ENGINE = engine_lib.Engine(findings_lib.UNION)
NAMES = {
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "pulmonary edema": "Edema",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion",
    "pleural thickening": "Pleural Thickening",
    "rib fracture": "Fracture",
    "infiltrate": "Infiltrate",
    "pulmonary mass": "Mass",
    "pulmonary nodule": "Nodule",
    "emphysema": "Emphysema",
    "fibrosis": "Fibrosis",
    "hiatal hernia": "Hernia",
}


def p(text: str, finding: str, impression: str = "") -> float | None:
    found = {e.finding: e.p for e in ENGINE.read({"findings": text, "impression": impression})}
    return found.get(finding)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("template", "low", "high"),
    [
        ("There is {}.", 1, 1),
        ("There is no {}.", 0, 0),
        ("Negative for {}.", 0, 0),
        ("No evidence of effusions, {} or adenopathy.", 0, 0),
        ("The {} has resolved.", 0, 0.1),
        ("Possible {}.", 0.45, 0.55),
        ("Findings are suggestive of {}.", 0.65, 0.75),
        ("Probable {} is noted.", 0.75, 0.85),
        ("Cannot exclude {}.", 0.25, 0.35),
        ("The {} is unlikely.", 0.1, 0.2),
        ("No change in the {}.", 1, 1),
        ("Stable spine, but there is {}.", 1, 1),
        # before and behind, with the place between
        ("The {} on the left is suspected.", 0.6, 0.7),
        ("Left {}, probably.", 0.75, 0.85),
        ("The presence of {} is questionable.", 0.4, 0.5),
        ("{} is felt to be present on the left.", 0.75, 0.85),
        ("? {} on the left.", 0.4, 0.5),
        ("Calcified aorta, ? {}.", 0.4, 0.5),
        ("In the appropriate clinical setting, this could represent {}.", 0.4, 0.5),
        ("It is possible that there is {}.", 0.45, 0.55),
        ("I doubt that this is {}.", 0.1, 0.2),
        # the strength of a belief stands behind the finding
        ("Suspicion for {} is low.", 0.1, 0.2),
        ("The likelihood of {} is felt to be high.", 0.8, 0.9),
        # what is hedged is a negation, and what is negated a hedge
        ("There is probably no {}.", 0.15, 0.25),
        ("No {} is suspected.", 0, 0.1),
        ("The {} has probably resolved.", 0.15, 0.25),
        ("Possible {}, not definitely seen.", 0.2, 0.4),
        ("No definite {}, but a small one cannot be excluded.", 0.25, 0.35),
        ("The {}, while unlikely, cannot be excluded.", 0.15, 0.3),
    ],
)
def test_wording_decides_for_every_finding(name, template, low, high):
    value = p(template.format(name), NAMES[name])
    assert value is not None
    assert low <= value <= high


@pytest.mark.parametrize("name", NAMES)
def test_history_and_advice_do_not_count(name):
    assert p(f"History of {name}.", NAMES[name]) is None
    assert p(f"Indication: evaluate for {name}. Findings: the trachea is midline.", NAMES[name]) is None
    assert p(f"Follow-up is advised to exclude {name}.", NAMES[name]) is None


def test_certainty_falls_along_the_scale():
    scale = ("most likely", "probably", "suggestive of", "may represent", "cannot exclude", "less likely")
    values = [p(f"Changes {cue} pneumonia.", "Pneumonia") for cue in scale]
    assert all(v is not None for v in values)
    assert values == sorted(values, key=lambda v: -(v or 0))
    assert len(set(values)) == len(values)


def test_a_hedge_on_the_cause_leaves_the_sign():
    text = "Opacity at the left base, likely atelectasis."
    assert p(text, "Lung Opacity") == 1
    assert p(text, "Atelectasis") == 0.8


def test_alternatives_share_and_an_alternative_twice_adds_up():
    assert p("Atelectasis versus pneumonia.", "Atelectasis") == 0.5
    assert p("Atelectasis, edema, or pneumonia.", "Edema") == 0.38
    assert p("Nodule or mass.", "Lung Lesion") == 1
    assert p("Cannot exclude a nodule or mass.", "Lung Lesion") == 0.3


@pytest.mark.parametrize("words", ["is favored over", "is more likely than", "is less likely than"])
def test_a_comparison_splits_its_probability_between_its_sides(words):
    for first, second in itertools.permutations(("pneumonia", "atelectasis", "pulmonary edema"), 2):
        text = f"Here {first} {words} {second}."
        ours, theirs = p(text, NAMES[first]), p(text, NAMES[second])
        assert ours is not None
        assert theirs is not None
        assert ours + theirs == pytest.approx(1)
        assert (ours > theirs) == ("less" not in words)


@pytest.mark.parametrize("words", ["favored over", "is more likely than", "is less likely than"])
def test_a_site_calibrates_the_two_sides_of_a_comparison_apart(words):
    text = {"findings": f"Here pneumonia {words} edema."}
    before, after = ENGINE.read(text)[::-1][:2]
    assert before.finding == "Pneumonia"
    assert after.finding == "Edema"
    assert before.cue != after.cue
    own = override.own_p(ENGINE.lexicon)
    assert (own[before.cue], own[after.cue]) == (before.p, after.p)
    for one, other in ((before, after), (after, before)):
        table = override.parse(f"cue,p\n{one.cue},0.6\n", ENGINE.lexicon, "a table")
        found = {e.finding: e.p for e in engine_lib.Engine(findings_lib.UNION, ENGINE.lexicon, table).read(text)}
        assert found[one.finding] == 0.6
        assert found[other.finding] == other.p


@pytest.mark.parametrize(
    ("hedge", "low", "high"), [("likely", 0.15, 0.25), ("may represent", 0.45, 0.55), ("unlikely to be", 1, 1)]
)
@pytest.mark.parametrize("nothing", ["a nipple shadow", "a skin fold", "an overlying artifact", "a vascular shadow"])
def test_what_explains_a_shadow_away_takes_what_it_gets(hedge, low, high, nothing):
    for name in ("pulmonary nodule", "pneumothorax"):
        value = p(f"The {name} on the left, {hedge} {nothing}.", NAMES[name])
        assert value is not None
        assert low <= value <= high


def test_a_list_without_and_ends_in_its_doubt():
    found = {e.finding: e.p for e in ENGINE.read({"findings": "Mass, effusion, consolidation cannot be excluded."})}
    assert {found[f] for f in ("Mass", "Lung Lesion", "Pleural Effusion", "Consolidation")} == {0.3}
    assert p("Cardiomegaly, a small effusion cannot be excluded.", "Cardiomegaly") == 1


@pytest.mark.parametrize("doubt", ["no {} effusion", "possible {} effusion", "the {} effusion has resolved"])
def test_doubt_on_one_side_leaves_what_is_asserted_on_the_other(doubt):
    assert p("Small right effusion.", "Pleural Effusion", f"{doubt.format('left')}.") == 1
    assert p("Small right effusion.", "Pleural Effusion", f"{doubt.format('right')}.") != 1
    assert p("Small effusion.", "Pleural Effusion", f"{doubt.format('left')}.") != 1


def test_a_device_that_goes_leaves_the_others():
    assert p("Left PICC.", "Support Devices", "Chest tube has been removed.") == 1
    assert p("Chest tube.", "Support Devices", "No pneumothorax.") == 1
    assert p("Chest tube has been removed.", "Support Devices") == pytest.approx(0.02)


@pytest.mark.parametrize("where", ["", "of the right lung", "in the left base"])
def test_infection_is_pneumonia_where_it_may_be_of_the_lung(where):
    assert p(f"Probable infection {where}.", "Pneumonia") == 0.8
    assert p(f"Infectious or inflammatory process {where}.", "Pneumonia") == 0.5
    assert p(f"Urinary tract infection and sinus infection, aortic calcification {where}.", "Pneumonia") is None
    assert p(f"Residua of old granulomatous infection {where}.", "Pneumonia") is None


@pytest.mark.parametrize("cue", ["cannot be excluded", "is suspected", "is unlikely", "may be present"])
def test_as_is_repeats_what_was_said(cue):
    assert p(f"Pneumonia {cue}, as is a small effusion.", "Pleural Effusion") == p(f"Pneumonia {cue}.", "Pneumonia")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "infiltrate"])  # which is an opacity itself
def test_a_question_about_a_shadow_leaves_the_shadow(name):
    text = f"It is unclear whether the opacity is {name}."
    assert p(text, "Lung Opacity") == 1
    assert p(text, NAMES[name]) == 0.45


def test_impression_wins_but_not_with_less_to_say():
    assert p("Possible effusion.", "Pleural Effusion", "No effusion.") == 0
    assert p("Effusion.", "Pleural Effusion", "Possible effusion.") == 0.5
    assert p("Small effusion.", "Pleural Effusion", "No large effusion.") == 1
    assert p("Opacity at the base.", "Lung Opacity", "Lungs are clear.") == 1


@pytest.mark.parametrize(("text", "value"), [("Mass.", 0), ("Possible mass.", 0.5), ("Clear lungs. PICC.", 1)])
def test_no_finding_mirrors_the_rest_without_devices(text, value):
    row = ENGINE.read({"findings": text})[0]
    assert (row.finding, row.p, row.cue) == (findings_lib.NO_FINDING, value, resolve.RULE_NO_FINDING)


def test_vocabularies_read_alike_but_keep_to_their_findings():
    text = {"report": "FINDINGS: A nodule. IMPRESSION: Hiatal hernia."}
    small = {e.finding for e in engine_lib.Engine(findings_lib.CHEXPERT).read(text)}
    assert small == {findings_lib.NO_FINDING, "Lung Lesion"}
    assert {e.finding for e in engine_lib.Engine(findings_lib.NIH).read(text)} == {"Nodule", "Hernia"}


def test_offsets_point_at_the_words():
    text = "HISTORY: mass.\n\nFINDINGS: Heart size is normal. There may be a small pneumothorax.\nIMPRESSION: No edema."
    for e in ENGINE.candidates({"report": text}):
        sentence, mention = text[e.start : e.end], text[e.mention_start : e.mention_end]
        assert e.start <= e.mention_start < e.mention_end <= e.end
        assert mention in sentence
        if e.finding == "Pneumothorax":
            assert mention == "pneumothorax"
            assert text[e.cue_start : e.cue_end] == "may be"
            assert sentence == "There may be a small pneumothorax."
    assert {e.section for e in ENGINE.candidates({"report": text})} == {"findings", "impression"}


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=300) | st.lists(st.sampled_from([*NAMES, "no", "may", "or", ",", ".", "?", "\n"])).map(" ".join)
)
def test_any_text_is_read_and_every_decision_can_be_traced(text):
    report = {"findings": text, "report": text}
    found = ENGINE.read(report)
    assert [e.finding for e in found] == sorted({e.finding for e in found}, key=findings_lib.UNION.index)
    for e in ENGINE.candidates(report):
        assert 0 <= e.p <= 1
        assert 0 <= e.start <= e.mention_start < e.mention_end <= e.end <= len(text)
        assert e.cue == "" or (e.cue in ENGINE.lexicon.cues and e.start <= e.cue_start < e.cue_end <= e.end)


@pytest.mark.parametrize(
    "unit",
    (
        *("no effusion or ", "mass or nodule versus ", "effusion, ", "possible ", "heart, lungs ", "FINDINGS: "),
        *("likely nipple shadow ", "suspicion for mass is low ", "nodule, less likely, ", "mass, ? pneumonia "),
        *("? ", "!", ". ", "\n ", "a", "(", "1. ", "_", "\0\x1b[31m", "\u80f8\u8154 ", "\u0130 effusion "),
    ),
)
def test_a_megabyte_is_quick(unit):
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    engine_lib.Engine(findings_lib.UNION, ENGINE.lexicon).read({"findings": text})
    assert time.process_time() - start < 3


def test_deterministic_and_picklable():
    report = {"findings": "Possible effusion or edema. No mass.", "impression": None}
    copy = pickle.loads(pickle.dumps(ENGINE))  # noqa: S301 -- our own bytes
    assert copy.read(report) == ENGINE.read(report) == engine_lib.Engine(findings_lib.UNION).read(report)


def test_sentences_survive_abbreviations_and_numbers():
    text = "1. A 1.5 cm nodule vs. scar, approx. stable.2. No edema.Heart normal\n\nLungs clear 3. Done"
    parts = [text[a:b] for a, b in sentences.split(text)]
    assert parts == [
        "A 1.5 cm nodule vs. scar, approx. stable.",
        "No edema.",
        "Heart normal",
        "Lungs clear",
        "Done",
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Opacity, ? pneumonia. ? small effusion", 2),
        ("Shadowing (? infection) at the left base", 1),
        ("Effusion? No mass", 2),
        ("Effusion ? No mass", 2),
        ("Effusion ?infection. Mass ?old", 2),
    ],
)
def test_a_question_mark_may_open_what_it_asks(text, parts):
    assert len(sentences.split(text)) == parts


def test_sections_of_free_style_reports():
    text = "FINAL REPORT\n HISTORY: Cough.\n\n The lungs are clear.\n\n IMPRESSION: Normal.\n"
    assert [(s, text[a:b].strip()) for s, a, b in sections.split(text, "other")] == [
        ("other", "The lungs are clear."),
        ("impression", "Normal."),
    ]


def test_a_heading_by_organ_ends_what_does_not_count():
    text = "INDICATION: rule out pneumonia. Lungs: clear. Heart: normal."
    assert [(s, text[a:b].strip()) for s, a, b in sections.split(text, "other")] == [
        ("findings", "Lungs: clear. Heart: normal."),
    ]
    assert sections.split("Nodule. Heart: normal.", "impression") == [("impression", 0, 22)]


def test_lexicon_is_complete():
    cues = lexicon_lib.load().cues
    assert len(cues) >= 150
    assert {c.category for c in cues.values()} == set(lexicon_lib.CATEGORIES)
    assert len({c.cue for c in cues.values()}) == len(cues)
    assert all(c.source for c in cues.values())


def test_lexicon_faults_are_collected():
    head = ",".join(lexicon_lib.COLUMNS)
    text = f"{head}\na,may,possible,2,0,1,forward,phrase,x,\na,may,odd,.5,0,1,sideways,phrase,x,\n"
    with pytest.raises(ValueError, match="5 faults") as error:
        lexicon_lib.read_cues(text, "a file")
    assert "line 2" in str(error.value)
    assert "sideways" in str(error.value)
    with pytest.raises(ValueError, match="stands for"):
        patterns.expand(" ".join(["a|b|c|d"] * 6))
