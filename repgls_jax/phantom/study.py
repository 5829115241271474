"""One study of the phantom from (config, index): film, masks, truth, belief, report."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax.phantom import anatomy, lesions, population, report
from repgls_jax.phantom import config as config_lib

PhantomConfig = config_lib.PhantomConfig

FINDINGS = findings_lib.CHEXPERT.findings  # the axis c of every array of a record
_FAINTEST = 1e-4  # contrasts below this are not drawn


def patient_id(number: int) -> str:
    """Name of patient ``number``."""
    return f"p{number:07d}"


def split_of(config: PhantomConfig, patient: str) -> str:
    """ "train", "valid" or "test" of a patient; all studies of a patient are in one split.

    Args:
      config: gives the seed and the shares.
      patient: a ``patient_id`` of :func:`generate`.

    Raises:
      ValueError: ``patient`` is no id of this data set.
    """
    if not (patient.startswith("p") and patient[1:].isdigit()):
        raise ValueError(f"patient_id {patient!r} is not of the phantom; expected 'p' and digits, such as 'p0000012'")
    return population.split_of(config, int(patient[1:]))


def render(
    config: PhantomConfig, index: int, without: Collection[str] = ()
) -> tuple[np.ndarray, np.ndarray, population.State, anatomy.Body]:
    """The film of study ``index``.

    Args:
      config: of the data set.
      index: of the study, >= 0.
      without: findings not to draw, all else equal (mimics of them included); for tests and demonstrations.

    Returns:
      image uint8 [h, w]; masks uint16 [h, w], bit k set where finding k of ``FINDINGS`` is present; state; body.
    """
    patient, visit = population.patient_of(index)
    state = population.state_of(config, patient, visit)
    body = anatomy.body_of(config, patient, visit)
    chest = anatomy.Chest(body, config.image_size)
    value = anatomy.density(chest)
    masks = np.zeros(value.shape, np.uint16)
    for k, name in enumerate(population.NAMES):
        contrast = float(state.contrast[k])
        if contrast < _FAINTEST or name in without:
            continue
        change, region = lesions.paint(name, chest, lesions.place_of(name, state.places[k]), contrast)
        value += change
        if state.truth[k]:
            masks |= region.astype(np.uint16) << np.uint16(k + 1)
    grain = population.stream(config.seed, config_lib.GRAIN, index)
    image = anatomy.film(body, value, grain.standard_normal(value.shape, np.float32))
    return image, masks, state, body


def generate(config: PhantomConfig, index: int) -> dict[str, Any]:
    """Study ``index``: the shared record of a study, with everything that is known about it.

    Returns:
      image uint8 [h, w]; image_id, patient_id, study_id, view ("PA" or "AP"), split ("train", "valid", "test") str;
      findings, impression str, or report str (free text), has_report True; labels int8 [14] of -2 and observed bool
      [14] of False (no labels are given with the data); truth int8 [14]; contrast float32 [14] (visibility of what was
      drawn, mimics included; for "No Finding" 1 - the highest of the pathologies, at least 0); belief float32 [14]
      (the reader's P(present)); reader int; masks uint16 [h, w], bit k = finding k; wording dict finding -> phrase id
      for each finding the report speaks of.

    Raises:
      ValueError: ``index`` is negative.
    """
    if index < 0:
        raise ValueError(f"index of a study is {index}; expected 0 or more")
    image, masks, state, body = render(config, index)
    patient, _ = population.patient_of(index)
    written = report.write(config, index, state, body)
    none = written.belief[population.PATHOLOGIES]
    visible = 1.0 - float(state.contrast[population.PATHOLOGIES].max())
    return {
        "image": image,
        "image_id": f"i{index:08d}",
        "patient_id": patient_id(patient),
        "study_id": f"s{index:08d}",
        "view": body.view,
        "split": population.split_of(config, patient),
        "findings": written.findings,
        "impression": written.impression,
        "report": written.report,
        "has_report": True,
        "labels": np.full(len(FINDINGS), findings_lib.NOT_MENTIONED, np.int8),
        "observed": np.zeros(len(FINDINGS), bool),
        "truth": population.with_no_finding(state.truth),
        "contrast": np.concatenate([[max(visible, 0.0)], state.contrast]).astype(np.float32),
        "belief": np.concatenate([[np.prod(1.0 - none)], written.belief]).astype(np.float32),
        "reader": np.int32(written.reader),
        "masks": masks,
        "wording": written.wording,
    }


def studies(config: PhantomConfig, n: int) -> Iterator[dict[str, Any]]:
    """Studies 0 to n - 1."""
    return (generate(config, index) for index in range(n))
