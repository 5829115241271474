"""From statements to a report: sections, headings, sentences beside the point, misspellings."""

import numpy as np

from repgls_jax.phantom import anatomy

_AGES = (
    "45 year old man",
    "62-year-old woman",
    "71 year old",
    "54-year-old male",
    "83 year old woman",
    "Adult patient",
)
_ASKED = (
    "pneumonia",
    "pleural effusion",
    "pneumothorax",
    "pulmonary edema",
    "consolidation",
    "rib fracture",
    "atelectasis",
)
_INDICATIONS = (
    "{who} with shortness of breath, evaluate for {what}.",
    "{who} with fever and cough, rule out {what}.",
    "{who} with a history of {what}.",
    "{who}, chest pain. Question {what}.",
    "{who} status post line placement, assess for {what}.",
    "{who} with known {what} last year. Follow-up.",
)
_TECHNIQUE = {
    "PA": ("PA view of the chest.", "Frontal radiograph of the chest, upright."),
    "AP": ("Portable AP view of the chest.", "Single AP portable radiograph, semi-upright."),
}
_NO_PRIOR = ("None.", "No prior study available.", "None available.")
_PRIOR = ("Chest radiograph from the prior visit.", "Prior chest radiograph.", "Earlier study.")
_ASIDES = (
    "Degenerative changes of the thoracic spine.",
    "Mild scoliosis.",
    "Gas-filled loops of bowel in the upper abdomen.",
    "The aorta is tortuous.",
    "Atherosclerotic calcification of the aortic arch.",
    "The patient is rotated.",
    "Lung volumes are low.",
    "Clinical correlation is recommended.",
    "Upper abdomen is unremarkable.",
    "The trachea is midline.",
)
_BONES = "Visualized osseous structures are unremarkable."
_ALL_CLEAR = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "No acute intrathoracic process.",
    "No acute disease.",
)
_SPOTLESS = ("Normal chest radiograph.", "Unremarkable chest radiograph.", "Normal chest.")
_NOTHING_MORE = ("As above.", "See findings.", "Please see above for details.", "Findings as described.")
_HEADINGS = ("{}: ", "{}: ", "{}:\n")


def pick(random: np.random.Generator, choices: tuple[str, ...]) -> str:
    """One of ``choices``."""
    return choices[int(random.random() * len(choices))]


def aside(random: np.random.Generator, bones: bool) -> str:
    """A sentence that says nothing of the thirteen findings; ``bones``: nothing is wrong with them."""
    return pick(random, (*_ASIDES, _BONES) if bones else _ASIDES)


def conclusion(random: np.random.Generator, sentences: list[str], clear: bool, spotless: bool) -> tuple[str, bool]:
    """The impression from its sentences, and whether it calls the film normal.

    Args:
      random: of this report.
      sentences: may be empty.
      clear: the reader holds that there is no disease.
      spotless: nor any device.
    """
    if not sentences:
        normal = _ALL_CLEAR + (_SPOTLESS if spotless else ())
        return (pick(random, normal), True) if clear else (pick(random, _NOTHING_MORE), False)
    if len(sentences) > 1 and random.random() < 0.5:
        return " ".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1)), False
    return " ".join(sentences), False


def misspell(random: np.random.Generator, text: str, rate: float) -> str:
    """Swaps or drops a letter inside words of five letters or more, each with chance ``rate``."""
    if rate <= 0:
        return text
    words = text.split(" ")
    for i in np.flatnonzero(random.random(len(words)) < rate):
        word = words[i]
        if len(word) < 5 or not word.isalpha():
            continue
        at = 1 + int(random.random() * (len(word) - 3))
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[i] = swapped if random.random() < 0.6 else word[:at] + word[at + 1 :]
    return " ".join(words)


def free_text(random: np.random.Generator, body: anatomy.Body, follow_up: bool, findings: str, impression: str) -> str:
    """One text with headings, now and then without any."""
    if random.random() < 0.15:
        return f"{findings} {impression}".strip()
    who, what = pick(random, _AGES), pick(random, _ASKED)
    sections = [("Examination", "Chest radiograph.")] if random.random() < 0.4 else []
    if random.random() < 0.85:
        sections.append(("Indication", pick(random, _INDICATIONS).format(who=who, what=what)))
    if random.random() < 0.6:
        sections.append(("Technique", pick(random, _TECHNIQUE[body.view])))
    if follow_up or random.random() < 0.5:
        sections.append(("Comparison", pick(random, _PRIOR if follow_up else _NO_PRIOR)))
    sections += [("Findings", findings), ("Impression", impression)]
    heading, capitals = pick(random, _HEADINGS), random.random() < 0.7
    parts = [heading.format(name.upper() if capitals else name) + text for name, text in sections if text]
    return "\n\n".join(parts) if random.random() < 0.7 else "\n".join(parts)
