"""What a phantom data set is made of, in one frozen record."""

import dataclasses

# Kinds of random stream; every kind is independent of the others.
PATIENT, VISIT, BODY, EXPOSURE, GRAIN, READER, VIEWING, WRITING, SPLIT = range(9)

# Contrast of present findings and of mimics at difficulty 1: log-normal medians and widths, see population.contrasts.
PRESENT_MEDIAN, PRESENT_SIGMA = 0.55, 0.6
MIMIC_MEDIAN, MIMIC_SIGMA, MIMIC_SHARE = 0.14, 0.6, 0.4
CAP = 1.5

EVIDENCE_SOURCES = ("image", "independent")
SMALLEST_SIDE, LARGEST_SIDE = 64, 1024


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """A phantom data set. Study ``index`` of it is a function of this record and the index alone.

    Attributes:
      image_size: side of the square films in pixels, 64..1024. Truth, beliefs and reports do not depend on it.
      seed: >= 0; another seed gives other patients.
      difficulty: > 0; 1 puts a classifier trained on the truth near AUROC .9. Larger: true findings fainter, mimics
        stronger.
      prevalence_scale: > 0; multiplies every prevalence (which run from about 2 % to 30 %).
      imbalance: >= 0; exponent on the prevalence relative to the commonest finding. 0 makes all findings equally
        common, 1 is the long tail, larger is longer.
      persistence: 0..1, share of variance that the studies of a patient have in common.
      readers: >= 1, number of readers; each writes in a style of their own.
      reader_noise: > 0; standard deviation of what the reader sees around the contrast (contrast about .5 is typical).
      reader_bias: >= 0; spread over readers of a shift on the logit of their belief (over- and under-calling).
      hedging: >= 0; the certainty put in words is sigmoid(logit(belief) / hedging): 0 writes only assertions and
        negations, 1 says what is believed, larger hedges more. Each reader varies around it.
      evidence: "image": beliefs follow the contrast in this very film, mimics included. "independent": they follow
        another contrast drawn for the same truth, so that given the truth they say nothing about the film.
      mention_only: most absent findings are left out of the report instead of being denied.
      typos: 0..1, chance of a misspelling per word.
      free_text: 0..1, share of studies whose report is one free text instead of findings and impression.
      split: shares of patients in train, valid and test; they add up to 1.
    """

    image_size: int = 64
    seed: int = 0
    difficulty: float = 1.0
    prevalence_scale: float = 1.0
    imbalance: float = 1.0
    persistence: float = 0.6
    readers: int = 8
    reader_noise: float = 0.12
    reader_bias: float = 0.5
    hedging: float = 1.0
    evidence: str = "image"
    mention_only: bool = False
    typos: float = 0.002
    free_text: float = 0.3
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
          ValueError: lists each field that is out of range, with its value and what was expected.
        """
        checks = {
            "image_size": (SMALLEST_SIDE <= self.image_size <= LARGEST_SIDE, f"{SMALLEST_SIDE}..{LARGEST_SIDE} pixels"),
            "seed": (self.seed >= 0, ">= 0"),
            "difficulty": (0.05 <= self.difficulty <= 20, "0.05..20"),
            "prevalence_scale": (0 < self.prevalence_scale <= 5, "> 0 and <= 5"),
            "imbalance": (0 <= self.imbalance <= 5, "0..5"),
            "persistence": (0 <= self.persistence <= 1, "0..1"),
            "readers": (1 <= self.readers <= 1000, "1..1000"),
            "reader_noise": (0.01 <= self.reader_noise <= 5, "0.01..5"),
            "reader_bias": (0 <= self.reader_bias <= 5, "0..5"),
            "hedging": (0 <= self.hedging <= 10, "0..10"),
            "evidence": (self.evidence in EVIDENCE_SOURCES, f"one of {', '.join(EVIDENCE_SOURCES)}"),
            "typos": (0 <= self.typos <= 1, "0..1"),
            "free_text": (0 <= self.free_text <= 1, "0..1"),
            "split": (
                len(self.split) == 3 and min(self.split) >= 0 and abs(sum(self.split) - 1) < 1e-6,
                "three shares >= 0 that add up to 1",
            ),
        }
        bad = [f"{name} is {getattr(self, name)!r}, expected {want}" for name, (ok, want) in checks.items() if not ok]
        if bad:
            raise ValueError("PhantomConfig: " + "; ".join(bad))
