"""Findings, their vocabularies, and the four label states.

A *finding* is named once, here, by its canonical name ("Pleural Effusion"); names that other data sets use for
it ("Effusion") are aliases. A *vocabulary* is an ordered, versioned tuple of canonical names; the axis ``c`` of
every array in this project follows one vocabulary's order. Two files with different orders never mix: see
:func:`require_same`.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

# int8 label states. They are kept apart from disk to the edge of the loss, where a label policy reads them.
NOT_MENTIONED = -2
UNCERTAIN = -1
NEGATIVE = 0
POSITIVE = 1
STATES = {NOT_MENTIONED: "not mentioned", UNCERTAIN: "uncertain", NEGATIVE: "negative", POSITIVE: "positive"}

# A wording counts as a plain assertion from this probability up, as a plain negation from 1 - it down.
CERTAIN = 0.9

NO_FINDING = "No Finding"


def state_of(p: float) -> int:
    """The label state of a certainty ``p`` in [0, 1]: positive from .9 up, negative from .1 down, else uncertain."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"certainty p is {p!r}; expected a probability in [0, 1]")
    # The rounding keeps 1 - 0.9 (0.0999...) and 0.1 on the same side.
    if p >= CERTAIN:
        return POSITIVE
    return NEGATIVE if round(p, 6) <= round(1 - CERTAIN, 6) else UNCERTAIN


def states_of(p: np.ndarray) -> np.ndarray:
    """:func:`state_of` of an array of any shape, int8; NaN is "not mentioned"."""
    hedged = (p > 1 - CERTAIN + 1e-6) & (p < CERTAIN)
    state = np.where(hedged, UNCERTAIN, np.where(p >= CERTAIN, POSITIVE, NEGATIVE))
    return np.where(np.isnan(p), NOT_MENTIONED, state).astype(np.int8)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """An ordered set of findings.

    Attributes:
      name: key in :data:`VOCABULARIES`.
      version: raised whenever ``findings`` changes, so that old files are recognised.
      findings: canonical names, in the order of the axis ``c``.
    """

    name: str
    version: int
    findings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.findings)

    def index(self, finding: str) -> int:
        """Position of ``finding`` (canonical name or alias).

        Raises:
          ValueError: the finding is not part of this vocabulary; the message lists what is.
        """
        name = canonical(finding)
        if name not in self.findings:
            raise ValueError(
                f"finding {finding!r} is not in the vocabulary {self.name!r}; "
                f"expected one of {', '.join(self.findings)}"
            )
        return self.findings.index(name)


CHEXPERT = Vocabulary(
    "chexpert",
    1,
    (
        NO_FINDING,
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Opacity",
        "Lung Lesion",
        "Edema",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
    ),
)

NIH = Vocabulary(
    "nih",
    1,
    (
        "Atelectasis",
        "Cardiomegaly",
        "Pleural Effusion",
        "Infiltrate",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural Thickening",
        "Hernia",
    ),
)

UNION = Vocabulary("union", 1, CHEXPERT.findings + tuple(f for f in NIH.findings if f not in CHEXPERT.findings))

VOCABULARIES = {v.name: v for v in (CHEXPERT, NIH, UNION)}

# Names that published label files use, lower-cased, with "_" and "-" read as spaces.
ALIASES = {
    "effusion": "Pleural Effusion",
    "infiltration": "Infiltrate",
    "infiltrates": "Infiltrate",
    "enlarged cardiom.": "Enlarged Cardiomediastinum",
    "airspace opacity": "Lung Opacity",
    "opacity": "Lung Opacity",
    "lung lesion": "Lung Lesion",
    "hiatal hernia": "Hernia",
    "normal": NO_FINDING,
}


def canonical(name: str) -> str:
    """The canonical spelling of a finding's name; an unknown name comes back unchanged for the caller to refuse."""
    key = " ".join(name.replace("_", " ").replace("-", " ").split()).lower()
    return ALIASES.get(key) or {f.lower(): f for f in UNION.findings}.get(key, name)


def vocabulary(name: str) -> Vocabulary:
    """The vocabulary called ``name``.

    Raises:
      ValueError: no vocabulary has that name.
    """
    if name not in VOCABULARIES:
        raise ValueError(f"vocabulary {name!r} is unknown; expected one of {', '.join(VOCABULARIES)}")
    return VOCABULARIES[name]


def require_same(ours: Iterable[str], theirs: Iterable[str], where: str) -> None:
    """Refuses two finding orders that differ.

    Args:
      ours: the order in use.
      theirs: the order found.
      where: what holds ``theirs``, for the message.

    Raises:
      ValueError: the orders differ; the message names both.
    """
    ours, theirs = tuple(ours), tuple(theirs)
    if ours != theirs:
        raise ValueError(
            f"{where} holds the findings [{', '.join(theirs)}] but this run uses [{', '.join(ours)}]; "
            "use the vocabulary it was made with, or make it again"
        )
