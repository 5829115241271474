"""A hospital: studies of one phantom as arrays, films apart from reports.

Films do not depend on readers, so hospitals that differ in their readers alone share them. Studies are numbered as the
phantom numbers them, and come in the order train, valid, test; all studies of a patient are in one part.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax import phantom, sidecars
from repgls_jax.phantom import anatomy, phrases, population
from repgls_jax.phantom import report as report_lib
from repgls_jax.reports import engine as engine_lib

PARTS = ("train", "valid", "test")
# Fields of PhantomConfig that films depend on; the others are the readers'.
OF_FILMS = (
    "image_size",
    "seed",
    "difficulty",
    "prevalence_scale",
    "imbalance",
    "persistence",
    "split",
)
VOCABULARY = findings_lib.CHEXPERT


@dataclasses.dataclass(frozen=True)
class Counts:
    """Studies of each part, all at least 1."""

    train: int
    valid: int
    test: int

    def shares(self) -> tuple[float, float, float]:
        """As the phantom's ``split``."""
        total = self.train + self.valid + self.test
        return self.train / total, self.valid / total, 1.0 - self.train / total - self.valid / total


def films_of(config: phantom.PhantomConfig) -> dict[str, object]:
    """The fields of ``config`` that its films depend on, as JSON values."""
    return {name: getattr(config, name) for name in OF_FILMS}


def studies(config: phantom.PhantomConfig, counts: Counts) -> np.ndarray:
    """Numbers of the studies, int64 [n] with n = train + valid + test, in this order.

    Each part takes the phantom's first studies of its split. Patients fall into splits at random by their shares, so
    every part fills up after about n studies.
    """
    wanted = dict(zip(PARTS, dataclasses.astuple(counts), strict=True))
    found: dict[str, list[int]] = {part: [] for part in PARTS}
    index = 0
    while any(len(found[part]) < wanted[part] for part in PARTS):
        part = population.split_of(config, population.patient_of(index)[0])
        if len(found[part]) < wanted[part]:
            found[part].append(index)
        index += 1
    return np.concatenate([np.array(found[part], np.int64) for part in PARTS])


def truth(config: phantom.PhantomConfig, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is true: labels int8 [n, c], and the number of each study's patient, int32 [n]."""
    patients = [population.patient_of(int(i)) for i in indices]
    states = [population.state_of(config, *one) for one in patients]
    labels = np.stack([population.with_no_finding(state.truth) for state in states])
    return labels, np.array([patient for patient, _ in patients], np.int32)


def images(config: phantom.PhantomConfig, indices: np.ndarray) -> np.ndarray:
    """The films: uint8 [n, h, w, 1]."""
    return np.stack([phantom.render(config, int(i))[0] for i in indices])[..., None]


def written(config: phantom.PhantomConfig, indices: np.ndarray) -> Iterator[report_lib.Written]:
    """The report of each study, in order."""
    for i in indices.tolist():
        patient, visit = population.patient_of(i)
        state = population.state_of(config, patient, visit)
        yield report_lib.write(config, i, state, anatomy.body_of(config, patient, visit))


@dataclasses.dataclass(frozen=True)
class Told:
    """What reports say, and what their readers thought.

    Attributes:
      p: float32 [n, c], certainty that the extractor reads; NaN where it finds no mention.
      state: int8 [n, c], label states of the same.
      meant: float32 [n, c], certainty that the phrase stands for which the reader chose; NaN where the report does not
        speak of the finding. Extraction without error.
      belief: float32 [n, c] in (0, 1), the reader's own.
    """

    p: np.ndarray
    state: np.ndarray
    meant: np.ndarray
    belief: np.ndarray


def read(
    config: phantom.PhantomConfig, indices: np.ndarray, engine: engine_lib.Engine
) -> tuple[Told, pa.Table, pa.Table]:
    """Writes the reports and has them read by the lexicon.

    Returns:
      What they say; the reports as a table (study_id and their fields); and the evidence, see sidecars.EVIDENCE, which
      is what the RGN reads.
    """
    n, c = len(indices), len(VOCABULARY)
    p, meant = np.full((n, c), np.nan, np.float32), np.full((n, c), np.nan, np.float32)
    state = np.full((n, c), findings_lib.NOT_MENTIONED, np.int8)
    belief = np.zeros((n, c), np.float32)
    reports: list[dict[str, str]] = []
    rows = []
    for i, one in enumerate(written(config, indices)):
        fields = {"findings": one.findings, "impression": one.impression, "report": one.report}
        study = f"s{indices[i]:08d}"
        reports.append({"study_id": study, **fields})
        none = np.prod(1.0 - one.belief[population.PATHOLOGIES])
        belief[i] = np.concatenate([[none], one.belief])
        for finding, phrase in one.wording.items():
            meant[i, VOCABULARY.index(finding)] = phrases.probability(phrase)
        for e in engine.read(fields):
            k = VOCABULARY.index(e.finding)
            p[i, k], state[i, k] = e.p, e.state
            place = (e.field, e.start, e.end, e.mention_start, e.mention_end, e.cue_start, e.cue_end)
            rows.append((study, e.finding, e.state, e.p, e.cue, e.section, *place, "lexicon", engine.version, "", ""))
    columns = dict(zip(sidecars.EVIDENCE.names, zip(*rows, strict=True), strict=True))
    schema = sidecars.with_vocabulary(sidecars.EVIDENCE, VOCABULARY)
    table = pa.table({name: list(values) for name, values in columns.items()}, schema=schema)
    return Told(p, state, meant, belief), pa.Table.from_pylist(reports), table
