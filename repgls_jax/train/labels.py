"""Label columns of a split: what reports and data set say of every example, ready to join with its image.

Nothing is decided here; the four states stay apart, and a label policy reads them inside the step.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax import methods, policies, rates, sidecars

Columns = dict[str, np.ndarray]

# The certainty of labels that come with a data set and carry no wording.
_P_OF_STATE = {findings_lib.POSITIVE: 1.0, findings_lib.NEGATIVE: 0.0, findings_lib.UNCERTAIN: 0.5}


def columns(
    examples: Mapping[str, Any],
    evidence: pa.Table | None,
    vocabulary: findings_lib.Vocabulary,
) -> Columns:
    """States, certainties and which labels exist.

    Training reads the evidence where a study has a report that could be read, and the labels of the data set where it
    has none. The labels that reports displace are kept for scoring, see :func:`reference`.

    Args:
      examples: of one split: ``study_id`` n strings, ``has_report`` [n] bool, ``labels`` [n, c] int8, ``observed``
        [n, c] bool; of the phantom also ``truth`` [n, c] int8 and ``belief`` [n, c] float32.
      evidence: from :func:`repgls_jax.sidecars.read`, or None for data without reports.
      vocabulary: order of the findings.

    Returns:
      ``state`` [n, c] int8, ``p`` [n, c] float32 (NaN where not mentioned), ``observed`` [n, c] bool, ``given`` [n, c]
      int8 (the data set's own labels), and where the data has them ``truth``, ``belief``, and ``group`` [n] int32, who
      read the film.
    """
    state = examples["labels"].astype(np.int8)
    p = np.full(state.shape, np.nan, np.float32)
    for value, certainty in _P_OF_STATE.items():
        p[state == value] = certainty
    observed = examples["observed"].copy()
    if evidence is not None:
        ids = list(examples["study_id"])
        told = was_read(examples, evidence)[:, None]
        state = np.where(told, sidecars.as_array(evidence, "state", ids, vocabulary, findings_lib.NOT_MENTIONED), state)
        p = np.where(told, sidecars.as_array(evidence, "p", ids, vocabulary, np.nan), p)
        observed = observed | told
    made = {"state": state.astype(np.int8), "p": p.astype(np.float32), "observed": observed}
    made["given"] = np.where(examples["observed"], examples["labels"], findings_lib.NOT_MENTIONED).astype(np.int8)
    if "reader" in examples:
        made["group"] = np.asarray(examples["reader"], np.int32)
    return made | {name: examples[name] for name in ("truth", "belief") if name in examples}


def was_read(examples: Mapping[str, Any], evidence: pa.Table) -> np.ndarray:
    """Which examples have a report that the evidence was read from: [n] bool."""
    unread = sidecars.unread(evidence)
    return np.asarray(examples["has_report"], bool) & np.array([s not in unread for s in examples["study_id"]], bool)


def with_rates(
    made: Columns,
    study_ids: list[str],
    rates_table: pa.Table | None,
    vocabulary: findings_lib.Vocabulary,
    config: policies.PolicyConfig,
    seed: int,
) -> Columns:
    """The columns with ``rate`` [n, c] float32 added as the policy asks, permuted if it says so.

    Raises:
      ValueError: the policy needs columns or rates that this data does not have.
    """
    policy = methods.METHODS[config.name].policy
    methods.require_columns(config.name, made)
    if policy.rates == "":
        return made
    certainty = made["belief"] if policy.rates == "belief" else made["p"]
    y, rate = rates.expert_rates(certainty, config.rho, config.r_blank)
    if policy.rates == "rgn":
        if rates_table is None:
            raise ValueError(
                f"policy {config.name!r} reads the RGN's rates, but this data has no reports to make them from; "
                "choose a policy without, such as hard or constant"
            )
        read = sidecars.as_array(rates_table, "rate", study_ids, vocabulary, np.nan)
        # What the RGN had nothing to read of (blanks, labels without a report) keeps the expert's rate.
        rate = np.where(np.isnan(read), rate, read).astype(np.float32)
    if policy.permuted:
        # By study: the images of one keep one rate.
        _, first, study = np.unique(np.array(study_ids), return_index=True, return_inverse=True)
        among = ~np.isnan(made["p"]) & made["observed"]
        rate = rates.permute(rate[first], y[first], among[first], seed)[study]
    return made | {"rate": rate}


def reference(made: Columns, has_report: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """What predictions are scored against: the best that the data has.

    Args:
      made: from :func:`columns`.
      has_report: [n] bool.

    Returns:
      (labels [n, c] int8 in {0, 1}, mask [n, c] bool, name): the phantom's truth; else the labels that came with the
      data, and studies without any are left out; else what reports say plainly. Of a labelled study, what its labels
      leave blank is what its report says plainly. A finding that a report does not mention counts as absent. Uncertain
      labels and uncertain wording are left out.
    """
    if "truth" in made:
        return made["truth"].astype(np.int8), np.ones(made["truth"].shape, bool), "truth"
    given = made["given"] != findings_lib.NOT_MENTIONED
    told = made["observed"] & ~given & has_report[:, None]
    if given.any():  # labels of two origins are not mixed, but for the blanks of one study
        told &= given.any(1, keepdims=True)
    state = np.where(given, made["given"], made["state"])
    names = [f"the labels of the data set ({given.sum():,})"] if given.any() else []
    names += [f"the plain wording of {'their' if names else 'the'} reports ({told.sum():,})"] if told.any() else []
    mask = (given | told) & (state != findings_lib.UNCERTAIN)
    return (state == findings_lib.POSITIVE).astype(np.int8), mask, " and ".join(names) or "nothing"


def noisy_reference(made: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Labels such as training sees, for validation: y = 1[p >= 1/2], [n, c] int8, and mask [n, c] bool."""
    return (np.nan_to_num(made["p"]) >= 0.5).astype(np.int8), made["observed"]
