"""Who is ill with what: patients, their studies, the truth of each finding and how visible it is.

A patient has one to three studies. The truth of the thirteen findings is a correlated probit: five latent causes
(heart failure, infection, intensive care, trauma, old disease) load on the findings, and finding k is present where
its latent normal exceeds the quantile that gives its prevalence. A follow-up study shares a part ``persistence`` of
the variance of every latent with the patient, so that disease, its place and its visibility persist.

Pure functions of (config, patient, study): nothing here depends on the order in which studies are made.
"""

import dataclasses
import functools
import statistics

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.phantom import config as config_lib

NAMES = findings_lib.CHEXPERT.findings[1:]  # the 13 that are drawn, in the order of every [13] array here
PATHOLOGIES = np.array([name != "Support Devices" for name in NAMES])  # what rules out "No Finding"

PREVALENCE = {
    "Enlarged Cardiomediastinum": 0.06,
    "Cardiomegaly": 0.17,
    "Lung Opacity": 0.26,
    "Lung Lesion": 0.045,
    "Edema": 0.12,
    "Consolidation": 0.07,
    "Pneumonia": 0.09,
    "Atelectasis": 0.19,
    "Pneumothorax": 0.05,
    "Pleural Effusion": 0.23,
    "Pleural Other": 0.02,
    "Fracture": 0.03,
    "Support Devices": 0.30,
}

# Loadings on the causes: heart failure, infection, intensive care, trauma, old disease.
LOADINGS = {
    "Enlarged Cardiomediastinum": (0.45, 0.0, 0.25, 0.2, 0.1),
    "Cardiomegaly": (0.7, 0.0, 0.1, 0.0, 0.1),
    "Lung Opacity": (0.3, 0.7, 0.15, 0.0, 0.1),
    "Lung Lesion": (0.0, 0.1, 0.0, 0.0, 0.4),
    "Edema": (0.75, 0.1, 0.3, 0.0, 0.0),
    "Consolidation": (0.0, 0.75, 0.2, 0.0, 0.0),
    "Pneumonia": (0.0, 0.85, 0.1, 0.0, 0.0),
    "Atelectasis": (0.25, 0.2, 0.5, 0.1, 0.1),
    "Pneumothorax": (0.0, 0.0, 0.45, 0.5, 0.0),
    "Pleural Effusion": (0.6, 0.25, 0.4, 0.1, 0.15),
    "Pleural Other": (0.0, 0.0, 0.0, 0.25, 0.6),
    "Fracture": (0.0, 0.0, 0.1, 0.6, 0.2),
    "Support Devices": (0.25, 0.1, 0.7, 0.2, 0.0),
}

PLACE_DRAWS = 12  # uniforms that place one lesion
_STUDIES_IN_BLOCK = (1, 2, 1, 3, 1, 2)  # studies of each of six neighbouring patients: ten studies
_BLOCK = sum(_STUDIES_IN_BLOCK)
_OF_SLOT = tuple((p, k) for p, count in enumerate(_STUDIES_IN_BLOCK) for k in range(count))


@dataclasses.dataclass(frozen=True)
class State:
    """What is true of one study.

    Attributes:
      truth: bool [13].
      contrast: float32 [13], visibility in [0, CAP]; about 1 is obvious, 0 is nothing drawn. Absent findings may
        carry a faint mimic.
      places: float [13, PLACE_DRAWS] in [0, 1), where and in which form each lesion lies.
    """

    truth: np.ndarray
    contrast: np.ndarray
    places: np.ndarray


def stream(seed: int, kind: int, *key: int) -> np.random.Generator:
    """Independent random numbers for one purpose (``kind``) and one thing (``key``)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(kind, *key))))


def patient_of(index: int) -> tuple[int, int]:
    """(patient number, how many earlier studies the patient has) of study ``index`` >= 0."""
    block, slot = divmod(index, _BLOCK)
    patient, visit = _OF_SLOT[slot]
    return block * len(_STUDIES_IN_BLOCK) + patient, visit


def prevalence(config: config_lib.PhantomConfig) -> np.ndarray:
    """Prevalence of the thirteen findings under ``config``, float64 [13]."""
    base = np.array([PREVALENCE[name] for name in NAMES])
    top = base.max()
    return np.clip(config.prevalence_scale * top * (base / top) ** config.imbalance, 0.001, 0.9)


@functools.lru_cache(maxsize=16)
def _probit(config: config_lib.PhantomConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loadings [13, 5], own standard deviations [13] and thresholds [13] of the correlated probit."""
    loadings = np.array([LOADINGS[name] for name in NAMES])
    own = np.sqrt(1.0 - (loadings**2).sum(axis=1))
    normal = statistics.NormalDist()
    thresholds = np.array([normal.inv_cdf(1.0 - p) for p in prevalence(config)])
    return loadings, own, thresholds


def contrasts(config: config_lib.PhantomConfig, truth: np.ndarray, size: np.ndarray, mimic: np.ndarray) -> np.ndarray:
    """Visibility of present findings and of mimics.

    Args:
      config: its ``difficulty`` moves the two log-normal distributions together.
      truth: bool [...].
      size: standard normal [...], how visible.
      mimic: standard normal [...], whether an absent finding has a mimic.

    Returns:
      float32 [...] in [0, CAP].
    """
    root = np.sqrt(config.difficulty)
    present = config_lib.PRESENT_MEDIAN / root * np.exp(config_lib.PRESENT_SIGMA * size)
    faint = config_lib.MIMIC_MEDIAN * root * np.exp(config_lib.MIMIC_SIGMA * size)
    threshold = statistics.NormalDist().inv_cdf(1.0 - config_lib.MIMIC_SHARE)
    value = np.where(truth, present, np.where(mimic > threshold, faint, 0.0))
    return np.minimum(value, config_lib.CAP).astype(np.float32)


def state_of(config: config_lib.PhantomConfig, patient: int, visit: int) -> State:
    """Truth, contrast and places of a patient's study number ``visit`` (0 is the first)."""
    loadings, own, thresholds = _probit(config)
    count, causes = loadings.shape
    ours, now = stream(config.seed, config_lib.PATIENT, patient), stream(config.seed, config_lib.VISIT, patient, visit)
    shape = causes + 3 * count
    kept = np.sqrt(config.persistence)
    draw = kept * ours.standard_normal(shape) + np.sqrt(1.0 - config.persistence) * now.standard_normal(shape)
    cause, rest = draw[:causes], draw[causes:].reshape(3, count)
    truth = loadings @ cause + own * rest[0] > thresholds
    # Lesions keep their place between visits, but for a small move.
    places = ours.random((count, PLACE_DRAWS)) * 0.97 + 0.03 * now.random((count, PLACE_DRAWS))
    return State(truth, contrasts(config, truth, rest[1], rest[2]), places)


def with_no_finding(truth: np.ndarray) -> np.ndarray:
    """int8 [14] in the order of ``findings.CHEXPERT`` from bool [13]: "No Finding" first."""
    none = not bool(truth[PATHOLOGIES].any())
    return np.concatenate([[none], truth]).astype(np.int8)


def split_of(config: config_lib.PhantomConfig, patient: int) -> str:
    """ "train", "valid" or "test" of patient number ``patient``."""
    u = stream(config.seed, config_lib.SPLIT, patient).random()
    train, valid, _ = config.split
    return "train" if u < train else "valid" if u < train + valid else "test"
